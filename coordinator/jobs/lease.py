"""Exactly one live executor on a database (guard rail 2): a file lock on SQLite, an advisory lock on PostgreSQL."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa
import structlog

from coordinator.store.engine import Database
from twinsite.clock import Clock
from twinsite.errors import Precondition, Unreachable

log = structlog.get_logger()
_KEY: Final = 7001  # of this database; 7002 is the audit chain's
_CHECK_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 4.0  # lets a leader that lost its connection notice it: it looks every second
# The server notices a dead host in about 25 s instead of two hours.
_KEEPALIVE: Final = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


class DatabaseInUse(Precondition):
    public = "another coordinator runs on {error.path}"
    cause = "process {error.pid} holds its lock; a SQLite file serves one process"
    still_works = "the running coordinator is not affected"
    next_step = "stop it first, or give this one its own state folder; several replicas need PostgreSQL"

    def __init__(self, path: str, pid: str) -> None:
        self.path, self.pid = path, pid


class LeaseLost(Unreachable):
    public = "the connection that made this coordinator the only executor was lost"
    still_works = "jobs go on in whichever coordinator holds the lock next"
    next_step = "nothing: the supervisor starts this one again, and it waits for its turn"


class Lease:
    """Held for the life of a serving coordinator."""

    def __init__(self, clock: Clock, connection: psycopg.AsyncConnection | None = None) -> None:
        self._clock, self._connection = clock, connection

    async def watch(self) -> None:
        """Never returns; raises LeaseLost within seconds of the lock being gone. Then stop at once."""
        while True:
            await self._clock.sleep(_CHECK_SECONDS)
            if self._connection is None:  # a file lock goes with the process only
                continue
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._connection.execute("select 1")
            except (psycopg.Error, TimeoutError) as error:
                raise LeaseLost from error


@contextlib.asynccontextmanager
async def held(database: Database, clock: Clock) -> AsyncIterator[Lease]:
    """The block runs as the one executor. On SQLite raises DatabaseInUse; on PostgreSQL waits as a standby."""
    if database.embedded:
        with _file_lock(Path(str(sa.make_url(database.url).database))):
            yield Lease(clock)
        return
    connection = await _lead(database, clock)
    try:
        yield Lease(clock, connection)
    finally:
        await connection.close()


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseInUse(str(path), os.pread(descriptor, 20, 0).decode().strip() or "unknown") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


async def _lead(database: Database, clock: Clock) -> psycopg.AsyncConnection:
    url = sa.make_url(database.url).set(drivername="postgresql").render_as_string(hide_password=False)
    standby = False
    while True:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, options=_KEEPALIVE)
        try:
            row = await (await connection.execute("select pg_try_advisory_lock(%s)", (_KEY,))).fetchone()
        except BaseException:
            await connection.close()
            raise
        if row is not None and row[0]:
            break
        await connection.close()
        if not standby:
            log.info("another coordinator leads; standing by")
        standby = True
        await clock.sleep(_CHECK_SECONDS)
    if standby:
        await clock.sleep(_GRACE_SECONDS)
    return connection
