"""What starts and stops VMs from replicas: test failover and its cleanup, failover, stop. Each may be repeated."""

import asyncio
import dataclasses
import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from hyperv_host_agent import blocking, wire
from hyperv_host_agent.commands import Call
from hyperv_host_agent.greeting import Greeting
from hyperv_host_agent.hypervisors.base import (
    Finding,
    Hypervisor,
    MachineExists,
    MachineMissing,
    Obstacles,
    Power,
    Purpose,
    Severity,
)
from hyperv_host_agent.hypervisors.description import from_proto, native_of, to_proto
from hyperv_host_agent.promotions import Promotion, Promotions
from hyperv_host_agent.reception import Receptions
from hyperv_host_agent.replicas import Held, Replicas
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.store.base import PointInfo, PointMissing
from hyperv_host_agent.targets import Targets
from twinsite import grants
from twinsite.api.types.v1.types_pb2 import Machine, SignedDocument
from twinsite.clock import Clock
from twinsite.errors import Precondition
from twinsite.grants import Grant, GrantRefused
from twinsite.identity import Identity

FAILOVER: Final = "failover"  # who pins the point a failed-over VM stands on


class NoPoint(Precondition):
    public = "the replica of this VM has no recovery point yet"
    still_works = "nothing was started; replication goes on"
    next_step = "wait for the initial replication and one cycle: twinsite vm show"


class AlreadyFailedOver(Precondition):
    public = "the VM was failed over to this host, in term {error.term}"
    still_works = "it was not touched"
    next_step = "twinsite vm show"

    def __init__(self, term: int) -> None:
        self.term = term


