"""Tasks of the jobs vm.test, vm.test-cleanup and vm.failover. Each may be run again from its start."""

import dataclasses
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.inventory import store as inventory
from coordinator.inventory.model import instant
from coordinator.jobs import Jobs, TaskContext
from coordinator.protection import store as protection
from coordinator.protection.desired import Desired
from coordinator.protection.hosts import COMMAND_SECONDS, CONNECT_SECONDS, HostIsGone, tell, wait_connected
from coordinator.protection.model import REPLICATING, SWITCHED, Phase, Protected
from coordinator.recovery import store
from coordinator.recovery.errors import NoLongerProtected, SourceNotStopped, TargetAway, TestGone
from coordinator.recovery.service import STOP_SECONDS
from twinsite.api.types.v1 import commands_pb2
from twinsite.errors import TwinsiteError
from twinsite.units import rfc3339

FIND_SECONDS: Final = 120.0  # before anything is changed
_SETTLE_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 5.0  # beyond the time the guest gets to stop


class Steps:
    """`desired` signs the new owner's grant and publishes; `register` before jobs start."""

    def __init__(self, jobs: Jobs, desired: Desired) -> None:
        self._jobs, self._desired = jobs, desired

    def register(self) -> None:
        for kind, task in (
            ("test.start", self._start_test),
            ("test.settle", self._settle_test),
            ("test.clean-up", self._clean_up),
            ("failover.find", self._find_target),
            ("failover.stop", self._stop_source),
            ("failover.raise", self._raise_term),
            ("failover.start", self._start),
            ("failover.finalize", self._finalize),
        ):
            self._jobs.handler(kind, task)

    # ---- tests --------------------------------------------------------------------------------------------------

    async def _start_test(self, context: TaskContext) -> None:
        test = await _test(context)
        order = commands_pb2.HostCommand(
            host_id=test.host_id,
            test_failover=commands_pb2.TestFailover(vm_id=test.vm_id, cycle=test.cycle, test_id=test.id),
        )
        result = await tell(context, order, timeout=COMMAND_SECONDS)
        async with context.database.write() as connection:
            await store.set_test(
                connection, test.id, state=store.RUNNING, job_id=context.job_id, cycle=min(result.cycle, 2**62)
            )
            began = await _instant(connection, test.vm_id, result)
            await _record(connection, context, "vm.test-started", f"vm/{test.vm_id}", {"test": test.id})
        facts = {"cycle": str(result.cycle), "machine": result.machine.name, "note": result.note}
        if began:
            facts["instant"] = rfc3339(began)
        await context.set_result(**facts)

    async def _settle_test(self, context: TaskContext) -> None:
        """A test that did not come up leaves nothing."""
        async with context.database.read() as connection:
            test = await store.get_test(connection, str(context.args["test"]))
        if test is None or test.state != store.STARTING:
            return
        # Also when the host is away: its copy may have started without our hearing of it. Until then it is listed.
        try:
            await _end(context, test, timeout=_SETTLE_SECONDS)
        except TwinsiteError as error:
            async with context.database.write() as connection:
                await store.set_test(connection, test.id, state=store.RUNNING, job_id=context.job_id)
            await context.warn(error)
            return
        async with context.database.write() as connection:
            await store.delete_test(connection, test.id)

    async def _clean_up(self, context: TaskContext) -> None:
        async with context.database.read() as connection:
            test = await store.get_test(connection, str(context.args["test"]))
        if test is None:
            return
        try:
            await _end(context, test, timeout=COMMAND_SECONDS)
        except HostIsGone as error:
            await context.warn(error)
        async with context.database.write() as connection:
            await store.delete_test(connection, test.id)
            await _record(connection, context, "vm.test-ended", f"vm/{test.vm_id}", {"test": test.id})

    # ---- failover -----------------------------------------------------------------------------------------------

    async def _find_target(self, context: TaskContext) -> None:
        """Nothing is taken from the source before the target can be told."""
        item = await _mine(context)
        if not await wait_connected(context, item.target_host, FIND_SECONDS):
            name = await _host_name(context, item.target_host)
            raise TargetAway(item.vm_name, name, FIND_SECONDS, raised=item.phase in SWITCHED)

    async def _stop_source(self, context: TaskContext) -> None:
        """Best effort: whatever happens, the failover goes on."""
        item = await _mine(context)
        name = await _host_name(context, item.source_host)
        if not await wait_connected(context, item.source_host, CONNECT_SECONDS):
            await context.warn(SourceNotStopped(item.vm_name, name, "it is not connected"))
            return
        stop = commands_pb2.StopMachine(vm_id=item.vm_id, timeout_seconds=STOP_SECONDS)
        order = commands_pb2.HostCommand(host_id=item.source_host, stop_machine=stop)
        try:
            await tell(context, order, timeout=STOP_SECONDS + _ANSWER_SECONDS)
        except TwinsiteError as error:
            await context.warn(SourceNotStopped(item.vm_name, name, str(error)))

    async def _raise_term(self, context: TaskContext) -> None:
        """From here the target owns the VM; a failover that did not finish keeps the term it raised."""
        async with context.database.write() as connection:
            item = await _mine_in(connection, context)
            first = item.phase in REPLICATING
            if first:
                item = dataclasses.replace(
                    item,
                    phase=Phase.FAILING_OVER,
                    paused=False,
                    owner_host=item.target_host,
                    term=await protection.raise_term(connection, item.vm_id),
                )
            if item.phase is Phase.FAILING_OVER:
                await protection.update_protected(connection, self._desired.granted(item))
                await self._desired.publish(connection, [item.source_host, item.target_host])
            if first:
                facts = {"term": str(item.term), "owner": item.owner_host}
                await _record(connection, context, "vm.term-raised", f"vm/{item.vm_name}", facts)
        self._desired.changed()

    async def _start(self, context: TaskContext) -> None:
        item = await _mine(context)
        failover = commands_pb2.Failover(vm_id=item.vm_id, cycle=_cycle(context), grant=item.grant)
        order = commands_pb2.HostCommand(host_id=item.target_host, failover=failover)
        result = await tell(context, order, timeout=COMMAND_SECONDS)
        await context.set_result(
            cycle=str(result.cycle), machine=result.machine.name, note=result.note, term=str(item.term)
        )
        async with context.database.write() as connection:
            item = await _mine_in(connection, context)
            over = dataclasses.replace(
                item,
                phase=Phase.FAILED_OVER,
                failover_cycle=min(result.cycle, 2**62),
                failover_instant=await _instant(connection, item.vm_id, result),
                failed_over_at=item.failed_over_at or context.clock.now(),
            )
            await protection.update_protected(connection, over)
            await self._desired.publish(connection, [item.source_host, item.target_host])
        self._desired.changed()

    async def _finalize(self, context: TaskContext) -> None:
        item = await _mine(context)
        if item.failover_instant:
            lost = max(0.0, item.failed_over_at - item.failover_instant)
            await context.set_result(instant=rfc3339(item.failover_instant), point_age_seconds=f"{lost:.3f}")
        async with context.database.write() as connection:
            facts = {"term": str(item.term), "cycle": str(item.failover_cycle)}
            await _record(connection, context, "vm.failed-over", f"vm/{item.vm_name}", facts)


