"""Commands received, their results, and which results the peer has: what makes a command run at most once.

One append-only file. Record: magic, length, CRC-32 (4 bytes each, little-endian), then kind, time, id and payload.
Every record is fsynced before the call returns, so a torn record can only be the last one; it is dropped at open. Calls
block for one fsync and may come from any thread: async callers use `asyncio.to_thread`.
"""

import contextlib
import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from twinsite.clock import Clock
from twinsite.errors import Failed, InvalidInput, Precondition
from twinsite.units import KiB, MiB

KEPT_SECONDS: Final = 24 * 3600  # a peer may repeat a command for so long after it stored the result
MAX_ID_BYTES: Final = 200
MAX_PAYLOAD_BYTES: Final = 16 * MiB
_COMPACT_BYTES: Final = 256 * KiB  # a smaller file is never worth the rewrite

_MAGIC: Final = b"TWJ1"
_HEADER: Final = struct.Struct("<4sII")
_BODY: Final = struct.Struct("<BdH")
_RECEIVED, _FINISHED, _STORED = 1, 2, 3


class JournalDamaged(Failed):
    public = "{error.path}: record at byte {error.offset} is damaged, and good records follow it"
    cause = "the disk returned other bytes than were written, or somebody edited the file"
    still_works = "nothing was executed and the file is as it was"
    next_step = "look at the disk's health; move the file away to start afresh: the peer sends open commands again"

    def __init__(self, path: Path, offset: int) -> None:
        self.path, self.offset = path, offset


class JournalInUse(Precondition):
    public = "{error.path} is in use by another process"
    still_works = "the other process goes on"
    next_step = "stop the program that uses this state folder, or give this one a folder of its own"

    def __init__(self, path: Path) -> None:
        self.path = path


class JournalUnwritable(Failed):
    public = "{error.path} cannot be written: {error.reason}"
    still_works = "the command was not executed; what was acknowledged before is safe"
    next_step = "free space on that disk or look at its health; the next command tries again"

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason


class CommandTooLarge(InvalidInput):
    public = "command {error.id_start!r}… exceeds the journal's limits"
    still_works = "nothing was executed"

    def __init__(self, id_: str) -> None:
        self.id_start = id_[:40]


class UnknownCommand(InvalidInput):
    public = "command {error.id} is not in the journal"

    def __init__(self, id_: str) -> None:
        self.id = id_


@dataclass(frozen=True, slots=True)
class New:
    """Never seen: it is durable now, execute it."""


@dataclass(frozen=True, slots=True)
class Running:
    """Seen before and without a result: do not start it a second time in this process."""


