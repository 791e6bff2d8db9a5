"""Initial copies on media: use cases, and the tasks of the jobs seed.export and seed.import."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.access import store as access
from coordinator.inventory import service as inventory
from coordinator.inventory.model import resolve
from coordinator.inventory.mutation import Mutation
from coordinator.jobs import Jobs, TaskContext, TaskPlan
from coordinator.pki.certificates import Issued, pem
from coordinator.protection import store
from coordinator.protection.errors import (
    BeingUnprotected,
    NotOffline,
    NotProtected,
    NotReplicating,
    Overtaken,
    SeedNotAwaited,
    SeedRunning,
    SeedTooEarly,
)
from coordinator.protection.hosts import HostIsGone, tell
from coordinator.protection.initial import good_path
from coordinator.protection.model import SWITCHED, Phase, Protected
from coordinator.protection.views import ProtectionView, VmView, look
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import Clock
from twinsite.units import rfc3339, size

EXPORT: Final = "seed.export"
IMPORT: Final = "seed.import"
CHECKS: Final = {EXPORT: "seed.check-export", IMPORT: "seed.check-import"}  # what a dry run asks the host
_CHECK_SECONDS: Final = 600.0


class Seeds:
    """`register` before jobs start."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database, self._clock, self._jobs = database, clock, jobs

    def register(self) -> None:
        self._jobs.handler(EXPORT, _export)
        self._jobs.handler(IMPORT, _import)
        self._jobs.handler(CHECKS[EXPORT], _check_export)
        self._jobs.handler(CHECKS[IMPORT], _check_import)

    async def export(self, by: Mutation, name: str, path: str, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Write the disks as they are now to a folder at the source host, for the target host's eyes only."""
        return await self._begin(by, name, path, EXPORT, dry_run=dry_run)

    async def import_(self, by: Mutation, name: str, path: str, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Read such a folder into the replica, at the target host."""
        return await self._begin(by, name, path, IMPORT, dry_run=dry_run)

    async def _begin(self, by: Mutation, name: str, path: str, kind: str, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Raises InvalidPath, NotProtected, BeingUnprotected, NotReplicating, NotOffline, SeedTooEarly,
        SeedNotAwaited, SeedRunning.
        """
        good_path(path)
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = _awaited(await look(connection, now), name, now)
            await self._alone(vm)
            answer = _consequences(vm, protection, path, kind)
            side = protection.source if kind == EXPORT else protection.target
            if dry_run:
                if side.connected:
                    answer.job_id = await self._check(connection, by, vm, side.host, path, CHECKS[kind])
                else:
                    answer.warnings.append(f"it is not known whether {path} will do: only the host can say")
                return answer
            what = f"Write the seed on {side.host}" if kind == EXPORT else f"Read the seed in on {side.host}"
            answer.job_id = await self._jobs.submit(
                connection,
                kind=kind,
                target=f"vm/{vm.name}",
                tasks=[TaskPlan(name=what, kind=kind, args={"vm": vm.id, "path": path}, stage=1)],
                created_by=by.actor,
                request_id=by.request_id,
                result={"vm": vm.id, "path": path},
            )
            facts = {"path": path, "host": side.host, "job": answer.job_id}
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)

    async def _check(
        self, connection: AsyncConnection, by: Mutation, vm: VmView, host: str, path: str, kind: str
    ) -> str:
        """A job that asks the host whether the path will do; it changes nothing there."""
        return await self._jobs.submit(
            connection,
            kind=kind,
            target=f"vm/{vm.name}",
            tasks=[TaskPlan(name=f"Ask {host}", kind=kind, args={"vm": vm.id, "path": path}, stage=1)],
            created_by=by.actor,
            request_id=by.request_id,
            result={"vm": vm.id, "path": path},
        )

    async def _alone(self, vm: VmView) -> None:
        """One seed of a VM at a time. Raises SeedRunning."""
        for state in ("not_started", "in_progress"):
            for job in await self._jobs.list(state=state, target=f"vm/{vm.name}"):
                if job.kind in (EXPORT, IMPORT) and job.result.get("vm") == vm.id:
                    raise SeedRunning(vm.name, job.kind, job.id)


def _awaited(views: Sequence[VmView], name: str, now: float) -> tuple[VmView, ProtectionView]:
    """The VM of that name, whose replica waits for its seed."""
    vm = resolve("vm", name, views, qualifier="cloud")
    if vm.protection is None:
        raise NotProtected(vm.name)
    item = vm.protection.item
    if item.phase is Phase.UNPROTECTING:
        raise BeingUnprotected(vm.name, item.job_id)
    if item.phase in SWITCHED:
        raise NotReplicating(vm.name, vm.protection.health.state)
    if not item.offline:
        raise NotOffline(vm.name)
    if item.phase is Phase.PROTECTED:
        raise SeedNotAwaited(vm.name)
    if item.initial_start > now:
        raise SeedTooEarly(vm.name, f"its initial replication begins at {rfc3339(item.initial_start)}")
    status = vm.protection.target.status
    if status is None or not (status.awaiting_seed or status.committed_cycle):
        host = vm.protection.target.host
        raise SeedTooEarly(vm.name, f"host {host} has not prepared its place yet; that takes one cycle")
    if not status.awaiting_seed:
        raise SeedNotAwaited(vm.name)
    return vm, vm.protection


def _consequences(vm: VmView, protection: ProtectionView, path: str, kind: str) -> admin_pb2.ActionResponse:
    answer = admin_pb2.ActionResponse()
    source, target = protection.source, protection.target
    if kind == EXPORT:
        total = size(sum(disk.size_bytes for disk in vm.machine.machine.document.disks))
        answer.consequences.append(
            f"the disks of {vm.name}, {total} when full, are read on host {source.host} and written to {path} there"
        )
        answer.consequences.append(f"encrypted, so that host {target.host} alone can read them; replication goes on")
        side = source
    else:
        answer.consequences.append(f"{path} of host {target.host} is read into the replica of {vm.name}")
        answer.consequences.append(
            "points of instants after the export can be recovered from then on, older ones never"
        )
        side = target
    if not side.connected:
        answer.warnings.append(f"host {side.host} is not connected: the job waits for it")
    return answer


# ---- tasks ------------------------------------------------------------------------------------------------------


async def _export(context: TaskContext) -> None:
    item, order = await _export_order(context)
    result = await tell(context, commands_pb2.HostCommand(host_id=item.source_host, seed_export=order), timeout=None)
    await _done(context, item, result, "vm.seed-exported")


async def _check_export(context: TaskContext) -> None:
    item, order = await _export_order(context)
    command = commands_pb2.HostCommand(host_id=item.source_host, check_seed_export=order)
    await context.set_result(note=(await tell(context, command, timeout=_CHECK_SECONDS)).note)


async def _export_order(context: TaskContext) -> tuple[Protected, commands_pb2.SeedExport]:
    item, addresses = await _look(context)
    async with context.database.read() as connection:
        target = await access.get_host(connection, item.target_host)
    if target is None:
        raise HostIsGone(item.target_host)
    return item, commands_pb2.SeedExport(
        vm_id=item.vm_id,
        path=str(context.args["path"]),
        target_certificate=pem(Issued.of(target.chain).certificate),
        hypervisor_addresses=addresses,
    )


async def _import(context: TaskContext) -> None:
    item, order = await _import_order(context)
    result = await tell(context, commands_pb2.HostCommand(host_id=item.target_host, seed_import=order), timeout=None)
    await _done(context, item, result, "vm.seed-imported")


async def _check_import(context: TaskContext) -> None:
    item, order = await _import_order(context)
    command = commands_pb2.HostCommand(host_id=item.target_host, check_seed_import=order)
    await context.set_result(note=(await tell(context, command, timeout=_CHECK_SECONDS)).note)


async def _import_order(context: TaskContext) -> tuple[Protected, commands_pb2.SeedImport]:
    item, addresses = await _look(context)
    return item, commands_pb2.SeedImport(
        vm_id=item.vm_id, path=str(context.args["path"]), hypervisor_addresses=addresses
    )


async def _look(context: TaskContext) -> tuple[Protected, list[str]]:
    """The VM, and the addresses of all hypervisor hosts: media must not lie on one of them. Raises Overtaken."""
    vm_id = str(context.args["vm"])
    async with context.database.read() as connection:
        item = await store.get_protected(connection, vm_id)
        addresses = await _addresses(connection)
    if item is None or item.phase is not Phase.INITIAL:
        raise Overtaken(item.vm_name if item is not None else vm_id)
    return item, addresses


async def _addresses(connection: AsyncConnection) -> list[str]:
    told = (view.host.replication_address.rpartition(":")[0] for view in (await inventory.hosts(connection)).values())
    return sorted({address.strip("[]") for address in told if address})


async def _done(context: TaskContext, item: Protected, result: commands_pb2.CommandResult, action: str) -> None:
    await context.set_result(seed=result.seed_id[:100], note=result.note)
    async with context.database.write() as connection:
        await audit.record(
            connection,
            actor=f"job/{context.job_id}",
            action=action,
            target=f"vm/{item.vm_name}",
            outcome="ok",
            facts={"seed": result.seed_id[:100], "path": str(context.args["path"])},
            now=context.clock.now(),
        )
