"""The clock that decides about keys never runs back, not even over a restart."""

from coordinator.access.forward import ForwardClock, marks
from coordinator.store.engine import Database
from tests.fakes.clock import SetBackClock
from twinsite.clock import MovedClock


async def _table(database: Database) -> None:
    async with database.write() as connection:
        await connection.run_sync(lambda sync: marks.create(sync, checkfirst=True))


async def test_a_clock_set_back_goes_on_from_where_it_was(database: Database) -> None:
    await _table(database)
    before = ForwardClock(MovedClock(2_000_000))
    async with database.write() as connection:
        assert await before.keep(connection) == 2_000_000
    set_back = MovedClock(1_000_000)
    after = ForwardClock(set_back)
    await after.load(database)
    assert after.now() == 2_000_000
    set_back.advance(50)
    assert after.now() == 2_000_050


def test_a_clock_set_back_while_running_is_noticed_too() -> None:
    clock = SetBackClock(2_000_000)
    forward = ForwardClock(clock)
    clock.advance(10)
    assert forward.now() == 2_000_010
    clock.set_back(500_000)
    clock.advance(5)
    assert forward.now() == 2_000_015


async def test_keeping_the_mark_never_lowers_it(database: Database) -> None:
    await _table(database)
    for instant in (5_000.0, 3_000.0):
        async with database.write() as connection:
            await ForwardClock(MovedClock(instant)).keep(connection)
    third = ForwardClock(MovedClock(1_000))
    await third.load(database)
    assert third.now() == 5_000
