"""Many VMs of one host at a time: each keeps its own recovery point objective."""

import asyncio
import os
from pathlib import Path

import pytest

from hyperv_host_agent.settings import TransferSettings
from tests.fakes.agent_pair import FIRST, Pair, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import SystemClock
from twinsite.extents import CLUSTER
from twinsite.units import MiB

SIZE = 8 * MiB


def instants(two: Pair, vm_id: str) -> list[float]:
    return [point.instant.ToNanoseconds() / 1e9 for point in two.at_target.points.get(vm_id, [])]


@pytest.mark.timeout(180)
async def test_ten_vms_with_five_seconds_each_stay_within_ten(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machines = [spec(f"web{number}", size=SIZE) for number in range(10)]
        guests = {machine.id: two.add(machine, contents(SIZE)) for machine in machines}
        await two.protect(*machines, frequency=5)
        for machine in machines:
            await eventually("a first point", lambda vm_id=machine.id: instants(two, vm_id), seconds=60)
        clock = SystemClock()
        oldest = 0.0
        until = clock.monotonic() + 20
        place = 0
        while clock.monotonic() < until:
            for guest in guests.values():
                guest.write(FIRST, place % 100 * CLUSTER, os.urandom(CLUSTER // 2))
            place += 1
            await asyncio.sleep(0.1)
            oldest = max(oldest, *(clock.now() - instants(two, machine.id)[-1] for machine in machines))
        assert oldest < 10
        for machine in machines:
            await two.settled(machine.id)
            assert (await newest(two.target, machine.id))[1][FIRST] == guests[machine.id].content(FIRST)
            assert two.at_source.statuses[machine.id].state == types_pb2.REPLICATION_STATE_REPLICATING


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_vms_that_take_turns_all_get_theirs(tmp_path: Path, concurrency: int) -> None:
    settings = TransferSettings(concurrency=concurrency, copies=1)
    async with pair(tmp_path, transfer=settings) as two:
        machines = [spec(f"db{number}", size=SIZE) for number in range(6)]
        guests = {machine.id: two.add(machine, contents(SIZE)) for machine in machines}
        await two.protect(*machines)
        for round_ in range(3):
            for guest in guests.values():
                guest.write(FIRST, round_ * CLUSTER, b"turn %d" % round_)
            for machine in machines:
                await two.settled(machine.id)
        for machine in machines:
            assert (await newest(two.target, machine.id))[1][FIRST] == guests[machine.id].content(FIRST)


async def test_a_vm_whose_target_is_away_keeps_no_turn_from_the_others(tmp_path: Path) -> None:
    settings = TransferSettings(concurrency=1, copies=1)
    async with pair(tmp_path, transfer=settings) as two:
        lost, well = spec("lost", size=SIZE), spec("well", size=SIZE)
        guest = two.add(well, contents(SIZE))
        two.add(lost, contents(SIZE))
        await two.protect(lost, well)
        await two.settled(lost.id)
        held = two.at_source.assigned.assignments
        held[0].peer_address = "127.0.0.1:1"  # nobody answers there
        two.provider.assign(two.source.host_id, *held)
        blocked = types_pb2.REPLICATION_STATE_BLOCKED
        await eventually("it to block", lambda: two.at_source.statuses[lost.id].state == blocked)
        for round_ in range(3):
            guest.write(FIRST, 0, b"round %d" % round_)
            await two.settled(well.id)
