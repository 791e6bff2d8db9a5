"""The store on disk after a power loss at every system call, with every doubt the file system may have."""

from pathlib import Path
from typing import Final

import pytest

from tests.fakes import store_workload
from tests.fakes.chain_rig import ChainRig
from tests.fakes.power_loss import Disk, record
from tests.fakes.store_workload import BEFORE, VM, WORKS, take
from tests.hyperv_host_agent.store.test_chain_crashes import PROMISES, Crashed, assert_points

SCRIPT: Final = Path(store_workload.__file__)
SEEDS: Final = 1
# Every how many calls that are no rename, removal or sync the power goes, by work.
STEPS: Final = {"receive": 1, "receive-instead": 2, "maintain": 4, "pack": 4, "use": 2, "thin": 3, "mark": 1, "want": 1}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", STEPS)
def test_a_power_loss_at_any_call_breaks_no_promise(quick_path: Path, name: str):
    root, left = quick_path / "store", quick_path / "left"
    work, promise = WORKS[name], PROMISES[name]
    work.prepare(root)
    disk, said, states = Disk(root), "", 0
    for number, call in enumerate(record(SCRIPT, [name, str(root)], root, quick_path / "log")):
        if call.flags == "stdout":
            said += call.data.decode()
            continue
        disk.apply(call)
        if call.name == "openat" and "O_CREAT" not in call.flags:
            continue
        if number % STEPS[name] and call.name not in {"rename", "unlink"}:
            continue
        for _ in disk.states(left, SEEDS):
            states += 1
            crashed = Crashed(name, left, said.split("\n")[:-1])
            rig = ChainRig(left)
            replica = rig.store.open(VM)
            promise.holds(crashed, replica)
            if name.startswith("receive"):
                take(replica, work.cycles()[BEFORE])
            assert_points(rig, replica, work.cycles(), states)
            replica.close()
    assert states > 60
