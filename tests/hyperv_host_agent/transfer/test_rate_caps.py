"""Caps on what a source sends: held exactly, shared fairly, followed at once."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from hyperv_host_agent.pacing import Pacer, Pacing
from hyperv_host_agent.replication.rates import Rule
from hyperv_host_agent.settings import RateSettings, TransferSettings
from tests.fakes.agent_pair import FIRST, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.wire_tap import WireTap, wire_tap
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock, SystemClock
from twinsite.units import MiB

MB = 1_000_000
MESSAGE = 1 * MiB


def always(rate: int) -> list[types_pb2.RateRule]:
    return [types_pb2.RateRule(bytes_per_second=rate)]


def policy(**rules: Any) -> types_pb2.Policy:
    return types_pb2.Policy(**{name: always(rate) for name, rate in rules.items()})


def a_pacer(pacing: Pacing, peer: str = "b1", **rules: Any) -> Pacer:
    pacer = pacing.pacer()
    pacer.change(policy(**rules), peer)
    return pacer


async def sent(seconds: float, *pacers: Pacer, message: int = MESSAGE) -> list[int]:
    """Bytes each of these gets through at the same time, busily."""
    counts = [0] * len(pacers)

    async def send(place: int, pacer: Pacer) -> None:
        while True:
            await pacer.through(message)
            counts[place] += message

    tasks = [asyncio.ensure_future(send(place, pacer)) for place, pacer in enumerate(pacers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return counts


@pytest.mark.parametrize("rate", [20 * MB, 200 * MB])
async def test_a_cap_is_held_in_real_time(rate: int) -> None:
    pacer = a_pacer(Pacing([], SystemClock()), vm_rates=rate)
    (count,) = await sent(3.0, pacer)
    assert 0.9 * 3 * rate <= count <= 1.1 * 3 * rate
    assert pacer.seconds > 2


async def test_vms_share_their_link_and_their_host_and_each_keeps_its_own_cap() -> None:
    pacing = Pacing([Rule(0, 0, 0, 60 * MB)], SystemClock())
    slow = a_pacer(pacing, vm_rates=5 * MB, link_rates=30 * MB)
    fast = a_pacer(pacing, link_rates=30 * MB)
    elsewhere = a_pacer(pacing, "c1")
    assert (slow.rate, fast.rate, elsewhere.rate) == (5 * MB, 30 * MB, 60 * MB)
    counts = await sent(3.0, slow, fast, elsewhere, message=MESSAGE // 4)
    assert [count / 3 / MB for count in counts] == pytest.approx([5, 25, 30], rel=0.12)


async def test_of_vms_that_want_the_same_none_starves() -> None:
    pacing = Pacing([Rule(0, 0, 0, 30 * MB)], SystemClock())
    counts = await sent(2.0, *[a_pacer(pacing) for _ in range(6)], message=MESSAGE // 8)
    assert min(counts) > 0.8 * max(counts)


async def test_a_change_of_policy_counts_at_once_even_for_a_message_that_waits() -> None:
    pacing = Pacing([], SystemClock())
    pacer = a_pacer(pacing, vm_rates=2048)
    await pacer.through(MESSAGE)
    waiting = asyncio.ensure_future(pacer.through(MESSAGE))  # 512 s by the old cap
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pacer.change(policy(), "b1")
    await asyncio.wait_for(waiting, 2)
    assert pacer.rate == 0
    assert not pacing.capped


async def test_without_a_cap_nothing_is_waited_for_and_nothing_counted() -> None:
    clock = MovedClock()
    pacer = a_pacer(Pacing([], clock))
    started = time.perf_counter()
    for _ in range(100_000):
        await pacer.through(MESSAGE)
    assert time.perf_counter() - started < 0.5  # microseconds beside the milliseconds a message takes
    assert pacer.seconds == 0


async def test_the_calendar_is_followed_by_local_time() -> None:
    clock = MovedClock(time.mktime((2027, 3, 5, 17, 59, 30, 0, 0, -1)))  # a Friday
    office = types_pb2.RateRule(days=0b0011111, from_minute=480, to_minute=1080, bytes_per_second=MB)
    night = types_pb2.RateRule(days=1 << 4, from_minute=1320, to_minute=360, bytes_per_second=5 * MB)
    pacer = Pacing([], clock).pacer()
    pacer.change(types_pb2.Policy(vm_rates=[office, night]), "b1")
    assert pacer.rate == MB
    clock.advance(60)
    assert pacer.rate == 0
    clock.advance(5 * 3600)
    assert pacer.rate == 5 * MB
    clock.advance(6 * 3600)
    assert pacer.rate == 5 * MB  # Saturday 05:00: Friday's night goes on
    clock.advance(2 * 3600)
    assert pacer.rate == 0


async def over(tap: WireTap, seconds: float) -> float:
    """Bytes a second on the wire."""
    before, started = tap.sent, time.monotonic()
    await asyncio.sleep(seconds)
    return (tap.sent - before) / (time.monotonic() - started)


async def test_what_really_goes_over_the_wire_keeps_to_the_caps(tmp_path: Path) -> None:
    settings = TransferSettings(rates=(RateSettings(rate="8 MB/s"),))
    async with pair(tmp_path, transfer=settings) as two, wire_tap(two.target.address) as tap:
        machine = spec(size=64 * MiB)
        two.add(machine, {FIRST: os.urandom(64 * MiB)})
        await two.protect(machine, address=tap.address, vm_rates=always(1 * MB))
        await eventually("the copy to begin", lambda: tap.sent > MB)
        assert await over(tap, 10.0) == pytest.approx(1 * MB, rel=0.1)
        assert two.at_source.statuses[machine.id].rate_bytes_per_second == 1 * MB
        held = two.at_source.assigned.assignments[0]
        held.policy.ClearField("vm_rates")
        two.provider.assign(two.source.host_id, held)
        await eventually("the new cap", lambda: two.at_source.statuses[machine.id].rate_bytes_per_second == 8 * MB)
        assert await over(tap, 3.0) == pytest.approx(8 * MB, rel=0.15)
