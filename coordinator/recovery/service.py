"""Tests and failovers of single VMs: what is refused, what is foretold, what is enqueued."""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Final

from coordinator.inventory.model import instant, resolve
from coordinator.inventory.mutation import Mutation
from coordinator.jobs import Jobs, TaskPlan
from coordinator.jobs.model import JSON
from coordinator.protection import store as protection_store
from coordinator.protection.errors import BeingUnprotected, NotProtected
from coordinator.protection.model import SWITCHED, Phase
from coordinator.protection.service import failover_runs
from coordinator.protection.views import ProtectionView, VmView, look
from coordinator.recovery import store
from coordinator.recovery.errors import AlreadyFailedOver, FailoverIsRunning, NoPoint, PointLost, PointMissing
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.units import duration

STOP_SECONDS: Final = 20  # a source that was asked to stop gets no longer


class Recoveries:
    """`jobs` runs the tasks of coordinator.recovery.steps."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database, self._clock, self._jobs = database, clock, jobs

    async def points(self, name: str) -> list[types_pb2.Point]:
        """Recovery points of a VM, newest first; none when it is not protected. Raises Unknown, Ambiguous."""
        async with self._database.read() as connection:
            vm = resolve("vm", name, await look(connection, self._clock.now()), qualifier="cloud")
            return await protection_store.list_points(connection, vm.id)

    # ---- test ---------------------------------------------------------------------------------------------------

    async def test(self, by: Mutation, name: str, *, cycle: int, dry_run: bool) -> admin_pb2.ActionResponse:
        """Start a throw-away copy from a point (0: the newest). Replication goes on."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await protection_store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = protected_of(await look(connection, now), name)
            _settled(vm, protection)
            point = point_of(vm, await protection_store.list_points(connection, vm.id), cycle)
            age = duration(max(0.0, now - instant(point.instant)))
            answer = admin_pb2.ActionResponse(
                consequences=[
                    f"a copy of {vm.name} starts on host {protection.target_host} from point {point.cycle}, {age} old",
                    "it is connected to no network; replication goes on",
                ]
            )
            if not protection.target.connected:
                answer.warnings.append(f"host {protection.target_host} is not connected: the job waits for it")
            if dry_run:
                return answer
            test_id = f"t-{secrets.token_hex(6)}"
            args = {"vm": vm.id, "test": test_id}
            answer.job_id = await self._jobs.submit(
                connection,
                kind="vm.test",
                target=f"vm/{vm.name}",
                tasks=[
                    TaskPlan(name=f"Start the copy on {protection.target_host}", kind="test.start", args=args, stage=1),
                    TaskPlan(name="Settle", kind="test.settle", args=args, stage=2, always=True),
                ],
                created_by=by.actor,
                request_id=by.request_id,
                result={"test": test_id, "vm": vm.id},
            )
            await store.insert_test(
                connection,
                store.Test(
                    id=test_id,
                    vm_id=vm.id,
                    host_id=protection.item.target_host,
                    cycle=point.cycle if cycle else 0,  # newest: as of when the host starts it
                    state=store.STARTING,
                    job_id=answer.job_id,
                    created=now,
                ),
            )
            facts = {"test": test_id, "cycle": str(cycle or "newest"), "job": answer.job_id}
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)

    async def clean_up(self, by: Mutation, name: str, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """End every test of a VM; without one nothing has to be done and there is no job."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await protection_store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm = resolve("vm", name, await look(connection, now), qualifier="cloud")
            found = [
                test
                for test in (await store.list_tests(connection, vm.id)).get(vm.id, [])
                if test.state != store.STARTING or not await self._jobs.is_open(test.job_id)
            ]
            answer = admin_pb2.ActionResponse(
                consequences=[f"test {test.id} is stopped and its disks are deleted" for test in found]
            )
            if dry_run or not found:
                return answer
            answer.job_id = await self._jobs.submit(
                connection,
                kind="vm.test-cleanup",
                target=f"vm/{vm.name}",
                tasks=[
                    TaskPlan(
                        name=f"Delete test {test.id}",
                        kind="test.clean-up",
                        args={"vm": vm.id, "test": test.id},
                        stage=1,
                    )
                    for test in found
                ],
                created_by=by.actor,
                request_id=by.request_id,
            )
            for test in found:
                await store.set_test(connection, test.id, state=store.CLEANING, job_id=answer.job_id)
            facts = {"tests": " ".join(test.id for test in found), "job": answer.job_id}
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)

    # ---- failover -----------------------------------------------------------------------------------------------

    async def fail_over(
        self, by: Mutation, name: str, *, cycle: int, shutdown_source: bool, dry_run: bool
    ) -> admin_pb2.ActionResponse:
        """Run the VM at its target from a point (0: the newest), whatever the source or its health.

        Raises NotProtected, NoPoint, PointMissing, PointLost, AlreadyFailedOver, FailoverIsRunning, and of the one who
        asks ReasonMissing and LoginTooOld; nothing else is a reason.
        """
        now = self._clock.now()
        async with self._database.write() as connection:
            await protection_store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            vm, protection = protected_of(await look(connection, now), name)
            item = protection.item
            if item.phase is Phase.FAILED_OVER:
                raise AlreadyFailedOver(vm.name, protection.target_host, item.term)
            if await failover_runs(self._jobs, item):
                raise FailoverIsRunning(vm.name, item.job_id)
            points = await protection_store.list_points(connection, vm.id)
            point = point_of(vm, points, cycle)
            answer = _failover_consequences(vm, protection, point, now)
            newer = sum(other.cycle > point.cycle and not other.lost for other in points)
            if newer:
                answer.warnings.insert(0, f"{newer} newer points exist")
            if shutdown_source:
                answer.consequences.insert(
                    0, f"{vm.name} is stopped on host {protection.source_host} if that is possible"
                )
            if dry_run:
                return answer
            by.deliberate()
            loss = max(0.0, now - instant(point.instant))
            answer.job_id = await self._jobs.submit(
                connection,
                kind="vm.failover",
                target=f"vm/{vm.name}",
                tasks=_failover_tasks(vm, protection, cycle, shutdown_source=shutdown_source),
                created_by=by.actor,
                request_id=by.request_id,
                result={
                    "vm": vm.id,
                    "target_host": protection.target_host,
                    "rpo_age_seconds": f"{loss:.3f}",
                    "shown_cycle": str(point.cycle),
                },
            )
            # With a point its initial replication is done, whether its job has noticed or not.
            phase = Phase.PROTECTED if item.phase is Phase.INITIAL else item.phase
            taken = dataclasses.replace(item, phase=phase, job_id=answer.job_id)
            await protection_store.update_protected(connection, taken)
            facts = {
                "cycle": str(point.cycle) if cycle else f"newest ({point.cycle})",
                "loss_seconds": f"{loss:.1f}",
                "health": protection.health.health,
                "job": answer.job_id,
            }
            return await by.done(connection, f"vm/{vm.name}", answer, now=now, facts=facts)


def protected_of(views: list[VmView], name: str) -> tuple[VmView, ProtectionView]:
    """Raises Unknown, Ambiguous, NotProtected, BeingUnprotected."""
    vm = resolve("vm", name, views, qualifier="cloud")
    if vm.protection is None:
        raise NotProtected(vm.name)
    if vm.protection.item.phase is Phase.UNPROTECTING:
        raise BeingUnprotected(vm.name, vm.protection.item.job_id)
    return vm, vm.protection


def _settled(vm: VmView, protection: ProtectionView) -> None:
    item = protection.item
    if item.phase is Phase.FAILED_OVER:
        raise AlreadyFailedOver(vm.name, protection.target_host, item.term)
    if item.phase is Phase.FAILING_OVER:
        raise FailoverIsRunning(vm.name, item.job_id)


def point_of(vm: VmView, points: Sequence[types_pb2.Point], cycle: int) -> types_pb2.Point:
    """The point of a cycle, 0: the newest that can be used. Raises NoPoint, PointMissing, PointLost."""
    if not points or (not cycle and all(point.lost for point in points)):
        raise NoPoint(vm.name)
    point = next((point for point in points if point.cycle == cycle or not (cycle or point.lost)), None)
    if point is None:
        raise PointMissing(vm.name, cycle)
    if point.lost:
        raise PointLost(vm.name, cycle)
    return point


def _failover_consequences(
    vm: VmView, protection: ProtectionView, point: types_pb2.Point, now: float
) -> admin_pb2.ActionResponse:
    item = protection.item
    age = duration(max(0.0, now - instant(point.instant)))
    raised = item.phase in SWITCHED
    answer = admin_pb2.ActionResponse(
        consequences=[
            f"{vm.name} starts on host {protection.target_host} from point {point.cycle}, connected to no network",
            f"what its guest wrote in the last {age} is lost",
            f"term {item.term} stays: host {protection.source_host} is fenced already"
            if raised
            else f"term {item.term} → {item.term + 1}: host {protection.source_host} may not run it any more",
            f"{vm.name} is not protected afterwards",
        ]
    )
    if protection.source.connected and not raised:
        answer.warnings.append(
            f"host {protection.source_host} is connected and may still run {vm.name}: it stops when the term is raised"
        )
    if not protection.target.connected:
        answer.warnings.append(f"host {protection.target_host} is not connected: the job waits for it at first")
    if protection.health.reason:
        answer.warnings.append(f"health is {protection.health.health}: {protection.health.reason}")
    if protection.tests:
        answer.warnings.append(f"tests that go on running beside it: {len(protection.tests)}")
    return answer


def _failover_tasks(vm: VmView, protection: ProtectionView, cycle: int, *, shutdown_source: bool) -> list[TaskPlan]:
    args: dict[str, JSON] = {"vm": vm.id, "cycle": cycle}
    tasks = [TaskPlan(name=f"Find host {protection.target_host}", kind="failover.find", args=args, stage=1)]
    if shutdown_source:
        name = f"Stop {vm.name} on {protection.source_host}"
        tasks.append(TaskPlan(name=name, kind="failover.stop", args=args, stage=2, optional=True))
    return [
        *tasks,
        TaskPlan(name="Raise the term", kind="failover.raise", args=args, stage=3),
        TaskPlan(name=f"Start on {protection.target_host}", kind="failover.start", args=args, stage=4),
        TaskPlan(name="Finalize", kind="failover.finalize", args=args, stage=5),
    ]
