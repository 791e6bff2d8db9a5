"""The only SQL of statistics. Functions take the caller's connection.

A minute is counted at once in its row, its quarter of an hour and its hour. The hour knows which of its minutes it has
counted, for as long as it is kept: what a host sends twice, however late, changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.statistics.model import HOUR, KEPT, MAXIMA, MINUTE, NUMBERS, Measured, Row
from coordinator.store.schema import table

_INTEGERS: Final = ("cycles", "missed", "failures", "changed_bytes", "content_bytes", "wire_bytes")

statistics = table(
    "statistic",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("resolution", sa.Integer, primary_key=True),  # seconds
    sa.Column("start", sa.BigInteger, primary_key=True),  # seconds since 1970
    *(sa.Column(name, sa.BigInteger if name in _INTEGERS else sa.Double, nullable=False) for name in NUMBERS),
    sa.Column("disks", sa.JSON, nullable=False),  # {disk id: changed bytes}
    sa.Column("minutes", sa.BigInteger, nullable=False),  # of an hour: bit n is set when its minute n was counted
    sa.Index("ix_ts_statistic_resolution_start", "resolution", "start"),
)

_LOCK: Final = 7005  # pg advisory lock of counting
_CHUNK: Final = 2000  # rows deleted in one transaction

Minute = tuple[str, int]  # VM id, start


async def count(connection: AsyncConnection, minutes: Mapping[Minute, Measured], *, now: float) -> int:
    """Count minutes that were not counted before, at every resolution that is still kept for them; how many."""
    if not minutes:
        return 0
    if connection.dialect.name == "postgresql":  # SQLite gives that to every write transaction
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    hours = await _rows(connection, HOUR, {(vm_id, _begin(start, HOUR)) for vm_id, start in minutes})
    seen = {key: bits for key, (_, bits) in hours.items()}
    fresh: dict[Minute, Measured] = {}
    for (vm_id, start), measured in minutes.items():
        hour = vm_id, _begin(start, HOUR)
        bit = 1 << (start - hour[1]) // MINUTE
        if not seen.get(hour, 0) & bit:
            seen[hour] = seen.get(hour, 0) | bit
            fresh[vm_id, start] = measured
    for resolution, kept in KEPT.items():
        added: dict[Minute, Measured] = {}
        for (vm_id, start), measured in fresh.items():
            key = vm_id, _begin(start, resolution)
            if key[1] >= now - kept:
                added[key] = added.get(key, Measured()) + measured
        known = hours if resolution == HOUR else await _rows(connection, resolution, added)
        await _write(connection, resolution, added, known, seen if resolution == HOUR else {})
    return len(fresh)


def _begin(start: int, resolution: int) -> int:
    return start - start % resolution


async def _rows(
    connection: AsyncConnection, resolution: int, keys: Iterable[Minute]
) -> dict[Minute, tuple[Measured, int]]:
    """What is stored under these keys, and maybe more of the same VMs and times."""
    wanted = list(keys)
    query = sa.select(statistics).where(
        statistics.c.resolution == resolution,
        statistics.c.vm_id.in_({vm_id for vm_id, _ in wanted}),
        statistics.c.start.in_({start for _, start in wanted}),
    )
    rows = (await connection.execute(query)).mappings()
    return {(row["vm_id"], row["start"]): (_measured(row), row["minutes"]) for row in rows}


def _measured(row: Mapping[Any, Any]) -> Measured:
    return Measured(**{name: row[name] for name in NUMBERS}, disks=row["disks"])


async def _write(
    connection: AsyncConnection,
    resolution: int,
    added: Mapping[Minute, Measured],
    known: Mapping[Minute, tuple[Measured, int]],
    bits: Mapping[Minute, int],
) -> None:
    new, changed = [], []
    for key, more in added.items():
        before = known.get(key)
        after = before[0] + more if before is not None else more
        values = {name: getattr(after, name) for name in NUMBERS}
        values |= {"disks": dict(after.disks), "minutes": bits.get(key, 0)}
        if before is None:
            new.append({"vm_id": key[0], "resolution": resolution, "start": key[1], **values})
        else:
            changed.append({"which_vm": key[0], "which_start": key[1], **values})
    if new:
        await connection.execute(sa.insert(statistics), new)
    if changed:
        which = (
            statistics.c.resolution == resolution,
            statistics.c.vm_id == sa.bindparam("which_vm"),
            statistics.c.start == sa.bindparam("which_start"),
        )
        await connection.execute(sa.update(statistics).where(*which), changed)


async def expire(connection: AsyncConnection, *, now: float) -> int:
    """Delete some of what is older than it is kept; how many rows. 0: there is nothing left to delete."""
    for resolution, kept in KEPT.items():
        old = (
            sa.select(statistics.c.vm_id, statistics.c.resolution, statistics.c.start)
            .where(statistics.c.resolution == resolution, statistics.c.start < now - kept)
            .limit(_CHUNK)
        )
        key = sa.tuple_(statistics.c.vm_id, statistics.c.resolution, statistics.c.start)
        done = await connection.execute(sa.delete(statistics).where(key.in_(old)))
        if done.rowcount:
            return done.rowcount
    return 0


async def rows_of(connection: AsyncConnection, vm_id: str, resolution: int, since: float) -> list[Row]:
    """Of one VM, oldest first: the rows that end after `since` (seconds since 1970)."""
    query = (
        sa.select(statistics)
        .where(statistics.c.vm_id == vm_id, *_after(resolution, since))
        .order_by(statistics.c.start)
    )
    rows = (await connection.execute(query)).mappings()
    return [Row(row["start"], resolution, _measured(row)) for row in rows]


async def rows_of_all(connection: AsyncConnection, vm_ids: Sequence[str], resolution: int, since: float) -> list[Row]:
    """Of several VMs together, oldest first; without their disks."""
    query = (
        sa.select(statistics.c.start, *_aggregates())
        .where(statistics.c.vm_id.in_(list(vm_ids)), *_after(resolution, since))
        .group_by(statistics.c.start)
        .order_by(statistics.c.start)
    )
    rows = (await connection.execute(query)).mappings()
    return [Row(row["start"], resolution, _aggregate(row)) for row in rows]


def _after(resolution: int, since: float) -> tuple[sa.ColumnElement[bool], ...]:
    return statistics.c.resolution == resolution, statistics.c.start > since - resolution


def _aggregates() -> list[sa.Label[Any]]:
    return [(sa.func.max if name in MAXIMA else sa.func.sum)(statistics.c[name]).label(name) for name in NUMBERS]


def _aggregate(row: Mapping[Any, Any]) -> Measured:
    # PostgreSQL's sum of integers is a decimal.
    values: dict[str, Any] = {name: (int if name in _INTEGERS else float)(row[name]) for name in NUMBERS}
    return Measured(**values)


# ---- for health -------------------------------------------------------------------------------------------------


async def missed_shares(connection: AsyncConnection, since: float) -> dict[str, float]:
    """By VM, of the cycles that were due from `since` (seconds since 1970, to an hour) on; without VMs that had none.

    Asked with every look at the VMs, so it reads hours.
    """
    cycles, missed = sa.func.sum(statistics.c.cycles), sa.func.sum(statistics.c.missed)
    query = (
        sa.select(statistics.c.vm_id, missed, cycles)
        .where(*_after(HOUR, since))
        .group_by(statistics.c.vm_id)
        .having(missed + cycles > 0)
    )
    return {vm_id: int(gone) / int(gone + done) for vm_id, gone, done in await connection.execute(query)}
