"""Two host agents of one vault with a VM at the first, in the test's own process over real TLS on loopback."""

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperv_host_agent import app
from hyperv_host_agent.changes.memory import MemoryChangeSource
from hyperv_host_agent.hypervisors.base import MachineSpec
from hyperv_host_agent.hypervisors.description import to_proto
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.memory import MemoryHypervisor
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.seeds.paths import Media
from hyperv_host_agent.settings import TransferSettings
from hyperv_host_agent.store.base import ReplicaStore
from tests.fakes.host_provider import HostProvider, HostView, assignment, eventually, grant, host_agent, host_provider
from tests.fakes.newest_point import read
from tests.fakes.pki import TestVault
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import Clock, SystemClock
from twinsite.extents import CLUSTER

FIRST, SECOND = "d0000000-0000-4000-8000-000000000001", "d0000000-0000-4000-8000-000000000002"
SIZE = 8 << 20
ODD_SIZE = 3 * CLUSTER + 512  # its last cluster is partial


def spec(name: str = "web01", *, size: int = SIZE) -> MachineSpec:
    disks = (DiskGeometry(FIRST, size, "vda"), DiskGeometry(SECOND, ODD_SIZE, "vdb"))
    return MachineSpec(
        str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), name, 2, 1 << 30, disks, (("52:54:00:00:00:01", "corp"),)
    )


def contents(size: int = SIZE) -> dict[str, bytes]:
    """A quarter noise, a quarter text, the rest zeros; the second disk is noise to its odd end."""
    return {FIRST: os.urandom(size // 4) + b"text " * (size // 20), SECOND: os.urandom(ODD_SIZE)}


async def _never(**_options: bool) -> None:
    raise AssertionError


@dataclass
class Pair:
    provider: HostProvider
    source: app.Agent
    target: app.Agent
    hypervisor: MemoryHypervisor  # of the source
    there: MemoryHypervisor  # of the target
    embedded: EmbeddedHypervisor | None = None  # of the source, in place of the one in memory
    restart_target: Callable[..., Awaitable[None]] = _never
    restart_source: Callable[..., Awaitable[None]] = _never

    def add(self, machine: MachineSpec, data: dict[str, bytes]) -> MemoryChangeSource:
        return self.hypervisor.add(machine, contents=data)

    def describe(self, vm_id: str) -> types_pb2.Machine:
        return to_proto((self.embedded or self.hypervisor).machine(vm_id))

    @property
    def at_source(self) -> HostView:
        return self.provider.hosts[self.source.host_id]

    @property
    def at_target(self) -> HostView:
        return self.provider.hosts[self.target.host_id]

    async def protect(self, *machines: MachineSpec, address: str = "", **options: Any) -> None:
        """As the coordinator does: look, prepare, assign both hosts."""
        sources, targets = [], []
        for machine in machines:
            shown = self.describe(machine.id)
            found = await self.provider.order(
                self.source.host_id, f"check-{machine.name}@1", check_source=commands_pb2.CheckSource(vm_id=machine.id)
            )
            assert found.ok, found.error
            prepared = await self.prepare(found.machine, existing=options.get("existing"))
            assert prepared.ok, prepared.error
            document = options.get("document") or self.grant(shown)
            rest = {key: value for key, value in options.items() if key not in {"document", "existing"}}
            sources.append(
                assignment(
                    shown,
                    types_pb2.ROLE_SOURCE,
                    document,
                    peer=self.target.host_id,
                    address=address or self.target.address,
                    **rest,
                )
            )
            targets.append(assignment(shown, types_pb2.ROLE_TARGET, document, peer=self.source.host_id, **rest))
        self.provider.assign(self.target.host_id, *targets)
        self.provider.assign(self.source.host_id, *sources)

    async def prepare(
        self, shown: types_pb2.Machine, *, existing: Mapping[str, str] | None = None, attempt: int = 1
    ) -> commands_pb2.CommandResult:
        """Make room at the target; `existing`: images by disk that it begins with."""
        return await self.provider.order(
            self.target.host_id,
            f"prepare-{shown.name}@{attempt}",
            prepare_replica=commands_pb2.PrepareReplica(machine=shown, term=1, existing=existing),
        )

    def grant(self, shown: types_pb2.Machine, **changes: Any) -> types_pb2.SignedDocument:
        return grant(self.provider.vault, shown, self.source.host_id, self.target.host_id, **changes)

    async def replicated(self, vm_id: str, *, beyond: int = 0) -> int:
        """Wait for a recovery point after cycle `beyond`; its number."""

        def newest() -> int:
            points = self.at_target.points.get(vm_id, [])
            return points[-1].cycle if points and points[-1].cycle > beyond else 0

        found: int = await eventually(f"a point after {beyond}", newest)
        return found

    def failover(self, vm_id: str, *, term: int = 2, cycle: int = 0) -> commands_pb2.Failover:
        """The order to fail the VM over to the target; the grant names it as the owner."""
        document = grant(self.provider.vault, self.describe(vm_id), self.target.host_id, self.source.host_id, term=term)
        return commands_pb2.Failover(vm_id=vm_id, cycle=cycle, grant=document)

    async def settled(self, vm_id: str) -> int:
        """Wait for a point that brings everything written until now; its number."""
        now = SystemClock().now()

        def newest() -> int:
            points = self.at_target.points.get(vm_id, [])
            return points[-1].cycle if points and points[-1].instant.ToNanoseconds() / 1e9 > now else 0

        found: int = await eventually("a point of now", newest)
        return found


@contextlib.asynccontextmanager
async def pair(
    folder: Path,
    *,
    store: ReplicaStore | None = None,
    spool_memory: int = 64 << 20,
    life: float = 7 * 86400.0,
    current: bool = True,
    transfer: TransferSettings | None = None,
    media: Media | None = None,
    clock: Clock | None = None,
    embedded: EmbeddedHypervisor | None = None,
) -> AsyncIterator[Pair]:
    """`life` of certificates, in seconds; `current`: the provider knows what the coordinator says now; `transfer`
    are the source's settings, `clock` is the source's, `embedded` its hypervisor when guests shall be real.
    """
    async with host_provider(TestVault(), life=life, current=current) as provider, contextlib.AsyncExitStack() as stack:
        here, there = MemoryHypervisor(clock=clock), MemoryHypervisor(content=read)
        agents: dict[str, contextlib.AsyncExitStack] = {}
        transfer = transfer or TransferSettings(spool_memory_bytes=spool_memory)

        async def start(name: str, **options: Any) -> app.Agent:
            agents[name] = await stack.enter_async_context(contextlib.AsyncExitStack())
            return await agents[name].enter_async_context(host_agent(provider, folder / name, media=media, **options))

        target = await start("b1", hypervisor=there, store=store)
        source = await start("a1", hypervisor=embedded or here, transfer=transfer, clock=clock)
        two = Pair(provider, source, target, here, there, embedded)

        async def restart_target(*, meanwhile: Callable[[], object] = bool) -> None:
            await agents["b1"].aclose()
            meanwhile()
            two.target = await start("b1", hypervisor=there, store=store, listen=two.target.address)

        async def restart_source(*, connect: bool = True, meanwhile: Callable[[], object] = bool) -> None:
            await agents["a1"].aclose()
            meanwhile()
            for machine in here.machines():
                here.change_source(machine.spec.id).restart()
            two.source = await start("a1", hypervisor=embedded or here, transfer=transfer, clock=clock, connect=connect)

        two.restart_target, two.restart_source = restart_target, restart_source
        yield two
