"""The store on disk after a power loss at every system call, with every doubt the file system may have."""

from pathlib import Path

import pytest

from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import store_workload
from tests.fakes.chain_rig import ChainRig
from tests.fakes.power_loss import Disk, record
from tests.fakes.store_workload import BEFORE, KEPT, MANY, VM, history, prepare, receive

pytestmark = pytest.mark.timeout(400)  # thousands of states, each opened and read

SCRIPT = Path(store_workload.__file__)
SEEDS = 3


def assert_points(rig: ChainRig, replica: ChainReplica, count: int = BEFORE) -> None:
    cycles = history(count)
    for point in replica.points():
        assert cycles[point.cycle - 1].header.id == point.id
        for disk, content in cycles[point.cycle - 1].content.items():
            assert rig.content(replica, point.cycle, disk) == content
    assert list(replica.verify()) == []


@pytest.mark.parametrize("work", ["receive", "maintain"])
def test_a_power_loss_at_any_call_loses_nothing_that_was_acknowledged(quick_path: Path, work: str):
    root, left = quick_path / "store", quick_path / "left"
    prepare(root)
    disk = Disk(root)
    calls = record(SCRIPT, [work, str(root)], root, quick_path / "log")
    assert len(calls) > 40
    synced, said, states = 0, "", 0
    for call in calls:
        if call.flags == "stdout":
            said += call.data.decode()
            lines = said.split("\n")[:-1]
            synced = max([0, *(int(line.split()[1]) for line in lines if line.startswith("synced"))])
        else:
            disk.apply(call)
        if call.name == "openat" and "O_CREAT" not in call.flags:
            continue
        for _ in disk.states(left, SEEDS):
            states += 1
            rig = ChainRig(left)
            replica = rig.store.open(VM)
            state = replica.state()
            assert state.committed is not None
            if work == "receive":
                if f"committed {BEFORE + 1}" in said:
                    assert state.committed.number == BEFORE + 1
                elif state.committed.number == BEFORE:
                    assert (state.unfinished.durable if state.unfinished else 0) >= synced
                receive(replica, history()[BEFORE])
            assert {point.cycle for point in replica.points()} >= {KEPT, BEFORE}
            assert_points(rig, replica)
            replica.close()
    assert states > 200


def test_a_power_loss_while_packs_are_made_used_and_thinned_out_leaves_every_kept_point_whole(quick_path: Path):
    root, left = quick_path / "store", quick_path / "left"
    prepare(root, MANY)
    disk = Disk(root)
    said, states = "", 0
    for number, call in enumerate(record(SCRIPT, ["pack", str(root)], root, quick_path / "log")):
        if call.flags == "stdout":
            said += call.data.decode()
        else:
            disk.apply(call)
        if number % 7 and call.name not in {"rename", "unlink"}:
            continue
        for _ in disk.states(left, 1):
            states += 1
            rig = ChainRig(left)
            replica = rig.store.open(VM)
            points = {point.cycle: point for point in replica.points()}
            assert points.keys() >= {KEPT, KEPT + 5, MANY}
            assert "detached" in said or len(points) == MANY
            if "attached 2" in said and "attached 8" not in said:
                assert points[2].pinned_by == ("user",)
            assert_points(rig, replica, MANY)
            replica.close()
    assert states > 200
