"""Tasks of the jobs pair.create, vm.protect, vm.unprotect and vm.clean-up. Each may be run again from its start."""

import dataclasses
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.inventory import service as inventory
from coordinator.inventory import store as inventory_store
from coordinator.inventory.model import disks_of, instant
from coordinator.jobs import Jobs, TaskContext
from coordinator.protection import preflight, store
from coordinator.protection.desired import Desired
from coordinator.protection.errors import DisksChanged, Overtaken
from coordinator.protection.hosts import COMMAND_SECONDS, clean_up, clean_up_later, tell
from coordinator.protection.model import Phase, Protected
from coordinator.protection.pairs import usable
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.units import rfc3339, size


class Steps:
    """`desired` publishes what the tasks decide; `register` before jobs start."""

    def __init__(self, jobs: Jobs, desired: Desired) -> None:
        self._jobs, self._desired = jobs, desired

    def register(self) -> None:
        for kind, task in (
            ("pair.check", self._check_cloud),
            ("pair.activate", self._activate_pair),
            ("pair.settle", self._settle_pair),
            ("protect.check", self._check_source),
            ("protect.prepare", self._prepare_target),
            ("protect.enable", self._enable),
            ("protect.initial", self._initial),
            ("protect.finalize", self._finalize),
            ("protect.settle", self._settle),
            ("unprotect.forget", self._forget_source),
            ("unprotect.delete", self._delete_replica),
            ("unprotect.finish", self._finish),
            ("clean-up.replica", self._late_replica),
            ("clean-up.source", self._late_source),
        ):
            self._jobs.handler(kind, task)
        preflight.register(self._jobs)

    # ---- pair.create --------------------------------------------------------------------------------------------

    async def _check_cloud(self, context: TaskContext) -> None:
        async with context.database.read() as connection:
            usable((await inventory.clouds(connection))[str(context.args["cloud"])])

    async def _activate_pair(self, context: TaskContext) -> None:
        async with context.database.write() as connection:
            await store.activate_pair(connection, str(context.args["pair"]))

    async def _settle_pair(self, context: TaskContext) -> None:
        """A pair that was not found good frees its clouds."""
        pair_id = str(context.args["pair"])
        async with context.database.write() as connection:
            await store.alone(connection)
            pair = next((one for one in await store.list_pairs(connection) if one.id == pair_id), None)
            if pair is None or pair.active:
                return
            await store.delete_pair(connection, pair_id)
            await _record(connection, context, "pair.create", f"pair/{pair.name}", outcome="rolled back")

    # ---- vm.protect ---------------------------------------------------------------------------------------------

    async def _check_source(self, context: TaskContext) -> None:
        item = await _mine(context, Phase.PREPARING)
        machine, _ = await preflight.ask_source(context, item, timeout=COMMAND_SECONDS)
        machine.ClearField("native")  # no inventory has it
        async with context.database.write() as connection:
            item = await _mine_in(connection, context, Phase.PREPARING)
            # The answer is the newest description there is; the target is prepared for it.
            known = await inventory_store.list_machines(connection, host_id=item.source_host, vm_id=item.vm_id)
            await inventory_store.put_machine(
                connection, machine, host_id=item.source_host, now=context.clock.now(), known=bool(known)
            )
            changed = dataclasses.replace(item, vm_name=machine.name, disks=disks_of(machine))
            await store.update_protected(connection, changed)

    async def _prepare_target(self, context: TaskContext) -> None:
        item = await _mine(context, Phase.PREPARING)
        # Asked anew, for what is too large to be kept here: the VM in its hypervisor's own words.
        machine, found = await preflight.ask_source(context, item, timeout=COMMAND_SECONDS)
        if disks_of(machine) != item.disks:
            raise DisksChanged(item.vm_name)
        order = commands_pb2.HostCommand(
            host_id=item.target_host,
            prepare_replica=commands_pb2.PrepareReplica(machine=machine, term=item.term, existing=dict(item.existing)),
        )
        result = await tell(context, order, timeout=COMMAND_SECONDS)
        note = "; ".join(filter(None, (found, result.note)))
        if note:
            await context.set_result(note=note)

    async def _enable(self, context: TaskContext) -> None:
        async with context.database.write() as connection:
            item = await _mine_in(connection, context, Phase.PREPARING, Phase.INITIAL)
            if item.phase is Phase.PREPARING:
                enabled = self._desired.granted(dataclasses.replace(item, phase=Phase.INITIAL))
                await store.update_protected(connection, enabled)
                await self._desired.publish(connection, [item.source_host, item.target_host])
        self._desired.changed()

    async def _initial(self, context: TaskContext) -> None:
        shown: Progress | None = None  # so that weeks of waiting for a disk in the post are not a write a second

        async def check() -> types_pb2.Point | None:
            item = await _mine(context, Phase.INITIAL)
            async with context.database.read() as connection:
                newest = (await store.newest_points(connection, item.vm_id)).get(item.vm_id)
                said = await store.list_statuses(connection, item.vm_id)
            nonlocal shown
            told = _progress(item, said, context.clock.now())
            if (
                told is not None
                and told != shown
                and await context.progress(told.percent, told.done, told.total, told.message)
            ):
                shown = told
            return newest[1] if newest is not None else None

        point = await context.until(check, timeout=None)
        await context.set_result(cycle=str(point.cycle), instant=rfc3339(instant(point.instant)))

    async def _finalize(self, context: TaskContext) -> None:
        async with context.database.write() as connection:
            item = await _mine_in(connection, context, Phase.INITIAL, Phase.PROTECTED)
            if item.phase is Phase.PROTECTED:
                return
            await store.update_protected(connection, dataclasses.replace(item, phase=Phase.PROTECTED))
            await self._desired.publish(connection, [item.source_host, item.target_host])
            await _record(connection, context, "vm.protected", f"vm/{item.vm_name}")
        self._desired.changed()

    async def _settle(self, context: TaskContext) -> None:
        """What did not become a protected VM leaves nothing behind: no assignment, no replica, no tracking."""
        async with context.database.write() as connection:
            await store.alone(connection)
            item = await store.get_protected(connection, str(context.args["vm"]))
            if item is None or item.job_id != context.job_id:
                return
            if item.phase not in (Phase.PREPARING, Phase.INITIAL, Phase.UNPROTECTING):
                return
            await store.update_protected(connection, dataclasses.replace(item, phase=Phase.UNPROTECTING))
            await self._desired.publish(connection, [item.source_host, item.target_host])
        self._desired.changed()
        await clean_up(context, self._jobs, _forget(item), vm_id=item.vm_id, what=f"stop tracking {item.vm_name}")
        await clean_up(context, self._jobs, _delete(item), vm_id=item.vm_id, what=f"delete replica of {item.vm_name}")
        async with context.database.write() as connection:
            await store.alone(connection)
            await store.delete_protected(connection, item.vm_id)
            await _record(connection, context, "vm.protect", f"vm/{item.vm_name}", outcome="rolled back")

    # ---- vm.unprotect, vm.clean-up ------------------------------------------------------------------------------

    async def _forget_source(self, context: TaskContext) -> None:
        item = await _mine(context, Phase.UNPROTECTING)
        await clean_up(context, self._jobs, _forget(item), vm_id=item.vm_id, what=f"stop tracking {item.vm_name}")

    async def _delete_replica(self, context: TaskContext) -> None:
        item = await _mine(context, Phase.UNPROTECTING)
        await clean_up(context, self._jobs, _delete(item), vm_id=item.vm_id, what=f"delete replica of {item.vm_name}")

    async def _finish(self, context: TaskContext) -> None:
        async with context.database.write() as connection:
            await store.alone(connection)
            item = await store.get_protected(connection, str(context.args["vm"]))
            if item is None or item.job_id != context.job_id:
                return
            await store.delete_protected(connection, item.vm_id)
            await _record(connection, context, "vm.unprotected", f"vm/{item.vm_name}")

    async def _late_replica(self, context: TaskContext) -> None:
        vm_id, host_id = str(context.args["vm"]), str(context.args["host"])
        remove = commands_pb2.RemoveReplica(vm_id=vm_id)
        await clean_up_later(context, commands_pb2.HostCommand(host_id=host_id, remove_replica=remove), vm_id=vm_id)

    async def _late_source(self, context: TaskContext) -> None:
        vm_id, host_id = str(context.args["vm"]), str(context.args["host"])
        forget = commands_pb2.ForgetSource(vm_id=vm_id)
        await clean_up_later(context, commands_pb2.HostCommand(host_id=host_id, forget_source=forget), vm_id=vm_id)


