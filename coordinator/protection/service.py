"""Protecting VMs: use cases. What hosts do for it follows from the rows written here."""

import dataclasses
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory import service as inventory
from coordinator.inventory.model import disks_of, instant, resolve
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.service import HostView
from coordinator.jobs import Jobs, TaskPlan
from coordinator.jobs.model import JobNotFound
from coordinator.protection import preflight, store
from coordinator.protection.desired import Desired
from coordinator.protection.errors import (
    AlreadyProtected,
    BeingUnprotected,
    ChooseOne,
    FailoverRunning,
    Fenced,
    HostNotInTarget,
    LeftoverPending,
    MachineIsMissing,
    NoDisks,
    NotAnOriginal,
    NoTargetHost,
    NotInSourceCloud,
    NotProtected,
    NotReplicating,
    NotScheduled,
    PairNotReady,
    PointsLocked,
    ProtectRunning,
    TestsRunning,
)
from coordinator.protection.initial import Initial
from coordinator.protection.model import REPLICATING, Fence, Pair, Phase, Protected
from coordinator.protection.views import ProtectionView, VmView, look
from coordinator.recovery import store as recovery
from coordinator.store.engine import Database
from twinsite import schedules
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.units import count, duration, rfc3339, size, span


class Protections:
    """`jobs` runs the tasks of coordinator.protection.steps; `desired` publishes what hosts have to do."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs, desired: Desired) -> None:
        self._database, self._clock, self._jobs, self._desired = database, clock, jobs, desired

    # ---- looking ------------------------------------------------------------------------------------------------

    async def all(self) -> list[VmView]:
        async with self._database.read() as connection:
            return await look(connection, self._clock.now())

    async def one(self, name: str) -> VmView:
        """Raises Unknown, Ambiguous."""
        return resolve("vm", name, await self.all(), qualifier="cloud")

    # ---- protect ------------------------------------------------------------------------------------------------

    async def protect(
        self, by: Mutation, name: str, *, pair: str, target_host: str, initial: Initial, dry_run: bool, ask_hosts: bool
    ) -> admin_pb2.ActionResponse:
        """Protect a VM through the pair of its cloud. `pair` and `target_host` may be empty.

        `ask_hosts`: a dry run is a job, in which both hosts say what they find.
        """
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm = resolve("vm", name, await look(connection, now), qualifier="cloud")
            if vm.protection is not None:
                item = vm.protection.item
                if item.phase is Phase.UNPROTECTING:
                    raise BeingUnprotected(vm.name, item.job_id)
                raise AlreadyProtected(vm.name, vm.protection.pair.name)
            _protectable(vm)
            through = await _pair_of(connection, vm, pair)
            target = await _target(connection, vm, through, target_host)
            await _unhindered(connection, self._jobs, vm, target)
            machine = vm.machine.machine.document
            answer = _protect_consequences(vm, through, target)
            answer.consequences.extend(initial.consequences(vm.name, target.name, now, machine.disks))
            if dry_run:
                if ask_hosts and vm.machine.host.connected and target.connected:
                    answer.job_id = await preflight.submit(self._jobs, connection, by, vm, target)
                elif ask_hosts:
                    answer.warnings.append(f"it is not known whether {vm.name} would run there: only the hosts can say")
                return answer
            answer.job_id = await self._jobs.submit(
                connection,
                kind="vm.protect",
                target=f"vm/{vm.name}",
                tasks=_protect_tasks(vm, target),
                created_by=by.actor,
                request_id=by.request_id,
                result={"vm": vm.id, "target_host": target.name},
            )
            await store.insert_protected(
                connection,
                Protected(
                    vm_id=vm.id,
                    vm_name=vm.name,
                    pair_id=through.id,
                    source_host=vm.machine.host.id,
                    target_host=target.id,
                    owner_host=vm.machine.host.id,
                    term=await store.raise_term(connection, vm.id),
                    phase=Phase.PREPARING,
                    paused=False,
                    disks=disks_of(machine),
                    grant=None,
                    grant_expires=0.0,
                    job_id=answer.job_id,
                    created=now,
                    offline=initial.offline,
                    initial_start=initial.begins(now),
                    existing=initial.existing(machine.disks),
                ),
            )
            facts = {"pair": through.name, "target_host": target.name, "job": answer.job_id}
            facts |= {"initial": "offline"} if initial.offline else {}
            facts |= {"start": rfc3339(initial.begins(now))} if initial.begins(now) else {}
            facts |= {f"existing_{disk}": path for disk, path in initial.images.items()}
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)

    async def start_initial(self, by: Mutation, name: str, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Begin an initial replication that was put off, now. Raises NotProtected, NotScheduled."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = _protected(await look(connection, now), name)
            item = protection.item
            if item.phase not in (Phase.PREPARING, Phase.INITIAL):
                raise NotScheduled(vm.name, "it is complete")
            if item.initial_start <= now:
                raise NotScheduled(vm.name, "its time has come already")
            answer = admin_pb2.ActionResponse(
                consequences=[f"the initial replication of {vm.name} begins now, not at {rfc3339(item.initial_start)}"]
            )
            if dry_run:
                return answer
            await store.update_protected(connection, dataclasses.replace(item, initial_start=0.0))
            await self._desired.publish(connection, [item.source_host, item.target_host])
            await by.done(connection, f"vm/{vm.name}", answer, now=now)
        self._desired.changed()
        return answer

    # ---- unprotect ----------------------------------------------------------------------------------------------

    async def unprotect(
        self, by: Mutation, name: str, *, keep_replica: bool, delete_replica: bool, dry_run: bool
    ) -> admin_pb2.ActionResponse:
        """Stop replicating now; clean up at both hosts as a job that does not wait for a dead one.

        To ask for the replica to be deleted takes a reason and a fresh login: ReasonMissing, LoginTooOld.
        """
        if keep_replica and delete_replica:
            raise ChooseOne
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = _protected(await look(connection, now), name)
            item = protection.item
            _may_be_unprotected(vm, protection)
            tests = (await recovery.list_tests(connection, vm.id)).get(vm.id, [])  # also those that start just now
            if tests:
                raise TestsRunning(vm.name, len(tests))
            if await failover_runs(self._jobs, item):
                raise FailoverRunning(vm.name, item.job_id)
            over = item.phase is Phase.FAILED_OVER
            keep = over or keep_replica or not (delete_replica or protection.pair.policy.delete_replica)
            if not keep:
                _nothing_locked(vm, await store.list_points(connection, vm.id), now)
            answer = _unprotect_consequences(vm, protection, keep=keep, asked=delete_replica)
            if dry_run:
                return answer
            if delete_replica:
                by.deliberate()
            answer.job_id = await self._jobs.submit(
                connection,
                kind="vm.unprotect",
                target=f"vm/{vm.name}",
                tasks=_unprotect_tasks(item, keep=keep),
                created_by=by.actor,
                request_id=by.request_id,
            )
            if over:  # the replica runs; the old VM must not, for as long as its host exists
                await store.put_fence(connection, Fence(vm.id, vm.name, item.source_host, item.term))
            await store.update_protected(
                connection,
                dataclasses.replace(item, phase=Phase.UNPROTECTING, keep_replica=keep, job_id=answer.job_id),
            )
            await self._desired.publish(connection, [item.source_host, item.target_host])
            facts = {"replica": "kept" if keep else "deleted", "job": answer.job_id}
            await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)
        self._desired.changed()
        return answer

    # ---- pause --------------------------------------------------------------------------------------------------

    async def pause(self, by: Mutation, name: str, *, paused: bool, dry_run: bool) -> admin_pb2.ActionResponse:
        """Stop or go on replicating, at once. Raises NotReplicating; a repeat changes nothing."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = _protected(await look(connection, now), name)
            item = protection.item
            if item.phase not in REPLICATING:
                raise NotReplicating(vm.name, protection.health.state)
            every = duration(protection.pair.policy.frequency_seconds)
            answer = admin_pb2.ActionResponse(
                consequences=[
                    f"replication of {vm.name} stops; what would be lost grows until it is resumed"
                    if paused
                    else f"replication of {vm.name} goes on, with a point every {every}"
                ]
            )
            if item.paused is paused:
                return admin_pb2.ActionResponse(warnings=[f"nothing was changed: {vm.name} is in this state already"])
            if dry_run:
                return answer
            await store.update_protected(connection, dataclasses.replace(item, paused=paused))
            await self._desired.publish(connection, [item.source_host, item.target_host])
            await by.done(connection, f"vm/{vm.name}", answer, now=now)
        self._desired.changed()
        return answer


