"""A replica that is being mended when the power goes: nothing is worse than before, and mending goes on."""

from pathlib import Path

from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.formats.side_file import SideFile, side_path
from tests.fakes import store_workload
from tests.fakes.chain_rig import ChainRig, flip
from tests.fakes.power_loss import Disk, record
from tests.fakes.store_workload import BEFORE, VM, history, prepare

SCRIPT = Path(store_workload.__file__)
SEEDS = 1
LOST = 4  # the cycle whose frame nothing here can mend


def damage(root: Path) -> int:
    """Damage some of everything: the cluster of disk a whose content is lost."""
    replica = ChainStore(root, reserve=0).open(VM)
    replica.maintain(keep=range(BEFORE + 1))  # second copies
    replica.close()
    layer = root / VM / "a" / f"{LOST:06}.qcow2"
    side = SideFile(side_path(layer))
    entry = next(iter(side.entries()))
    side.close()
    flip(layer, entry.offset + entry.length // 2)
    flip(layer, layer.stat().st_size - 65536 + 3)  # its refcount table
    flip(root / VM / "a" / "000003.qcow2", 9)
    flip(root / VM / "b" / "000002.fp", 40)
    flip(root / VM / "points" / "000002.json", 90)
    flip(root / VM / "points" / "000005.json.copy", 90)
    flip(root / VM / "replica.json", 30)
    return entry.cluster


def test_a_power_loss_at_any_call_of_mending_makes_nothing_worse(quick_path: Path):
    root, left = quick_path / "store", quick_path / "left"
    prepare(root)
    cluster = damage(root)
    disk, cycles = Disk(root), history()
    calls = record(SCRIPT, ["mend", str(root)], root, quick_path / "log")
    said = b"".join(call.data for call in calls if call.flags == "stdout").decode()
    assert said.count("mended") >= 4
    assert f"found a/{LOST:06}.qcow2" in said
    states = 0
    for call in calls:
        if call.flags == "stdout" or (call.name == "openat" and "O_CREAT" not in call.flags):
            continue
        disk.apply(call)
        for _ in disk.states(left, SEEDS):
            states += 1
            rig = ChainRig(left)
            replica = rig.store.open(VM)
            assert [finding for step in replica.check(repair=True) for finding in step.findings]
            points = replica.points()
            assert [point.cycle for point in points] == list(range(1, BEFORE + 1))
            assert [point.cycle for point in points if point.damaged] == list(range(LOST, BEFORE + 1))
            assert [(want.disk, want.run.start, want.run.count) for want in replica.wanted()] == [("a", cluster, 1)]
            for point in points[: LOST - 1]:
                for name, content in cycles[point.cycle - 1].content.items():
                    assert rig.content(replica, point.cycle, name) == content
            assert [finding.cluster for finding in replica.verify()] == [cluster]
            replica.close()
    assert states > 100
