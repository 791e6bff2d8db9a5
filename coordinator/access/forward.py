"""A clock that a set-back of the machine's clock does not turn back: expired keys and tokens stay expired."""

import contextlib
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store import schema
from coordinator.store.engine import Database
from twinsite.clock import Clock

log = structlog.get_logger()
_ALARM: Final = 60.0  # seconds back that are no mere adjustment
_ROW: Final = "coordinator"

marks = schema.table(
    "high_water",
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
)


class ForwardClock:
    """Decides about keys, tokens and sessions. Behind the mark it goes on at the pace of the monotonic clock.

    Certificates are judged by the machine's clock: they are checked by TLS too, which knows no other.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mark, self._since = clock.now(), clock.monotonic()

    async def load(self, database: Database) -> None:
        """Once, at the start."""
        async with database.read() as connection:
            stored = await connection.scalar(sa.select(marks.c.at).where(marks.c.name == _ROW))
        if stored is not None and stored > self.now():
            if stored > self._clock.now() + _ALARM:
                log.error("the clock was set back", seconds=round(stored - self._clock.now()))
            self._mark, self._since = stored, self._clock.monotonic()

    def now(self) -> float:
        """Seconds since 1970 that never decrease, across restarts too (as far as the last `keep`)."""
        passed = self._mark + (self._clock.monotonic() - self._since)
        now = self._clock.now()
        if now >= passed:
            self._mark, self._since = now, self._clock.monotonic()
            return now
        return passed

    async def keep(self, connection: AsyncConnection) -> float:
        """Persist the mark in a transaction that decides by it; now()."""
        now = self.now()
        changed = await connection.execute(
            sa.update(marks).where(marks.c.name == _ROW, marks.c.at < now).values(at=now)
        )
        if not changed.rowcount and await connection.scalar(sa.select(marks.c.at).where(marks.c.name == _ROW)) is None:
            with contextlib.suppress(IntegrityError):  # another replica decided at the same moment, the first ever
                async with connection.begin_nested():
                    await connection.execute(sa.insert(marks).values(name=_ROW, at=now))
        return now