@dataclass(frozen=True, slots=True)
class Done:
    """Executed before; answer with this."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Command:
    id: str
    payload: bytes


@dataclass(slots=True)
class _Entry:
    received_at: float
    payload: bytes | None  # None once there is a result: it is not needed any more
    result: bytes | None = None
    finished_at: float = 0.0
    stored_at: float | None = None


class Journal:
    """Made by `Journal.open`, by one process at a time. What a call acknowledged survives kill -9 and power loss."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock_file = -1
        self._mutex = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._file = -1
        self._size = 0
        self._live = 0  # file size right after the last rewrite

    @classmethod
    def open(cls, path: Path, clock: Clock) -> Self:
        """Raises JournalInUse, JournalDamaged, JournalUnwritable. The folder must exist."""
        journal = cls(path, clock)
        try:
            with journal._writing():
                journal._lock()
                journal._read()
                journal._rewrite()
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Safe to call twice."""
        with self._mutex:
            self._drop_file()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def received(self, id_: str, payload: bytes) -> New | Running | Done:
        """Record a command; the answer says whether to execute it. Raises CommandTooLarge, JournalUnwritable."""
        if not 0 < len(id_.encode()) <= MAX_ID_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
            raise CommandTooLarge(id_)
        with self._mutex:
            entry = self._entries.get(id_)
            if entry is None:
                entry = _Entry(self._clock.now(), payload)
                self._append(_record(_RECEIVED, entry.received_at, id_, payload))
                self._entries[id_] = entry
                return New()
            return Running() if entry.result is None else Done(entry.result)

    def finished(self, id_: str, result: bytes) -> None:
        """Record the result; the first one stays. Raises UnknownCommand, CommandTooLarge, JournalUnwritable."""
        if len(result) > MAX_PAYLOAD_BYTES:
            raise CommandTooLarge(id_)
        with self._mutex:
            entry = self._known(id_)
            if entry.result is None:
                now = self._clock.now()
                self._append(_record(_FINISHED, now, id_, result))
                entry.payload, entry.result, entry.finished_at = None, result, now

    def stored(self, id_: str) -> None:
        """The peer has the result for good; the command is forgotten 24 h later. An unknown id changes nothing."""
        with self._mutex:
            entry = self._entries.get(id_)
            if entry is not None and entry.result is not None and entry.stored_at is None:
                now = self._clock.now()
                self._append(_record(_STORED, now, id_, b""))
                entry.stored_at = now

    def unfinished(self) -> list[Command]:
        """Commands without a result, oldest first: to be executed again after a start, by repeatable handlers only."""
        with self._mutex:
            return [Command(id_, entry.payload) for id_, entry in self._entries.items() if entry.payload is not None]

    def unstored(self) -> list[Command]:
        """Results (as payload) the peer has not said to have, oldest first: to be sent again after a reconnect."""
        with self._mutex:
            return [
                Command(id_, entry.result)
                for id_, entry in self._entries.items()
                if entry.result is not None and entry.stored_at is None
            ]

    def _known(self, id_: str) -> _Entry:
        entry = self._entries.get(id_)
        if entry is None:
            raise UnknownCommand(id_)
        return entry

    def _lock(self) -> None:
        # A file of its own: the journal itself is replaced by rename.
        lock = self._path.with_name(self._path.name + ".lock")
        self._lock_file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalInUse(self._path) from None

    def _read(self) -> None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        for kind, when, id_, payload in _records(data, self._path):
            if kind == _RECEIVED:
                self._entries[id_] = _Entry(when, payload)
                continue
            entry = self._entries.get(id_)
            if entry is None:
                continue
            if kind == _FINISHED:
                entry.payload, entry.result, entry.finished_at = None, payload, when
            else:
                entry.stored_at = when

    def _append(self, record: bytes) -> None:
        with self._writing():
            if self._file < 0 or self._size > _COMPACT_BYTES + 2 * self._live:
                self._rewrite()
            _write(self._file, record)
            os.fsync(self._file)
            self._size += len(record)

    def _rewrite(self) -> None:
        """Replace the file by what is still needed. Also how a file whose write failed is made good again."""
        self._drop_file()
        forget_before = self._clock.now() - KEPT_SECONDS
        for id_, entry in list(self._entries.items()):
            if entry.stored_at is not None and entry.stored_at < forget_before:
                del self._entries[id_]
        fresh = self._path.with_name(self._path.name + ".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            data = b"".join(record for id_, entry in self._entries.items() for record in _records_of(id_, entry))
            _write(file, data)
            os.fsync(file)
            fresh.rename(self._path)
            _fsync_folder(self._path.parent)
        except BaseException:
            os.close(file)
            raise
        self._file, self._size, self._live = file, len(data), len(data)

    def _drop_file(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Abandons the file after an OSError: what a failed fsync left in the page cache cannot be trusted."""
        try:
            yield
        except OSError as error:
            self._drop_file()
            raise JournalUnwritable(self._path, error.strerror or str(error)) from error


def _record(kind: int, when: float, id_: str, payload: bytes) -> bytes:
    name = id_.encode()
    body = _BODY.pack(kind, when, len(name)) + name + payload
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def _records_of(id_: str, entry: _Entry) -> Iterator[bytes]:
    yield _record(_RECEIVED, entry.received_at, id_, entry.payload or b"")
    if entry.result is not None:
        yield _record(_FINISHED, entry.finished_at, id_, entry.result)
    if entry.stored_at is not None:
        yield _record(_STORED, entry.stored_at, id_, b"")


def _records(data: bytes, path: Path) -> Iterator[tuple[int, float, str, bytes]]:
    offset = 0
    while offset < len(data):
        body = _body_at(data, offset)
        if body is None:
            _check_torn(data, offset, path)
            return
        kind, when, name_length = _BODY.unpack_from(body)
        start = _BODY.size + name_length
        yield kind, when, body[_BODY.size : start].decode(), body[start:]
        offset += _HEADER.size + len(body)


def _body_at(data: bytes, offset: int) -> bytes | None:
    """The body of the record at `offset`, None if there is no whole and good one."""
    if len(data) - offset < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data, offset)
    start = offset + _HEADER.size
    if magic != _MAGIC or length < _BODY.size or start + length > len(data):
        return None
    body = data[start : start + length]
    return body if zlib.crc32(body) == checksum else None


def _check_torn(data: bytes, offset: int, path: Path) -> None:
    """A torn write is always the last record. A good record behind a bad one means the disk lost acknowledged data."""
    place = data.find(_MAGIC, offset + 1)
    while place >= 0:
        if _body_at(data, place) is not None:
            raise JournalDamaged(path, offset)
        place = data.find(_MAGIC, place + 1)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
