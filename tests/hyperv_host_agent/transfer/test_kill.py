"""Both agents as processes, killed without warning while a guest writes."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.rig import Rig
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.creation import NewDisk, create_machine
from hyperv_host_agent.store.chain import ChainStore
from tests.fakes.newest_point import read
from twinsite.units import MiB

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.join()
    yield made
    made.stop()


def committed(rig: Rig) -> tuple[int, float]:
    """Number and instant of the newest committed cycle, from the store's manifests."""
    newest = (0, 0.0)
    for path in (rig.folder("b") / "store" / rig.vm_id / "points").glob("[0-9]*.json"):
        try:
            document = json.loads(path.read_bytes())["document"]
        except (FileNotFoundError, ValueError):  # retired, or being replaced
            continue
        newest = max(newest, (document["cycle"], document["instant"]))
    return newest


def until(what: str, check: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.parametrize("seed", [1, 2])
def test_agents_that_are_killed_at_any_moment_lose_nothing_that_was_acked(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    hypervisor = EmbeddedHypervisor(rig.folder("a") / "vms", rig.folder("a") / "vms" / ".run")
    disks = [NewDisk("vda", size=48 * MiB), NewDisk("vdb", size=16 * MiB)]
    vm_id = create_machine(hypervisor, "web01", disks, interval_seconds=0.02, load_bytes_per_second=4 * MiB)
    rig.protect(hypervisor.machine(vm_id).spec, compression=True, frequency=1)
    hypervisor.start(vm_id)
    try:
        for side in "ba":
            rig.start(side)
        reached = 0
        for _ in range(10):
            time.sleep(chance.uniform(0.05, 1.2))
            side = chance.choice("ab")
            before = committed(rig)[0]
            rig.running[side].kill()
            assert committed(rig)[0] >= before >= reached
            reached = before
            rig.start(side)
    finally:
        hypervisor.stop(vm_id, timeout=10)
    stopped = time.time()
    until("a point after the guest's end", lambda: committed(rig)[1] > stopped)
    rig.stop()
    with closing(ChainStore(rig.folder("b") / "store", reserve=0).open(vm_id)) as replica:
        newest = replica.points()[-1]
        assert newest.cycle >= reached
        assert list(replica.verify()) == []
        for disk in replica.attach(newest.cycle, "compare"):
            assert read(disk) == hypervisor.disk_path(vm_id, disk.id).read_bytes(), disk.name
