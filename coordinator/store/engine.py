"""One database for everything: SQLite embedded by default, PostgreSQL for several replicas."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from twinsite.errors import Unreachable

# Per connection. FULL: a power cut may not lose a job that was acknowledged.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000")


class DatabaseAway(Unreachable):
    public = "the database {error.place} cannot be used: {error.why}"
    still_works = "nothing was started or changed; hosts go on replicating"
    next_step = "check that it runs and that `database` in the settings names it, then start again"

    def __init__(self, url: sa.URL, error: DBAPIError) -> None:
        self.place = url.render_as_string(hide_password=True)
        self.why = " ".join(str(error.orig).split())[:300]


class Database:
    """Transactions over one engine. A write takes SQLite's lock first: no lost update."""

    def __init__(self, url: str) -> None:
        """`url` is sqlite+aiosqlite:///… or postgresql+psycopg://…."""
        self.url = url
        self.engine = _engine(url)
        self._reads = self.engine.execution_options(read_only=True)

    @property
    def embedded(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: commits at the end of the block, rolls back on any exception. No network calls in it."""
        async with self.engine.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """One consistent view; must not write."""
        async with self._reads.begin() as connection:
            yield connection

    async def reach(self) -> None:
        """Is it there? Raises DatabaseAway."""
        try:
            async with self.read() as connection:
                await connection.execute(sa.text("SELECT 1"))
        except DBAPIError as error:
            raise DatabaseAway(self.engine.url, error) from None

    async def close(self) -> None:
        await self.engine.dispose()


def _engine(url: str) -> AsyncEngine:
    if not url.startswith("sqlite"):
        return create_async_engine(url, pool_pre_ping=True)
    engine = create_async_engine(url)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        cursor: sqlite3.Cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def begun(connection: sa.Connection) -> None:
        read_only = connection.get_execution_options().get("read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
