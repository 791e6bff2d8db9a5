"""Recovery points that people keep, name and lock, and checks of what is kept: use cases and their tasks."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Final

from coordinator import audit
from coordinator.inventory.model import instant
from coordinator.inventory.mutation import Mutation
from coordinator.jobs import Jobs, TaskContext, TaskPlan
from coordinator.jobs.model import JSON
from coordinator.protection import store as protection
from coordinator.protection.hosts import COMMAND_SECONDS, tell
from coordinator.protection.model import Protected
from coordinator.protection.views import ProtectionView, VmView, look
from coordinator.recovery.errors import (
    DamageRemains,
    InvalidLock,
    LockNotShortened,
    NoLongerProtected,
    NothingToMark,
)
from coordinator.recovery.service import point_of, protected_of
from coordinator.store.engine import Database
from twinsite import names
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import Clock
from twinsite.units import duration, rfc3339, size

LONGEST_LOCK: Final = 10 * 366 * 86400  # seconds
MARK: Final = "point.mark"
VERIFY: Final = "vm.verify"
_SLACK: Final = 1.0  # seconds: a lock renewed to the same instant is not a shorter one
_SHOWN: Final = 100  # damages in a job's result


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is to be changed of one point; None leaves as it is."""

    cycle: int
    keep: bool | None = None
    name: str | None = None
    lock_seconds: int | None = None

    @classmethod
    def from_proto(cls, request: admin_pb2.MarkPointRequest) -> "Mark":
        """Raises NothingToMark, InvalidName, InvalidLock."""
        made = cls(
            cycle=request.cycle,
            keep=request.keep if request.HasField("keep") else None,
            name=request.name if request.HasField("name") else None,
            lock_seconds=request.lock_seconds if request.HasField("lock_seconds") else None,
        )
        if made.keep is None and made.name is None and made.lock_seconds is None:
            raise NothingToMark
        if made.name:
            names.check(made.name, "recovery point")
        if made.lock_seconds is not None and not 0 < made.lock_seconds <= LONGEST_LOCK:
            raise InvalidLock(made.lock_seconds, LONGEST_LOCK // 86400)
        return made


class Marks:
    """`register` before jobs start."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database, self._clock, self._jobs = database, clock, jobs

    def register(self) -> None:
        self._jobs.handler(MARK, _mark)
        self._jobs.handler(VERIFY, _verify)

    async def mark(self, by: Mutation, name: str, wanted: Mark, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Have the target host keep, name or lock a point. A lock is lengthened at most: LockNotShortened."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await protection.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, view = protected_of(await look(connection, now), name)
            point = point_of(vm, await protection.list_points(connection, vm.id), wanted.cycle)
            until = now + wanted.lock_seconds if wanted.lock_seconds is not None else 0.0
            if until and until < instant(point.locked_until) - _SLACK:
                raise LockNotShortened(vm.name, point.cycle, rfc3339(instant(point.locked_until)))
            answer = _mark_consequences(vm, view, point, wanted, until, now)
            if dry_run or not answer.consequences:
                return answer
            args: dict[str, JSON] = {"vm": vm.id, "cycle": point.cycle, "until": until}
            args |= {"keep": wanted.keep} if wanted.keep is not None else {}
            args |= {"name": wanted.name} if wanted.name is not None else {}
            answer.job_id = await self._jobs.submit(
                connection,
                kind=MARK,
                target=f"vm/{vm.name}",
                tasks=[TaskPlan(name=f"Mark point {point.cycle} on {view.target_host}", kind=MARK, args=args, stage=1)],
                created_by=by.actor,
                request_id=by.request_id,
                result={"vm": vm.id, "cycle": str(point.cycle)},
            )
            facts = {"cycle": str(point.cycle), "job": answer.job_id}
            facts |= {"kept": str(wanted.keep).lower()} if wanted.keep is not None else {}
            facts |= {"name": wanted.name} if wanted.name is not None else {}
            facts |= {"locked_until": rfc3339(until)} if until else {}
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)

    async def verify(
        self, by: Mutation, name: str, *, cycle: int, repair: bool, dry_run: bool
    ) -> admin_pb2.ActionResponse:
        """Have the target host read and check its replica, or what one point stands on (0: everything)."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await protection.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, view = protected_of(await look(connection, now), name)
            points = await protection.list_points(connection, vm.id)
            if cycle:
                point_of(vm, points, cycle)
            stored = sum(point.stored_bytes for point in points)
            answer = _verify_consequences(vm, view, cycle, stored, repair=repair)
            if dry_run:
                return answer
            what = f"Verify point {cycle}" if cycle else "Verify the replica"
            args: dict[str, JSON] = {"vm": vm.id, "cycle": cycle, "repair": repair}
            answer.job_id = await self._jobs.submit(
                connection,
                kind=VERIFY,
                target=f"vm/{vm.name}",
                tasks=[TaskPlan(name=f"{what} on {view.target_host}", kind=VERIFY, args=args, stage=1)],
                created_by=by.actor,
                request_id=by.request_id,
                result={"vm": vm.id},
            )
            facts = {"job": answer.job_id, "repair": str(repair).lower()} | ({"cycle": str(cycle)} if cycle else {})
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)


