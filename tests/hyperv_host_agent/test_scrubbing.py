"""All replicas of a host are checked at the rate that is allowed, and rest when they were."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hyperv_host_agent.hypervisors.memory import MemoryHypervisor
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.promotions import Promotions
from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.replication.cycle import Kind
from hyperv_host_agent.scrubbing import Scrubbing
from hyperv_host_agent.store.base import ScrubState
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.targets import Targets
from tests.fakes.host_provider import eventually
from tests.fakes.replicated_machine import Machine, send
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock
from twinsite.extents import CLUSTER
from twinsite.units import MiB

VMS = ("5f2c7a10-0000-4000-8000-000000000001", "5f2c7a10-0000-4000-8000-000000000002")
SIZE = 64 * CLUSTER


class Host:
    def __init__(self, root: Path, clock: MovedClock, *, days: int = 7) -> None:
        self.clock, self.outbox = clock, Outbox()
        self.replicas = Replicas(ChainStore(root / "store", reserve=1))
        promotions = Promotions(root / "promotions")
        self.targets = Targets(
            self.replicas,
            promotions,
            hypervisor=MemoryHypervisor(),
            outbox=self.outbox,
            clock=clock,
            maintain_rate=1 << 30,
        )
        self.scrubbing = Scrubbing(self.replicas, self.targets, clock, bytes_per_second=1 * MiB, days=days)

    async def state(self, vm_id: str) -> ScrubState:
        held = await self.replicas.get(vm_id)
        return await held.aside(held.replica.scrubbed)

    async def seconds_until_checked(self, vm_id: str) -> float:
        """The clock is moved second by second, each time the scrub sleeps."""
        began = self.clock.now()
        while (await self.state(vm_id)).completed is None:
            assert self.clock.now() - began < 1000
            await eventually("the scrub to sleep", lambda: self.clock._sleepers)
            self.clock.advance(1.0)
        return self.clock.now() - began


@asynccontextmanager
async def scrubbed(root: Path, *, days: int = 7) -> AsyncIterator[Host]:
    clock = MovedClock()
    host = Host(root, clock, days=days)
    for seed, vm_id in enumerate(VMS):
        machine = Machine(vm_id, {"disk-a": bytearray(SIZE)}, seed=seed)
        machine.write("disk-a", 0, machine.random.randbytes(SIZE))
        held = await host.replicas.create(vm_id, term=1)
        await held.run(send, held.replica, machine.cycle(Kind.DELTA))
    await host.targets.apply({vm: types_pb2.Assignment(vm_id=vm, role=types_pb2.ROLE_TARGET, term=1) for vm in VMS})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(host.scrubbing.run())
        yield host
        task.cancel()
    await host.replicas.close()


async def test_the_check_keeps_to_its_rate_and_takes_all_replicas_in_turn(tmp_path: Path) -> None:
    async with scrubbed(tmp_path) as host:
        took = [await host.seconds_until_checked(vm_id) for vm_id in VMS]
        whole = 2 * SIZE / MiB  # seconds at 1 MiB/s
        assert whole * 0.5 <= sum(took) <= whole * 2.5
        shown = host.outbox.status_of(VMS[1])
        assert shown is not None
        assert shown.scrub.total_bytes > SIZE
        assert shown.scrub.damaged_clusters == 0


async def test_a_replica_that_was_checked_rests_for_a_day(tmp_path: Path) -> None:
    async with scrubbed(tmp_path) as host:
        for vm_id in VMS:
            await host.seconds_until_checked(vm_id)
        first = (await host.state(VMS[0])).completed
        assert first is not None
        for _ in range(20):
            await eventually("the scrub to sleep", lambda: host.clock._sleepers)
            host.clock.advance(3600.0)
        assert (await host.state(VMS[0])).completed == first
        for _ in range(20):
            await eventually("the scrub to sleep", lambda: host.clock._sleepers)
            host.clock.advance(3600.0)
        assert ((await host.state(VMS[0])).completed or 0) > first


async def test_what_was_found_is_told_again_as_soon_as_an_agent_was_started_anew(tmp_path: Path) -> None:
    async with scrubbed(tmp_path) as host:
        for vm_id in VMS:
            await host.seconds_until_checked(vm_id)
        completed = (await host.state(VMS[0])).completed
    again = Host(tmp_path, host.clock)
    await again.targets.apply({VMS[0]: types_pb2.Assignment(vm_id=VMS[0], role=types_pb2.ROLE_TARGET, term=1)})
    shown = again.outbox.status_of(VMS[0])
    assert shown is not None
    assert shown.scrub.completed.seconds == int(completed or 0)
    await again.replicas.close()