async def failover_runs(jobs: Jobs, item: Protected) -> bool:
    """Is a failover of this VM under way, also before it has raised the term?"""
    try:
        job = await jobs.get(item.job_id)
    except JobNotFound:
        return False
    return job.kind == "vm.failover" and not job.final


def _protected(views: Sequence[VmView], name: str) -> tuple[VmView, ProtectionView]:
    vm = resolve("vm", name, views, qualifier="cloud")
    if vm.protection is None:
        raise NotProtected(vm.name)
    return vm, vm.protection


# ---- rules of protect -------------------------------------------------------------------------------------------


def _protectable(vm: VmView) -> None:
    if not vm.machine.present:
        raise MachineIsMissing(vm.name, vm.machine.host.name)
    if vm.machine.machine.purpose:
        raise NotAnOriginal(vm.name, vm.machine.host.name, vm.machine.machine.purpose)
    if not vm.machine.machine.document.disks:
        raise NoDisks(vm.name)


async def _pair_of(connection: AsyncConnection, vm: VmView, name: str) -> Pair:
    """The pair whose source is the VM's cloud; `name` if given must be that one."""
    pairs = await store.list_pairs(connection)
    named = resolve("pair", name, pairs) if name else None
    for cloud in (await inventory.clouds(connection)).values():
        if cloud.name != vm.cloud or cloud.cloud.server_id != vm.machine.host.host.server_id:
            continue
        for pair in pairs:
            if pair.source_cloud == cloud.id and named in (None, pair):
                if not pair.active:
                    raise PairNotReady(pair.name, pair.job_id)
                return pair
    raise NotInSourceCloud(vm.name, vm.cloud, named.name if named is not None else "")


