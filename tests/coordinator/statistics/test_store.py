"""Counting minutes: once each, exact at every resolution, on both databases, and forgotten when they are old."""

import asyncio
import uuid

import pytest

from coordinator.statistics import store
from coordinator.statistics.model import DAY, KEPT, Measured, total
from coordinator.store.engine import Database

NOW = 1_800_000_000 - 1_800_000_000 % 3600 + 1800.0
VM, OTHER = str(uuid.uuid4()), str(uuid.uuid4())
DISK = str(uuid.uuid4())


def minute(number: int) -> Measured:
    return Measured(
        cycles=number % 7,
        missed=number % 3,
        failures=number % 2,
        changed_bytes=number * 1000 + 1,
        content_bytes=number * 10,
        wire_bytes=number,
        rpo_max_seconds=float(number % 50),
        seconds_max=float(number % 40),
        seconds_sum=0.5,
        network=0.25,
        disks={DISK: number, str(uuid.UUID(int=number % 2)): 1},
    )


def minutes(first: float, count: int, vm_id: str = VM) -> dict[tuple[str, int], Measured]:
    """Consecutive ones, each with other numbers."""
    start = int(first) - int(first) % 60
    return {(vm_id, start + 60 * number): minute(number) for number in range(count)}


async def put(database: Database, found: dict[tuple[str, int], Measured], *, now: float = NOW) -> int:
    async with database.write() as connection:
        return await store.count(connection, found, now=now)


async def rows(database: Database, resolution: int, vm_id: str = VM) -> list[store.Row]:
    async with database.read() as connection:
        return await store.rows_of(connection, vm_id, resolution, 0)


async def test_every_resolution_has_the_exact_sums_and_the_maxima(database: Database) -> None:
    found = minutes(NOW - 7200, 120)
    assert await put(database, found) == 120
    expected = sum(found.values(), Measured())
    assert expected.changed_bytes == sum(number * 1000 + 1 for number in range(120))
    for resolution in KEPT:
        stored = await rows(database, resolution)
        assert total(stored) == expected
        assert all(row.start % resolution == 0 for row in stored)
        for row in stored:
            inside = [one for (_, start), one in found.items() if row.start <= start < row.start + resolution]
            assert row.measured == sum(inside, Measured())
    assert [len(await rows(database, resolution)) for resolution in KEPT] == [120, 8, 3]


async def test_a_minute_that_comes_again_is_not_counted_again_in_whatever_company(database: Database) -> None:
    found = minutes(NOW - 7200, 120)
    keys = list(found)
    assert await put(database, {key: found[key] for key in keys[:50]}) == 50
    assert await put(database, {key: found[key] for key in keys[30:90]}) == 40
    assert await put(database, found) == 30
    assert await put(database, {key: minute(99) for key in keys}) == 0
    for resolution in KEPT:
        assert total(await rows(database, resolution)) == sum(found.values(), Measured())


async def test_a_repeat_is_recognized_when_its_minute_row_is_gone_already(database: Database) -> None:
    """A host whose link was cut between our storing and our answer may be back days later."""
    found = minutes(NOW - 5 * DAY, 30)
    assert await put(database, found, now=NOW - 5 * DAY + 1800) == 30
    while await _expire(database, NOW):
        pass
    assert await rows(database, 60) == []
    assert await put(database, found) == 0
    for resolution in (900, 3600):
        assert total(await rows(database, resolution)) == sum(found.values(), Measured())


async def test_what_comes_late_is_counted_where_it_is_still_kept(database: Database) -> None:
    await put(database, minutes(NOW - 5 * DAY, 30))
    await put(database, minutes(NOW - 20 * DAY, 30))
    assert await rows(database, 60) == []
    assert total(await rows(database, 900)) == sum(minutes(0, 30).values(), Measured())
    assert total(await rows(database, 3600)).cycles == 2 * sum(minutes(0, 30).values(), Measured()).cycles


async def test_a_transaction_that_breaks_leaves_nothing_half_counted(database: Database) -> None:
    found = minutes(NOW - 600, 10)

    with pytest.raises(ConnectionResetError):
        await _count_and_break(database, found)
    for resolution in KEPT:
        assert await rows(database, resolution) == []
    assert await put(database, found) == 10


async def _count_and_break(database: Database, found: dict[tuple[str, int], Measured]) -> None:
    async with database.write() as connection:
        await store.count(connection, found, now=NOW)
        raise ConnectionResetError


async def test_two_writers_of_the_same_hour_lose_nothing(database: Database, database_url: str) -> None:
    other = Database(database_url)
    found = list(minutes(NOW - 1800, 30).items())
    async with asyncio.TaskGroup() as group:
        for at, to in ((database, found[::2]), (other, found[1::2]), (database, found[:10]), (other, found[5:20])):
            group.create_task(put(at, dict(to)))
    await other.close()
    for resolution in KEPT:
        assert total(await rows(database, resolution)) == sum(dict(found).values(), Measured())


async def _expire(database: Database, now: float) -> int:
    async with database.write() as connection:
        return await store.expire(connection, now=now)


async def test_old_rows_go_a_few_at_a_time_and_young_ones_stay(database: Database) -> None:
    for day in range(2):
        for hour in range(24):
            await put(database, minutes(NOW - day * DAY - hour * 3600, 60), now=NOW)
    later = NOW + 1.5 * DAY
    before = len(await rows(database, 60))
    steps = []
    while deleted := await _expire(database, later):
        steps.append(deleted)
    assert max(steps) <= 2000
    assert len(await rows(database, 60)) == before - sum(steps)
    assert all(row.start >= later - KEPT[60] for row in await rows(database, 60))
    assert total(await rows(database, 900)).cycles == total(await rows(database, 3600)).cycles
    for resolution, kept in KEPT.items():
        while await _expire(database, NOW + kept + 3601):
            pass
        assert await rows(database, resolution) == []


async def test_several_vms_together_are_summed_minute_by_minute(database: Database) -> None:
    await put(database, minutes(NOW - 600, 10))
    await put(database, minutes(NOW - 600, 5, OTHER))
    async with database.read() as connection:
        found = await store.rows_of_all(connection, [VM, OTHER], 60, 0)
        assert len(found) == 10
        assert [row.measured.changed_bytes for row in found[:2]] == [2, 2002]
        assert total(found).rpo_max_seconds == 9
        assert await store.rows_of_all(connection, [], 60, 0) == []


async def test_the_share_of_missed_cycles_is_of_what_was_due_since_then(database: Database) -> None:
    good, bad = Measured(cycles=9), Measured(cycles=6, missed=4)
    await put(database, {(VM, int(NOW) - 7200): bad, (VM, int(NOW) - 60): good, (OTHER, int(NOW) - 60): Measured()})
    async with database.read() as connection:
        assert await store.missed_shares(connection, NOW - 3600) == {VM: 0}
        assert await store.missed_shares(connection, NOW - 3 * 3600) == {VM: pytest.approx(4 / 19)}
        assert await store.missed_shares(connection, NOW + 7200) == {}
