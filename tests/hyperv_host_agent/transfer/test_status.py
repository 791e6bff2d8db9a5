"""What a person is told of a replication: why a cycle is slow, and never that something has to be done by hand."""

import asyncio
import os
from pathlib import Path

from tests.fakes.agent_pair import FIRST, Pair, contents, pair, spec
from tests.fakes.clock import SteppedClock
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from twinsite.api.types.v1 import types_pb2
from twinsite.extents import CLUSTER
from twinsite.units import MiB


async def shown(two: Pair, vm_id: str, seen: list[types_pb2.ReplicationStatus]) -> None:
    """Everything the source says of a VM, as it says it."""
    while True:
        present = types_pb2.ReplicationStatus()
        present.CopyFrom(two.source.outbox.status_of(vm_id) or present)
        if not seen or seen[-1] != present:
            seen.append(present)
        await asyncio.sleep(0.005)


async def test_lost_tracking_is_a_slower_cycle_with_its_reason_and_nothing_else(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        replicating = types_pb2.REPLICATION_STATE_REPLICATING
        await eventually("the source to know", lambda: two.at_source.statuses[machine.id].state == replicating)
        seen: list[types_pb2.ReplicationStatus] = []
        watching = asyncio.ensure_future(shown(two, machine.id, seen))
        guest.write(FIRST, 0, b"changed")
        guest.lose_tracking()
        await two.settled(machine.id)
        await two.settled(machine.id)
        watching.cancel()
        states = {types_pb2.ReplicationState.Name(one.state).removeprefix("REPLICATION_STATE_") for one in seen}
        assert states <= {"REPLICATING", "RESYNCHRONIZING"}
        notes = {one.note for one in seen}
        assert any("changes were not known" in note and "compared" in note for note in notes), notes
        assert not any("required" in note or one.reason.message for one in seen for note in notes)
        assert seen[-1].note == ""


async def test_where_the_seconds_of_a_cycle_went_is_told(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec(size=16 * MiB)
        guest = two.add(machine, {FIRST: os.urandom(MiB)})
        rates = [types_pb2.RateRule(bytes_per_second=2_000_000)]
        await two.protect(machine, vm_rates=rates)
        await two.settled(machine.id)
        seen: list[types_pb2.ReplicationStatus] = []
        watching = asyncio.ensure_future(shown(two, machine.id, seen))
        guest.write(FIRST, 0, os.urandom(4 * MiB))
        await two.settled(machine.id)
        await two.settled(machine.id)
        watching.cancel()
        status = next(one for one in seen if one.late == "cap")
        causes = status.last_causes
        assert 1.0 < causes.cap < 4.0
        assert causes.cap > causes.source + causes.compress + causes.network + causes.target + causes.turn
        assert status.last_cycle_seconds > 1.0


async def test_a_clock_that_is_set_back_stops_nothing_and_no_point_is_older_than_the_one_before(tmp_path: Path) -> None:
    clock = SteppedClock()
    async with pair(tmp_path, clock=clock) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        clock.shift = -3600.0
        for round_ in range(3):
            cycle = two.at_target.points[machine.id][-1].cycle
            guest.write(FIRST, round_ * CLUSTER, b"after the step back")
            await two.replicated(machine.id, beyond=cycle + 1)
            if not round_:
                await eventually("the reason", lambda: "clock" in two.at_source.statuses[machine.id].note)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)
        instants = [point.instant.ToNanoseconds() for point in two.at_target.points[machine.id]]
        assert instants == sorted(set(instants))
        clock.shift = 7200.0
        await two.settled(machine.id)
        await eventually("the note to go", lambda: not two.at_source.statuses[machine.id].note)