class Recovery:
    def __init__(
        self,
        identity: Identity,
        *,
        hypervisor: Hypervisor,
        replicas: Replicas,
        receptions: Receptions,
        targets: Targets,
        promotions: Promotions,
        signing_keys: Callable[[], Mapping[str, bytes]],
        greeting: Greeting,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._hypervisor = hypervisor
        self._replicas = replicas
        self._receptions = receptions
        self._targets = targets
        self._promotions = promotions
        self._signing_keys = signing_keys
        self._greeting = greeting
        self._clock = clock

    async def test_failover(self, call: Call) -> None:
        """A throw-away copy on an overlay, on no network; replication goes on."""
        order = call.command.test_failover
        owner, test_vm = _owner(order.test_id), _test_vm(order.vm_id, order.test_id)
        held = await self._replicas.get(order.vm_id)
        points = await held.run(held.replica.points)
        point = _choose(points, order.cycle, owner)
        machine = Machine.FromString(point.machine)
        spec, native = from_proto(machine), native_of(machine)
        nics = tuple((_test_mac(test_vm, mac), "") for mac, _ in spec.nics)
        alone = dataclasses.replace(spec, id=test_vm, nics=nics)
        findings = await blocking.finish(self._hypervisor.preflight, alone, native)
        try:
            call.progress(10, "attach the recovery point")
            disks = await held.run(held.replica.attach, point.cycle, owner)
            call.progress(40, "define the test VM")
            await blocking.finish(self._hypervisor.define, alone, disks, purpose=Purpose.TEST, native=native)
            call.progress(70, "start the test VM")
            await blocking.finish(self._hypervisor.start, test_vm)
            said = await self._greeting.of(call, test_vm)
        except asyncio.CancelledError:
            if call.cancelled:
                await self._remove_test(order.vm_id, order.test_id)
            raise
        except Exception:
            # A test that could not start leaves nothing behind that would keep the point.
            await self._remove_test(order.vm_id, order.test_id)
            raise
        await self._answer(call, test_vm, point, [*_warnings(points, point, order.cycle), *_shown(findings), *said])
        await self._targets.refresh(order.vm_id)

    async def test_cleanup(self, call: Call) -> None:
        order = call.command.test_cleanup
        call.settled = True
        await self._remove_test(order.vm_id, order.test_id)
        await self._targets.refresh(order.vm_id)

    async def failover(self, call: Call) -> None:
        """The term is on disk before anything else; from then on this host is the owner and there is no way back."""
        order = call.command.failover
        grant = self._granted(order.vm_id, order.grant)
        held = await self._replicas.get(order.vm_id)
        done = await blocking.finish(self._promotions.get, order.vm_id)
        point, warnings = await self._prepare(held, order.cycle, grant, done)
        machine = Machine.FromString(point.machine)
        spec, native = from_proto(machine), native_of(machine)
        call.settled = True
        call.progress(10, f"this host owns the VM in term {grant.term}")
        await (await self._receptions.get(order.vm_id)).raise_term(grant.term)
        await blocking.finish(self._promotions.put, Promotion(order.vm_id, grant.term, point.cycle))
        call.progress(30, "attach the recovery point")
        disks = await held.run(held.replica.attach, point.cycle, FAILOVER)
        call.progress(50, "define the VM")
        await blocking.finish(self._hypervisor.define, spec, disks, purpose=Purpose.REPLICA, native=native)
        call.progress(70, "start the VM")
        await blocking.finish(self._hypervisor.start, spec.id)
        said = await self._greeting.of(call, spec.id)
        await self._answer(call, spec.id, point, [*warnings, *said])
        await self._targets.refresh(order.vm_id)

    async def stop_machine(self, call: Call) -> None:
        order = call.command.stop_machine
        call.settled = True
        await blocking.finish(self._hypervisor.stop, order.vm_id, timeout=float(order.timeout_seconds))
        state = await blocking.finish(self._hypervisor.machine, order.vm_id)
        call.result.machine.CopyFrom(to_proto(state))

    def _granted(self, vm_id: str, document: SignedDocument) -> Grant:
        grant = grants.verify(document, self._signing_keys(), self._clock.now())
        problem = (
            (grant.vault != self._identity.vault and "it is of another vault")
            or (grant.vm_id != vm_id and "it is of another VM")
            or (grant.source_host != self._identity.id and "it names another host as the owner")
        )
        if problem:
            raise GrantRefused(problem)
        return grant

    async def _prepare(
        self, held: Held, cycle: int, grant: Grant, done: Promotion | None
    ) -> tuple[PointInfo, list[str]]:
        """The point, and what to warn of, after everything was checked that can be before the term is raised."""
        state = await held.run(held.replica.state)
        if grant.term < state.term:
            raise OlderTerm(grant.term, state.term)
        if done is not None and done.term != grant.term:
            raise AlreadyFailedOver(done.term)
        points = await held.run(held.replica.points)
        point = _choose(points, done.cycle if done is not None else cycle, FAILOVER)
        described = Machine.FromString(point.machine)
        spec = from_proto(described)
        for machine in await blocking.finish(self._hypervisor.machines):
            own = machine.spec.id == spec.id and machine.purpose is Purpose.REPLICA
            if not own and (machine.spec.id == spec.id or machine.spec.name == spec.name):
                raise MachineExists(machine.spec.name)
        findings = await blocking.finish(self._hypervisor.preflight, spec, native_of(described))
        if any(found.severity is Severity.OBSTACLE for found in findings):
            raise Obstacles(spec.name, findings)
        return point, [*_warnings(points, point, cycle), *_shown(findings)]

    async def _answer(self, call: Call, vm_id: str, point: PointInfo, warnings: list[str]) -> None:
        state = await blocking.finish(self._hypervisor.machine, vm_id)
        call.result.machine.CopyFrom(to_proto(state))
        call.result.cycle = point.cycle
        call.result.instant.CopyFrom(wire.timestamp(point.instant))
        notes = list(warnings)
        for disk in state.spec.disks:
            path = await blocking.finish(self._hypervisor.disk_path, vm_id, disk.id)
            notes.append(f"{disk.name or disk.id}: {path}")
        call.result.note = "\n".join(notes)

    async def _remove_test(self, vm_id: str, test_id: str) -> None:
        test_vm = _test_vm(vm_id, test_id)
        try:
            state = await blocking.finish(self._hypervisor.machine, test_vm)
            if state.power is not Power.STOPPED:
                await blocking.finish(self._hypervisor.stop, test_vm, timeout=0.0)
            await blocking.finish(self._hypervisor.undefine, test_vm)
        except MachineMissing:
            pass  # it never came so far, or it was cleaned up before
        held = await self._replicas.find(vm_id)
        if held is not None:
            await held.run(held.replica.detach, _owner(test_id))


def _owner(test_id: str) -> str:
    return f"test-{test_id}"


def _test_vm(vm_id: str, test_id: str) -> str:
    """The same for every repetition of one test, and never the VM's own."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{vm_id}/{test_id}"))


def _test_mac(test_vm: str, mac: str) -> str:
    """Another address than the VM's own, the same for every repetition of one test; a local one, as QEMU's are."""
    digest = hashlib.blake2b(f"{test_vm}/{mac}".encode(), digest_size=3).digest()
    return ":".join(f"{byte:02x}" for byte in b"\x52\x54\x00" + digest)


def _shown(findings: Iterable[Finding]) -> list[str]:
    return [str(found) for found in findings if found.severity is not Severity.NOTE]


def _choose(points: list[PointInfo], cycle: int, owner: str) -> PointInfo:
    """The point `owner` has already, when the command is repeated; the one named; the newest without damage, if any.

    Raises PointMissing, NoPoint.
    """
    recoverable = [point for point in points if point.recoverable]
    for point in recoverable:
        if owner in point.pinned_by:
            return point
    if not cycle:
        if not recoverable:
            raise NoPoint
        return next((point for point in reversed(recoverable) if not point.damaged), recoverable[-1])
    for point in recoverable:
        if point.cycle == cycle:
            return point
    raise PointMissing(cycle)


def _warnings(points: list[PointInfo], point: PointInfo, cycle: int) -> list[str]:
    """What whoever starts a VM from the point has to know; `cycle` 0: it was chosen here."""
    warnings = []
    if point.damaged:
        warnings.append(f"warning: point {point.cycle} has damage, clusters: {point.damaged}; reading them fails")
    passed = [other.cycle for other in points if other.recoverable and other.cycle > point.cycle and other.damaged]
    if not cycle and passed:
        warnings.append(f"warning: newer points with damage were passed over: {', '.join(map(str, passed))}")
    return warnings
