"""Samples on disk until the coordinator has them: SQLite, bounded in age and size. Blocking; one caller at a time."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Failed
from twinsite.units import MiB

_log = structlog.get_logger()
KEEP_SECONDS: Final = 30 * 86400.0
LIMIT_BYTES: Final = 50 * MiB
_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=2000", "journal_size_limit=4194304")
_TABLE: Final = """CREATE TABLE IF NOT EXISTS sample (
    start INTEGER NOT NULL, vm_id TEXT NOT NULL, document BLOB NOT NULL, PRIMARY KEY (start, vm_id)) WITHOUT ROWID"""

Answer = TypeVar("Answer")


class SamplesUnwritable(Failed):
    public = "statistics cannot be kept in {error.path}: {error.reason}"
    still_works = "replication goes on; the newest statistics are held in memory and written later"
    next_step = "free space there or look at that disk's health"

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason


class SampleStore:
    """Opened when it is first used. Every method raises SamplesUnwritable, and may be called again later."""

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path, self._limit = path, limit_bytes
        self._open: sqlite3.Connection | None = None
        self._using = threading.RLock()  # SQLite does not survive a connection closed under another thread's query

    def write(self, samples: Iterable[types_pb2.Sample]) -> None:
        """All or none; each in place of what was stored for its VM and minute."""
        rows = [(sample.start_unix, sample.vm_id, _document(sample)) for sample in samples]
        self._do(lambda database: database.executemany("INSERT OR REPLACE INTO sample VALUES (?, ?, ?)", rows))

    def minute(self, start: int) -> list[types_pb2.Sample]:
        return self._read("SELECT document FROM sample WHERE start = ?", start)

    def oldest(self, count: int, size: int, *, but: tuple[int, int]) -> list[types_pb2.Sample]:
        """At most so many, of at most `size` bytes together but at least one; without those two minutes."""
        found: list[types_pb2.Sample] = []
        for sample in self._read(
            "SELECT document FROM sample WHERE start NOT IN (?, ?) ORDER BY start, vm_id LIMIT ?", *but, count
        ):
            size -= sample.ByteSize()
            if found and size < 0:
                break
            found.append(sample)
        return found

    def remove(self, samples: Iterable[types_pb2.Sample]) -> int:
        """Those that are still as they are given here; how many."""
        rows = [(sample.start_unix, sample.vm_id, _document(sample)) for sample in samples]
        statement = "DELETE FROM sample WHERE start = ? AND vm_id = ? AND document = ?"
        return self._do(lambda database: database.executemany(statement, rows).rowcount)

    def trim(self, now: float) -> int:
        """Drop what is too old, and of what is too much the oldest; how many samples."""
        return self._do(lambda database: self._trim(database, now))

    def close(self) -> None:
        with self._using:
            if self._open is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._open.close()
                self._open = None

    def _trim(self, database: sqlite3.Connection, now: float) -> int:
        dropped = database.execute("DELETE FROM sample WHERE start < ?", (int(now - KEEP_SECONDS),)).rowcount

        def pragma(name: str) -> int:
            return int(database.execute(f"PRAGMA {name}").fetchone()[0])

        while (pragma("page_count") - pragma("freelist_count")) * pragma("page_size") > self._limit:
            tenth = database.execute("SELECT count(*) FROM sample").fetchone()[0] // 10
            last = database.execute("SELECT start FROM sample ORDER BY start LIMIT 1 OFFSET ?", (tenth,)).fetchone()
            if last is None:
                break
            dropped += database.execute("DELETE FROM sample WHERE start <= ?", last).rowcount
        return dropped

    def _read(self, query: str, *values: int) -> list[types_pb2.Sample]:
        rows: list[tuple[bytes]] = self._do(lambda database: database.execute(query, values).fetchall())
        return [types_pb2.Sample.FromString(row[0]) for row in rows]

    def _do(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """In a transaction. A file that is damaged is begun anew: statistics are not worth a stop."""
        with self._using:
            return self._alone(work)

    def _alone(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        try:
            try:
                with self._connection() as database:
                    return work(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                _log.error("statistics_damaged", path=str(self._path), reason=str(error))
                self._discard()
                with self._connection() as database:
                    return work(database)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise SamplesUnwritable(self._path, str(error)) from None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            with contextlib.ExitStack() as unless_whole:
                opened = sqlite3.connect(self._path, check_same_thread=False)
                unless_whole.callback(opened.close)
                for pragma in _PRAGMAS:
                    opened.execute(f"PRAGMA {pragma}")
                opened.execute(_TABLE)
                unless_whole.pop_all()
            self._open = opened
        return self._open

    def _discard(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _document(sample: types_pb2.Sample) -> bytes:
    return sample.SerializeToString(deterministic=True)
