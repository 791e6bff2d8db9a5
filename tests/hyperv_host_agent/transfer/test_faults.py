"""What goes wrong on the way, and what is left of it: whole agents over a relay that cuts."""

import os
from pathlib import Path

from hyperv_host_agent.replication.sender import WINDOW_BYTES
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.files import disk_space
from tests.fakes.agent_pair import FIRST, SECOND, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.wire_tap import wire_tap
from twinsite.api.types.v1 import types_pb2
from twinsite.extents import CLUSTER
from twinsite.units import MiB

BLOCKED = types_pb2.REPLICATION_STATE_BLOCKED
REPLICATING = types_pb2.REPLICATION_STATE_REPLICATING


async def test_a_copy_cut_in_the_middle_sends_at_most_a_window_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        size = 192 * MiB
        machine = spec(size=size)
        noise = os.urandom(size)
        guest = two.add(machine, {FIRST: noise})
        cuts = [size // 3, 2 * size // 3]

        def cut_in_time() -> None:
            if cuts and tap.sent > cuts[0]:
                cuts.pop(0)
                tap.cut()

        tap.on_bytes = cut_in_time
        await two.protect(machine, address=tap.address, compression=False)
        await two.replicated(machine.id)
        assert not cuts
        assert tap.sent < size + 2 * (WINDOW_BYTES + 4 * MiB)
        _, found = await newest(two.target, machine.id)
        assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}


