import pytest

from hyperv_host_agent.store.base import Replica
from hyperv_host_agent.store.memory import MemoryReplica, MemoryStore
from tests.contracts.replica_store import VM, ReplicaStoreContract, Rig, new_machine
from tests.contracts.replica_upkeep import ReplicaUpkeepContract
from tests.fakes.boot_clock import BootClock
from tests.fakes.replicated_machine import stage
from twinsite.extents import CLUSTER, clusters


class MemoryRig(Rig):
    def __init__(self) -> None:
        self.clock = BootClock()
        self.store: MemoryStore = MemoryStore(read=self.clock.read)

    def power_loss(self) -> None:
        self.store.crash()

    def set_free(self, count: int) -> None:
        self.store.capacity += count - self.store.free_bytes()

    def content(self, replica: Replica, cycle: int, disk: str) -> bytes:
        assert isinstance(replica, MemoryReplica)
        point = next(point for point in replica.points() if point.cycle == cycle)
        size = next(geometry.size for geometry in point.disks if geometry.id == disk)
        return b"".join(replica.read(cycle, disk, cluster) for cluster in range(clusters(size)))[:size]

    def damage(self, disk: str, cluster: int) -> None:
        points = self.store._kept[VM].points
        cell = points[max(points)].disks[disk][cluster]
        flipped = bytearray(cell[0])
        flipped[len(flipped) // 2] ^= 1
        damaged = (bytes(flipped), cell[1])
        for point in points.values():
            if point.disks[disk].get(cluster) is cell:
                point.disks[disk][cluster] = damaged  # type: ignore[index]


class TestMemoryStore(ReplicaStoreContract, ReplicaUpkeepContract):
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()


def test_a_power_loss_may_leave_some_of_what_was_not_synced():
    rig = MemoryRig()
    replica = rig.store.create(VM, term=1)
    cycle = new_machine().cycle()
    replica.begin(cycle.header, resume_after=0)
    stage(replica, cycle.batches[:2])
    replica.sync()
    stage(replica, cycle.batches[2:5])
    rig.store.crash(lambda _vm_id, staged: staged - 1)
    with pytest.raises(RuntimeError, match="power"):
        replica.state()
    unfinished = rig.store.open(VM).state().unfinished
    assert unfinished is not None
    assert unfinished.durable == 4


def test_space_is_what_the_frames_of_points_take():
    store = MemoryStore(capacity=1 << 20)
    replica = store.create(VM, term=1)
    machine = new_machine()
    machine.write("disk-a", 0, machine.random.randbytes(3 * CLUSTER))
    cycle = machine.cycle()
    replica.begin(cycle.header, resume_after=0)
    stage(replica, cycle.batches)
    stored = sum(len(batch.payload) for batch, _ in cycle.batches)
    assert store.free_bytes() == (1 << 20) - stored
    replica.commit()
    assert store.free_bytes() == (1 << 20) - stored
    store.remove(VM)
    assert store.free_bytes() == 1 << 20