def _mark_consequences(
    vm: VmView, view: ProtectionView, point: types_pb2.Point, wanted: Mark, until: float, now: float
) -> admin_pb2.ActionResponse:
    """Without a consequence there is nothing to be done."""
    answer = admin_pb2.ActionResponse()
    which = f"point {point.cycle} of {vm.name}"
    locked = instant(point.locked_until)
    if wanted.keep is True and not point.kept:
        answer.consequences.append(f"{which} is kept until it is unpinned, whatever the policy keeps")
    if wanted.keep is False and point.kept:
        stays = f"stays locked until {rfc3339(locked)}" if locked > now else "may go with the next maintenance"
        answer.consequences.append(f"{which} is kept by its policy alone, and {stays}")
    if wanted.name is not None and wanted.name != point.name:
        answer.consequences.append(f"{which} is named {wanted.name}" if wanted.name else f"{which} loses its name")
    if until and until > locked + _SLACK:
        answer.consequences.append(
            f"{which} cannot be deleted by anybody before {rfc3339(until)}, in {duration(until - now)};"
            " that cannot be undone, and the replica cannot be deleted before either"
        )
    if not answer.consequences:
        answer.warnings.append(f"nothing was changed: {which} is in this state already")
    elif not view.target.connected:
        answer.warnings.append(f"host {view.target_host} is not connected: the job waits for it")
    return answer


def _verify_consequences(
    vm: VmView, view: ProtectionView, cycle: int, stored: int, *, repair: bool
) -> admin_pb2.ActionResponse:
    what = f"what point {cycle} stands on" if cycle else f"all that host {view.target_host} keeps"
    told = f", {size(stored)} and the base," if stored and not cycle else ""
    answer = admin_pb2.ActionResponse(
        consequences=[f"{what} of {vm.name}{told} is read and compared with its fingerprints; replication goes on"]
    )
    if repair:
        answer.consequences.append("damaged clusters are mended from other layers, or sent anew by the source")
        if not view.source.connected:
            answer.warnings.append(
                f"host {view.source_host} is not connected: what it must send stays damaged till then"
            )
    if not view.target.connected:
        answer.warnings.append(f"host {view.target_host} is not connected: the job waits for it")
    return answer


# ---- tasks ------------------------------------------------------------------------------------------------------


async def _mark(context: TaskContext) -> None:
    item = await _item(context)
    args = context.args
    order = commands_pb2.MarkPoint(vm_id=item.vm_id, cycle=_whole(args, "cycle"))
    if "keep" in args:
        order.keep = bool(args["keep"])
    if "name" in args:
        order.name = str(args["name"])
    until = args["until"]
    if isinstance(until, float) and until:  # its host counts from when it hears of it, which may be later
        order.lock_seconds = max(1, math.ceil(until - context.clock.now()))
    result = await tell(
        context, commands_pb2.HostCommand(host_id=item.target_host, mark_point=order), timeout=COMMAND_SECONDS
    )
    point = result.point
    if point.vm_id == item.vm_id and point.cycle == order.cycle and instant(point.instant):
        async with context.database.write() as connection:
            await protection.put_point(connection, item.target_host, point)
    facts = {"kept": str(point.kept).lower(), "name": point.name[: names.LONGEST]}
    if instant(point.locked_until):
        facts["locked_until"] = rfc3339(instant(point.locked_until))
    await context.set_result(**facts)


async def _verify(context: TaskContext) -> None:
    """Damage that stays makes the job complete with errors."""
    item = await _item(context)
    order = commands_pb2.VerifyReplica(
        vm_id=item.vm_id, cycle=_whole(context.args, "cycle"), repair=bool(context.args["repair"])
    )
    result = await tell(context, commands_pb2.HostCommand(host_id=item.target_host, verify_replica=order), timeout=None)
    found = result.verified
    await context.set_result(
        checked_bytes=str(found.checked_bytes),
        damaged_clusters=str(found.damaged_clusters),
        repaired_clusters=str(found.repaired_clusters),
        wanted_clusters=str(found.wanted_clusters),
        damage=json.dumps([_damage(one) for one in found.damage[:_SHOWN]]),
    )
    async with context.database.write() as connection:
        await audit.record(
            connection,
            actor=f"job/{context.job_id}",
            action="vm.verified",
            target=f"vm/{item.vm_name}",
            outcome="ok",
            facts={"damaged": str(found.damaged_clusters), "repaired": str(found.repaired_clusters)},
            now=context.clock.now(),
        )
    if found.damaged_clusters:
        left, asked = found.damaged_clusters, found.wanted_clusters
        await context.warn(DamageRemains(item.vm_name, left, asked, found.tried_clusters, repair=order.repair))


def _damage(one: commands_pb2.Damage) -> dict[str, JSON]:
    return {
        "disk": one.disk_id[:36],
        "file": one.file[:200],
        "cluster": one.cluster,
        "whole_file": one.whole_file,
        "problem": one.problem[:200],
        "repaired": one.repaired,
        "points": list(one.points[:_SHOWN]),
    }


async def _item(context: TaskContext) -> Protected:
    vm_id = str(context.args["vm"])
    async with context.database.read() as connection:
        item = await protection.get_protected(connection, vm_id)
    if item is None:
        raise NoLongerProtected(vm_id)
    return item


def _whole(args: Mapping[str, JSON], name: str) -> int:
    value = args[name]
    return value if isinstance(value, int) else 0
