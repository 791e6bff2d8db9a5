"""What comes before and after a replication: look at a source, make room for a replica, forget both. Repeatable."""

from collections.abc import Iterable
from dataclasses import replace

from hyperv_host_agent import blocking
from hyperv_host_agent.commands import Call
from hyperv_host_agent.hypervisors.base import (
    Finding,
    Hypervisor,
    MachineExists,
    MachineSpec,
    Obstacles,
    Purpose,
    Severity,
)
from hyperv_host_agent.hypervisors.description import from_proto, native_of, to_proto
from hyperv_host_agent.promotions import Promotions
from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.seeds.beginnings import Beginnings
from hyperv_host_agent.sources import Sources
from hyperv_host_agent.store.base import PointPinned
from hyperv_host_agent.targets import Targets
from twinsite import units
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Precondition


class NotReplicable(Precondition):
    public = "VM {error.vm_id} cannot be replicated from here: {error.problem}"
    still_works = "it was not touched"

    def __init__(self, vm_id: str, problem: str) -> None:
        self.vm_id, self.problem = vm_id, problem


class Preparation:
    def __init__(
        self,
        *,
        hypervisor: Hypervisor,
        replicas: Replicas,
        sources: Sources,
        targets: Targets,
        promotions: Promotions,
        beginnings: Beginnings,
    ) -> None:
        self._hypervisor = hypervisor
        self._replicas = replicas
        self._sources = sources
        self._targets = targets
        self._promotions = promotions
        self._beginnings = beginnings

    async def check_source(self, call: Call) -> None:
        vm_id = call.command.check_source.vm_id
        state = await blocking.finish(self._hypervisor.machine, vm_id)
        if state.purpose is Purpose.TEST:
            raise NotReplicable(vm_id, "it is the throw-away copy of a test failover")
        tracked = {disk.id for disk in (await blocking.finish(self._hypervisor.change_source, vm_id)).disks()}
        findings = await blocking.finish(self._hypervisor.examine, vm_id)
        if any(found.severity is Severity.OBSTACLE for found in findings):
            raise NotReplicable(vm_id, _lines(findings, Severity.OBSTACLE))
        missing = [disk.name or disk.id for disk in state.spec.disks if disk.id not in tracked]
        if missing or not tracked:
            raise NotReplicable(vm_id, f"changes of {', '.join(missing) or 'its disks'} cannot be tracked")
        native = await blocking.finish(self._hypervisor.describe, vm_id)
        # Without its files: they are large, and the recovery points bring them.
        call.result.machine.CopyFrom(to_proto(state, replace(native, files=()) if native is not None else None))
        call.result.note = _lines(findings)

    async def check_target(self, call: Call) -> None:
        spec, findings = await self._preflight(call.command.check_target.machine)
        call.result.note = "; ".join(filter(None, (_lines(findings), await self._room(spec))))

    async def prepare_replica(self, call: Call) -> None:
        order = call.command.prepare_replica
        spec, findings = await self._preflight(order.machine)
        # The coordinator gives a term once; so it is newer than one that a replica from before may have lost.
        await blocking.finish(self._replicas.store.give_term, spec.id, order.term)
        held = await self._replicas.create(spec.id, term=order.term)
        state = await held.run(held.replica.state)
        if state.term > order.term:
            raise OlderTerm(order.term, state.term)
        notes = [str(found) for found in findings]
        if order.existing:
            machine = order.machine.SerializeToString(deterministic=True)
            notes.append(await self._beginnings.begin(call, held, spec.disks, machine, order.existing))
        notes.append(await self._room(spec))
        call.result.note = "; ".join(filter(None, notes))

    async def _preflight(self, machine: types_pb2.Machine) -> tuple[MachineSpec, tuple[Finding, ...]]:
        """What the VM becomes here, and what would be otherwise. Raises MachineExists, Obstacles."""
        spec, native = from_proto(machine), native_of(machine)
        for present in await blocking.finish(self._hypervisor.machines):
            if present.spec.id == spec.id or present.spec.name == spec.name:
                raise MachineExists(present.spec.name)
        findings = await blocking.finish(self._hypervisor.preflight, spec, native)
        if any(found.severity is Severity.OBSTACLE for found in findings):
            raise Obstacles(spec.name, findings)
        return spec, findings

    async def _room(self, spec: MachineSpec) -> str:
        """A warning when the store is smaller than the disks are when full."""
        free = await blocking.finish(self._replicas.store.free_bytes)
        whole = sum(disk.size for disk in spec.disks)
        if whole <= free:
            return ""
        return f"the disks may grow to {units.size(whole)}, the replica store has {units.size(free)} free"

    async def remove_replica(self, call: Call) -> None:
        vm_id = call.command.remove_replica.vm_id
        call.settled = True
        promotion = await blocking.finish(self._promotions.get, vm_id)
        if promotion is not None:
            raise PointPinned(promotion.cycle, "failover")
        await self._replicas.remove(vm_id)
        self._targets.forget(vm_id)

    async def forget_source(self, call: Call) -> None:
        call.settled = True
        await self._sources.forget(call.command.forget_source.vm_id)


def _lines(findings: Iterable[Finding], *severities: Severity) -> str:
    """Of these severities; without any: all of them, each with its severity."""
    if severities:
        return "; ".join(found.text for found in findings if found.severity in severities)
    return "; ".join(map(str, findings))