async def _mine(context: TaskContext, *phases: Phase) -> Protected:
    async with context.database.read() as connection:
        return await _look(connection, context, phases)


async def _mine_in(connection: AsyncConnection, context: TaskContext, *phases: Phase) -> Protected:
    """In a write transaction, of which it must be the first statement."""
    await store.alone(connection)
    return await _look(connection, context, phases)


async def _look(connection: AsyncConnection, context: TaskContext, phases: Sequence[Phase]) -> Protected:
    """The task's VM while this job decides about it. Raises Overtaken."""
    vm_id = str(context.args["vm"])
    item = await store.get_protected(connection, vm_id)
    if item is None or item.job_id != context.job_id or item.phase not in phases:
        raise Overtaken(item.vm_name if item is not None else vm_id)
    return item


def _forget(item: Protected) -> commands_pb2.HostCommand:
    return commands_pb2.HostCommand(host_id=item.source_host, forget_source=commands_pb2.ForgetSource(vm_id=item.vm_id))


def _delete(item: Protected) -> commands_pb2.HostCommand:
    return commands_pb2.HostCommand(
        host_id=item.target_host, remove_replica=commands_pb2.RemoveReplica(vm_id=item.vm_id)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    done: int  # bytes
    total: int
    message: str

    @property
    def percent(self) -> int:
        return self.done * 100 // self.total if self.total else 0


def _progress(item: Protected, said: Mapping[tuple[str, str], store.Reported], now: float) -> Progress | None:
    """The source's bytes; else what is waited for, and what a person has to do for it. None: nothing is known."""
    if item.initial_start > now:
        return Progress(
            0, 0, f"waits until {rfc3339(item.initial_start)}; now: twinsite vm start-initial {item.vm_name}"
        )
    source, target = (
        said[key].status if (key := (item.vm_id, host)) in said else types_pb2.ReplicationStatus()
        for host in (item.source_host, item.target_host)
    )
    if target.awaiting_seed:
        name = item.vm_name
        way = f"twinsite seed export {name} --to PATH, carry it, twinsite seed import {name} --from PATH"
        return Progress(0, 0, f"waits for its seed: {way}")
    total = min(source.initial_total_bytes, 2**62)
    done = min(source.initial_done_bytes, total)
    if not source.state:
        return None
    blocked = source.state == types_pb2.REPLICATION_STATE_BLOCKED
    message = f"waiting: {source.reason.message}"[:300] if blocked else f"{size(done)} of {size(total)}"
    return Progress(done, total, message)


async def _record(
    connection: AsyncConnection, context: TaskContext, action: str, target: str, *, outcome: str = "ok"
) -> None:
    await audit.record(
        connection,
        actor=f"job/{context.job_id}",
        action=action,
        target=target,
        outcome=outcome,
        now=context.clock.now(),
    )