async def _target(connection: AsyncConnection, vm: VmView, pair: Pair, name: str) -> HostView:
    """The named host of the target cloud, or the connected one with most free space."""
    cloud = (await inventory.clouds(connection))[pair.target_cloud]
    candidates = [host for host in cloud.hosts if host.id != vm.machine.host.id]
    if name:
        named = resolve("host", name, (await inventory.hosts(connection)).values(), qualifier="server")
        if named.id not in {host.id for host in candidates}:
            raise HostNotInTarget(named.name, cloud.name, [host.name for host in candidates])
        return named
    ready = [host for host in candidates if host.connected and host.host.replication_address]
    if not ready:
        why = "it has none" if not candidates else "none of its hosts is connected"
        raise NoTargetHost(vm.name, cloud.name, why)
    return max(ready, key=lambda host: (host.host.free_bytes, host.name))


async def _unhindered(connection: AsyncConnection, jobs: Jobs, vm: VmView, target: HostView) -> None:
    """Nothing of an earlier protection is in the way."""
    for host in (vm.machine.host, target):
        job_id = await store.get_leftover(connection, vm.id, host.id)
        if job_id is not None and await jobs.is_open(job_id):
            raise LeftoverPending(vm.name, host.name, job_id)
    for fence in await store.list_fences(connection, vm.machine.host.id):
        if fence.vm_id == vm.id:
            raise Fenced(vm.name, vm.machine.host.name, fence.term)


