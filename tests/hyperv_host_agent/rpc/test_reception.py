"""What a reception tells, whatever becomes of those who wait for it."""

import asyncio
import threading

from hyperv_host_agent.reception import Reception
from hyperv_host_agent.replicas import Held
from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.receiving import BatchReceived, Began, EndReceived, Granted
from hyperv_host_agent.store.base import PointInfo, Replica
from hyperv_host_agent.store.memory import MemoryStore
from tests.fakes.clock import MovedClock
from twinsite.digest import CHAIN_START, chain
from twinsite.extents import CLUSTER, Run

VM = "vm"
DISK = DiskGeometry("disk", 16 * CLUSTER)


class SlowCommit:
    """A replica whose commits wait for a word."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._replica, name)

    def commit(self) -> PointInfo:
        self.begun.set()
        assert self.go_on.wait(20)
        return self._replica.commit()


async def test_a_point_is_told_although_its_stream_was_cancelled_while_it_was_committed() -> None:
    replica = SlowCommit(MemoryStore().create(VM, term=1))
    held = Held(VM, replica)  # type: ignore[arg-type]  # the rest of the port is the other's
    told: list[PointInfo] = []
    reception = Reception(held, held.replica.state(), MovedClock(), on_commit=told.append, on_failure=[].append)
    stream = reception.stream()
    header = CycleHeader(VM, bytes(16), 1, 0, 1, Kind.INITIAL, 0.0, "none", (DISK,))
    zeros = Batch(1, 0, (), (), b"", (Run(0, 16),), b"")
    await reception.tell(
        Began(stream.number, header, 0, Granted(1, (DISK,))), BatchReceived(stream.number, zeros, (b"body",))
    )
    async with asyncio.TaskGroup() as group:
        ending = group.create_task(reception.tell(EndReceived(stream.number, 1, chain(CHAIN_START, b"body"))))
        await asyncio.to_thread(replica.begun.wait, 20)
        ending.cancel()
        replica.go_on.set()
    assert ending.cancelled()
    assert [point.cycle for point in told] == [1]