async def test_a_copy_goes_on_after_a_restart_of_either_agent(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        size = 192 * MiB
        machine = spec(size=size)
        guest = two.add(machine, {FIRST: os.urandom(size)})
        tap.on_bytes = lambda: setattr(tap, "open", tap.sent < size // 2) or (None if tap.open else tap.cut())
        await two.protect(machine, address=tap.address, compression=False)
        await eventually("half of the copy", lambda: not tap.open)
        await two.restart_source()
        await two.restart_target()
        guest.write(FIRST, 5, b"meanwhile")
        tap.on_bytes = lambda: None
        tap.open = True
        await two.replicated(machine.id)
        assert tap.sent < size + 2 * (WINDOW_BYTES + 4 * MiB)
        _, found = await newest(two.target, machine.id)
        assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}


async def test_changes_made_while_the_target_is_away_arrive_when_it_is_back(tmp_path: Path) -> None:
    async with pair(tmp_path, spool_memory=1 * MiB) as two, wire_tap(two.target.address) as tap:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        tap.open = False
        tap.cut()
        guest.write(FIRST, 0, os.urandom(6 * MiB))  # more than the spool holds in memory
        await eventually("the source to say so", lambda: two.at_source.statuses[machine.id].state == BLOCKED)
        assert two.at_source.statuses[machine.id].reason.message
        guest.write(FIRST, 0, b"and again")
        tap.open = True
        await two.settled(machine.id)
        _, found = await newest(two.target, machine.id)
        assert found[FIRST] == guest.content(FIRST)
        assert not list((tmp_path / "a1" / "state" / "spool").iterdir())


async def test_unchanged_clusters_that_were_written_are_not_sent(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        before = tap.sent
        guest.write(FIRST, 0, guest.content(FIRST)[: 2 * MiB])
        guest.write(FIRST, 64 * CLUSTER, b"!")
        await two.settled(machine.id)
        assert tap.sent - before < 4 * CLUSTER
        _, found = await newest(two.target, machine.id)
        assert found[FIRST] == guest.content(FIRST)


async def test_lost_tracking_costs_a_read_and_no_second_copy(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        await two.restart_source()
        before = tap.sent
        guest.write(FIRST, 10 * CLUSTER, b"untracked")
        guest.lose_tracking()
        await two.settled(machine.id)
        assert tap.sent - before < 8 * CLUSTER
        _, found = await newest(two.target, machine.id)
        assert found[FIRST] == guest.content(FIRST)


async def test_a_full_store_blocks_one_vm_with_the_reason_and_it_resumes_by_itself(tmp_path: Path) -> None:
    full: set[str] = set()

    def space(path: Path) -> tuple[int, int]:
        free, total = disk_space(path)
        return (0 if any(vm_id in path.parts for vm_id in full) else free), total

    store = ChainStore(tmp_path / "store", reserve=1 * MiB, space=space)
    async with pair(tmp_path, store=store) as two:
        machine, other = spec(), spec("db01")
        guest, neighbour = two.add(machine, contents()), two.add(other, contents())
        await two.protect(machine, other)
        await two.settled(machine.id)
        await two.settled(other.id)

        full.add(machine.id)
        guest.write(FIRST, 0, os.urandom(MiB))
        await eventually("the source to block", lambda: two.at_source.statuses[machine.id].state == BLOCKED)
        await eventually("the target to block", lambda: two.at_target.statuses[machine.id].state == BLOCKED)
        for view in (two.at_source, two.at_target):
            assert view.statuses[machine.id].reason.code == "NO_SPACE"
        neighbour.write(FIRST, 0, b"the other goes on")
        await two.settled(other.id)
        assert (await newest(two.target, other.id))[1][FIRST] == neighbour.content(FIRST)

        full.clear()
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)
        for view in (two.at_source, two.at_target):
            await eventually("all to be well", lambda view=view: view.statuses[machine.id].state == REPLICATING)


async def test_a_source_that_cannot_be_read_blocks_its_vm_alone(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine, other = spec(), spec("db01")
        guest, neighbour = two.add(machine, contents()), two.add(other, contents())
        await two.protect(machine, other)
        await two.settled(machine.id)
        guest.broken_disks.add(FIRST)
        guest.write(FIRST, 0, b"unreadable")
        await eventually("it to block", lambda: two.at_source.statuses[machine.id].state == BLOCKED)
        assert two.at_source.statuses[machine.id].reason.code == "SOURCE_FAILED"
        neighbour.write(FIRST, 0, b"the other goes on")
        await two.settled(other.id)
        guest.broken_disks.clear()
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)


async def test_a_paused_vm_sends_nothing_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        held = two.at_source.assigned.assignments[0]
        held.paused = True
        two.provider.assign(two.source.host_id, held)
        await eventually(
            "it to pause",
            lambda: two.at_source.statuses[machine.id].state == types_pb2.REPLICATION_STATE_PAUSED,
        )
        guest.write(FIRST, 0, b"while it is paused")
        await eventually("the change to be seen", lambda: two.at_source.statuses[machine.id].pending_bytes)
        held.paused = False
        two.provider.assign(two.source.host_id, held)
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)


async def test_a_fenced_vm_is_stopped_and_sends_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        held = two.at_source.assigned.assignments[0]
        held.fenced, held.term = True, 2
        two.provider.assign(two.source.host_id, held)
        await eventually(
            "it to be fenced", lambda: two.at_source.statuses[machine.id].state == types_pb2.REPLICATION_STATE_FENCED
        )
        await eventually("it to stop", lambda: two.hypervisor.machine(machine.id).power.value == "stopped")
        cycles = two.at_target.points[machine.id][-1].cycle
        await two.restart_source()
        assert two.at_target.points[machine.id][-1].cycle <= cycles + 1
        assert two.hypervisor.machine(machine.id).power.value == "stopped"


async def test_a_transfer_that_cannot_put_its_notes_down_at_its_end_stops_no_other(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        one, other = spec("web01"), spec("web02")
        two.add(one, contents())
        guest = two.add(other, contents())
        await two.protect(one, other)
        for machine in (one, other):
            await two.settled(machine.id)
        ongoing = two.source.sources.ongoing(one.id)
        assert ongoing is not None
        ongoing.reader.pending.note(os.urandom(16), 7, 0, clusters=[1], fingerprints=bytes(16), zeros=[])
        await two.source.sources.forget(one.id)
        guest.write(FIRST, 0, b"and on")
        await two.settled(other.id)
        assert two.source.sources.ongoing(other.id) is not None


async def test_a_copy_goes_on_without_the_notes_of_what_it_brought(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        size = 96 * MiB
        machine = spec(size=size)
        guest = two.add(machine, {FIRST: os.urandom(size)})
        tap.on_bytes = lambda: setattr(tap, "open", tap.sent < size // 2) or (None if tap.open else tap.cut())
        await two.protect(machine, address=tap.address, compression=False)
        await eventually("half of the copy", lambda: not tap.open)
        log = tmp_path / "a1" / "state" / "sources" / machine.id / "fingerprints" / "pending"

        def reopen() -> None:
            log.unlink()
            tap.on_bytes = lambda: None
            tap.open = True

        await two.restart_source(meanwhile=reopen)
        guest.write(FIRST, 5, b"meanwhile")
        await two.replicated(machine.id)
        assert tap.sent < size + WINDOW_BYTES + 4 * MiB
        _, found = await newest(two.target, machine.id)
        assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}