def _protect_consequences(vm: VmView, pair: Pair, target: HostView) -> admin_pb2.ActionResponse:
    disks = vm.machine.machine.document.disks
    needed = sum(disk.size_bytes for disk in disks)
    policy = pair.policy
    more = [f"up to {count(policy.additional_points, 'hourly point')}"] if policy.additional_points else []
    more += [f"retention {schedules.keep_text(policy.to_proto().tiers)}"] if policy.tiers else []
    kept = "".join(f" and {one}" for one in more)
    cloud = pair.name.partition(":")[2]
    what = f"{count(len(disks), 'disk')} of {vm.name}, {size(needed)}, {'is' if len(disks) == 1 else 'are'}"
    answer = admin_pb2.ActionResponse(
        consequences=[
            f"{what} replicated from host {vm.machine.host.name} to host {target.name} (cloud {cloud})",
            f"a point every {span(policy.frequency_seconds)}, of which the newest{kept} {'are' if more else 'is'} kept",
            f"host {target.name} has {size(target.host.free_bytes)} free",
        ]
    )
    if target.host.free_bytes < needed:
        answer.warnings.append(f"host {target.name} has less free than the disks are when full")
    answer.warnings.extend(
        f"host {host.name} is not connected: the job waits for it"
        for host in (vm.machine.host, target)
        if not host.connected
    )
    return answer


def _protect_tasks(vm: VmView, target: HostView) -> list[TaskPlan]:
    args = {"vm": vm.id}
    return [
        TaskPlan(name=f"Check {vm.name}", kind="protect.check", args=args, stage=1),
        TaskPlan(name=f"Prepare host {target.name}", kind="protect.prepare", args=args, stage=2),
        TaskPlan(name="Enable replication", kind="protect.enable", args=args, stage=3),
        TaskPlan(name="Initial replication", kind="protect.initial", args=args, stage=4),
        TaskPlan(name="Finalize protection", kind="protect.finalize", args=args, stage=5),
        TaskPlan(name="Settle", kind="protect.settle", args=args, stage=6, always=True),
    ]


# ---- rules of unprotect -----------------------------------------------------------------------------------------


def _may_be_unprotected(vm: VmView, protection: ProtectionView) -> None:
    item = protection.item
    match item.phase:
        case Phase.UNPROTECTING:
            raise BeingUnprotected(vm.name, item.job_id)
        case Phase.PREPARING | Phase.INITIAL:
            raise ProtectRunning(vm.name, item.job_id)
        case Phase.FAILING_OVER:
            raise FailoverRunning(vm.name, item.job_id)


def _nothing_locked(vm: VmView, points: Sequence[types_pb2.Point], now: float) -> None:
    """Raises PointsLocked. The host would refuse too; here it is said before anything was stopped."""
    locked = [instant(point.locked_until) for point in points if instant(point.locked_until) > now]
    if locked:
        raise PointsLocked(vm.name, len(locked), rfc3339(max(locked)))


def _unprotect_consequences(
    vm: VmView, protection: ProtectionView, *, keep: bool, asked: bool
) -> admin_pb2.ActionResponse:
    points = count(protection.points, "point")
    answer = admin_pb2.ActionResponse()
    if protection.item.phase is Phase.FAILED_OVER:
        answer.consequences.append(f"{vm.name} goes on running on host {protection.target_host}, unprotected")
        answer.consequences.append(f"the old VM on host {protection.source_host} stays fenced")
        if asked:
            answer.warnings.append(f"the replica is not deleted: {vm.name} runs from it")
        return answer
    answer.consequences.append(f"replication of {vm.name} stops; the VM itself is not touched")
    done = "is kept, but no longer managed" if keep else "is deleted"
    answer.consequences.append(f"the replica on host {protection.target_host} with its {points} {done}")
    answer.warnings.extend(
        f"host {side.host} is not connected: it cleans up when it is again"
        for side in (protection.source, protection.target)
        if not side.connected and not (keep and side is protection.target)
    )
    return answer


def _unprotect_tasks(item: Protected, *, keep: bool) -> list[TaskPlan]:
    """None of them can be cancelled: half unprotected is nothing anybody wants."""
    tasks = []
    if item.phase is not Phase.FAILED_OVER:
        args = {"vm": item.vm_id, "host": item.source_host}
        tasks.append(TaskPlan(name="Stop tracking", kind="unprotect.forget", args=args, stage=1, always=True))
        if not keep:
            args = {"vm": item.vm_id, "host": item.target_host}
            tasks.append(TaskPlan(name="Delete the replica", kind="unprotect.delete", args=args, stage=1, always=True))
    finish = TaskPlan(name="Finish", kind="unprotect.finish", args={"vm": item.vm_id}, stage=2, always=True)
    return [*tasks, finish]
