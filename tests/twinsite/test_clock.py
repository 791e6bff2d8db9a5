"""Time as a port: the clock that tests move wakes sleepers in the order of their deadlines."""

import asyncio

from tests.fakes.clock import SetBackClock
from twinsite.clock import MovedClock, SystemClock


async def test_sleepers_wake_when_their_time_has_come_and_not_before() -> None:
    clock, woken = MovedClock(), []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 20), ("early", 10), ("same", 10)):
            group.create_task(sleeper(name, seconds))
        await asyncio.sleep(0)
        clock.advance(9.9)
        await asyncio.sleep(0)
        assert woken == []
        clock.advance(0.1)
        await asyncio.sleep(0)
        assert woken == ["early", "same"]
        clock.advance(100)
    assert woken == ["early", "same", "late"]


async def test_the_systems_clock_moves_by_itself() -> None:
    clock = SystemClock()
    before, wall = clock.monotonic(), clock.now()
    await clock.sleep(0.01)
    assert clock.monotonic() > before
    assert clock.now() > 1_700_000_000 <= wall


def test_a_clock_that_is_set_back_keeps_its_monotonic_side() -> None:
    clock = SetBackClock(1000)
    clock.set_back(500)
    clock.advance(1)
    assert (clock.now(), clock.monotonic()) == (501, 1001)