async def _test(context: TaskContext) -> store.Test:
    test_id = str(context.args["test"])
    async with context.database.read() as connection:
        test = await store.get_test(connection, test_id)
    if test is None:
        raise TestGone(test_id)
    return test


async def _end(context: TaskContext, test: store.Test, *, timeout: float) -> None:
    clean = commands_pb2.TestCleanup(vm_id=test.vm_id, test_id=test.id)
    await tell(context, commands_pb2.HostCommand(host_id=test.host_id, test_cleanup=clean), timeout=timeout)


async def _mine(context: TaskContext) -> Protected:
    async with context.database.read() as connection:
        return await _look(connection, context)


async def _mine_in(connection: AsyncConnection, context: TaskContext) -> Protected:
    """In a write transaction, of which it must be the first statement."""
    await protection.alone(connection)
    return await _look(connection, context)


async def _look(connection: AsyncConnection, context: TaskContext) -> Protected:
    """The task's VM while this job decides about it. Raises NoLongerProtected."""
    vm_id = str(context.args["vm"])
    item = await protection.get_protected(connection, vm_id)
    if item is None or item.job_id != context.job_id:
        raise NoLongerProtected(item.vm_name if item is not None else vm_id)
    return item


async def _instant(connection: AsyncConnection, vm_id: str, result: commands_pb2.CommandResult) -> float:
    """Of the point the host started from. It says so itself, since its newest one may not have been told here before
    the site died; else it is the known point's. 0: not known.
    """
    known = await protection.list_points(connection, vm_id)
    told = instant(result.instant) if result.HasField("instant") else 0.0
    return told or next((instant(point.instant) for point in known if point.cycle == result.cycle), 0.0)


def _cycle(context: TaskContext) -> int:
    cycle = context.args["cycle"]
    return cycle if isinstance(cycle, int) else 0


async def _host_name(context: TaskContext, host_id: str) -> str:
    async with context.database.read() as connection:
        host = await inventory.get_host(connection, host_id)
    return host.name if host is not None else host_id


async def _record(
    connection: AsyncConnection, context: TaskContext, action: str, target: str, facts: dict[str, str]
) -> None:
    await audit.record(
        connection,
        actor=f"job/{context.job_id}",
        action=action,
        target=target,
        outcome="ok",
        facts=facts,
        now=context.clock.now(),
    )
