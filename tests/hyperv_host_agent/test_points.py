"""Points are kept, locked and checked by command, and what a check finds damaged comes right while the source lives."""

import os
from pathlib import Path

from hyperv_host_agent.store.formats.side_file import Entry, SideFile, side_path
from tests.fakes.agent_pair import FIRST, Pair, contents, pair, spec
from tests.fakes.chain_rig import flip
from tests.fakes.host_provider import eventually
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.extents import CLUSTER

MARK, VERIFY = commands_pb2.MarkPoint, commands_pb2.VerifyReplica


async def order(two: Pair, number: int, **action: object) -> commands_pb2.CommandResult:
    return await two.provider.order(two.target.host_id, f"order-{number}@1", **action)


def shown(two: Pair, vm_id: str, cycle: int) -> types_pb2.Point | None:
    return next((point for point in two.at_target.points[vm_id] if point.cycle == cycle), None)


async def test_a_point_is_kept_named_and_locked_and_its_replica_cannot_be_removed(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        cycle = await two.replicated(machine.id)
        marked = await order(
            two, 1, mark_point=MARK(vm_id=machine.id, cycle=cycle, keep=True, name="audit", lock_seconds=3600)
        )
        assert marked.ok, marked.error
        assert (marked.point.cycle, marked.point.name, marked.point.kept) == (cycle, "audit", True)
        await eventually("the mark to be told", lambda: getattr(shown(two, machine.id, cycle), "name", "") == "audit")
        assert marked.point.locked_until.seconds > marked.point.instant.seconds + 3000
        for number, refused in enumerate(
            (
                {"mark_point": MARK(vm_id=machine.id, cycle=cycle, keep=False)},
                {"remove_replica": commands_pb2.RemoveReplica(vm_id=machine.id)},
            )
        ):
            result = await order(two, 2 + number, **refused)
            assert result.error.code == "POINT_LOCKED"
            assert "locked until" in result.error.message
        await two.replicated(machine.id, beyond=await two.settled(machine.id))
        kept = shown(two, machine.id, cycle)
        assert kept is not None
        assert kept.kept


def newest_entry(store: Path, vm_id: str, cluster: int) -> tuple[Path, Entry]:
    """Where the disk's newest frame of the cluster is."""
    for layer in sorted((store / vm_id / FIRST).glob("??????.qcow2"), reverse=True):
        side = SideFile(side_path(layer))
        entries = list(side.entries(cluster, cluster + 1))
        side.close()
        if entries:
            return layer, entries[-1]
    raise AssertionError


async def test_a_damaged_cluster_is_named_wanted_and_brought_by_the_next_cycle(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        guest.write(FIRST, 3 * CLUSTER, os.urandom(CLUSTER))
        await two.protect(machine)
        await two.settled(machine.id)
        sound = await order(two, 1, verify_replica=VERIFY(vm_id=machine.id))
        assert sound.ok, sound.error
        assert sound.verified.checked_bytes > 2 << 20
        assert not sound.verified.damage

        layer, entry = newest_entry(tmp_path / "b1" / "store", machine.id, 3)
        flip(layer, entry.offset + entry.length // 2)
        found = await order(two, 2, verify_replica=VERIFY(vm_id=machine.id, repair=True))
        assert found.ok, found.error
        (damage,) = found.verified.damage
        assert (damage.disk_id, damage.cluster, damage.whole_file, damage.repaired) == (FIRST, 3, False, False)
        assert damage.file == f"{FIRST}/{layer.name}"
        assert damage.points
        assert found.verified.wanted_clusters == 1

        await two.restart_source()  # it asks what the target lacks when it connects, and else once in a while
        await two.settled(machine.id)
        await two.settled(machine.id)
        again = await order(two, 3, verify_replica=VERIFY(vm_id=machine.id, repair=True))
        assert again.ok, again.error
        assert again.verified.damaged_clusters == 0
        assert two.at_target.points[machine.id][-1].damaged_clusters == 0
        before = guest.content(FIRST)
        tested = await order(two, 4, test_failover=commands_pb2.TestFailover(vm_id=machine.id, test_id="t"))
        assert tested.ok, tested.error
        assert two.there.change_source(tested.machine.id).content(FIRST) == before


async def test_a_test_passes_over_a_point_with_damage_and_says_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        good = await two.settled(machine.id)
        marked = await order(two, 1, mark_point=MARK(vm_id=machine.id, cycle=good, keep=True))
        assert marked.ok, marked.error
        guest.write(FIRST, 3 * CLUSTER, os.urandom(CLUSTER))
        await two.settled(machine.id)
        two.provider.assign(two.source.host_id)
        layer, entry = newest_entry(tmp_path / "b1" / "store", machine.id, 3)
        flip(layer, entry.offset + entry.length // 2)
        found = await order(two, 2, verify_replica=VERIFY(vm_id=machine.id, repair=True))
        (damage,) = found.verified.damage
        bad = damage.points[-1]
        assert good < bad
        tested = await order(two, 3, test_failover=commands_pb2.TestFailover(vm_id=machine.id, test_id="t"))
        assert tested.ok, tested.error
        assert good <= tested.cycle < damage.points[0]
        assert "newer points with damage were passed over" in tested.note
        assert str(bad) in tested.note
