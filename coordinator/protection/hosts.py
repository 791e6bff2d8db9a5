"""Telling one host something inside a task, with a limit on how long a dead one is waited for."""

from typing import Final

import structlog

from coordinator.inventory import store as inventory
from coordinator.jobs import Jobs, TaskContext, TaskPlan
from coordinator.jobs.model import WaitTimedOut
from coordinator.protection import store
from coordinator.protection.errors import CleanUpFailed, CleanUpPostponed
from twinsite import status
from twinsite.api.types.v1 import commands_pb2
from twinsite.errors import Failed, NotFound, TwinsiteError

log = structlog.get_logger()
COMMAND_SECONDS: Final = 600.0
CONNECT_SECONDS: Final = 2.0  # a host that is away is not waited for longer where its part can follow
CLEAN_UP_SECONDS: Final = 120.0
_AGAIN_SECONDS: Final = 60.0
_AGAIN_AT_MOST: Final = 3600.0


class HostIsGone(NotFound):
    public = "host {error.host_id} is not registered any more"
    next_step = "twinsite host list"

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id


async def tell(
    context: TaskContext, order: commands_pb2.HostCommand, *, timeout: float | None, label: str = ""
) -> commands_pb2.CommandResult:
    """Give the order to its host through that host's server. Raises the host's error, CommandTimedOut, HostIsGone."""
    async with context.database.read() as connection:
        host = await inventory.get_host(connection, order.host_id)
    if host is None or host.state == inventory.UNREGISTERED:
        raise HostIsGone(order.host_id)
    return await context.command(host.server_id, order, timeout=timeout, label=label)


async def is_connected(context: TaskContext, host_id: str) -> bool:
    async with context.database.read() as connection:
        host = await inventory.get_host(connection, host_id)
        links = await inventory.links(connection)
    return host is not None and host.connected and host.server_id in links and links[host.server_id].connected


async def wait_connected(context: TaskContext, host_id: str, seconds: float) -> bool:
    async def check() -> bool | None:
        return await is_connected(context, host_id) or None

    try:
        return await context.until(check, timeout=seconds)
    except WaitTimedOut:
        return False


async def clean_up(context: TaskContext, jobs: Jobs, order: commands_pb2.HostCommand, *, vm_id: str, what: str) -> None:
    """Have a host delete something. One that is away, or fails, does it later: a job of its own goes on trying.

    The task that called warns then, and the rest of its job need not wait.
    """
    host_id = order.host_id
    if not await wait_connected(context, host_id, CONNECT_SECONDS):
        async with context.database.read() as connection:
            host = await inventory.get_host(connection, host_id)
        if host is None or host.state == inventory.UNREGISTERED:
            return
        job_id = await _postpone(context, jobs, order, vm_id=vm_id, what=what)
        await context.warn(CleanUpPostponed(host.name, what, job_id))
        return
    try:
        await tell(context, order, timeout=CLEAN_UP_SECONDS, label=order.WhichOneof("action") or "")
    except TwinsiteError as error:
        job_id = await _postpone(context, jobs, order, vm_id=vm_id, what=what)
        await context.warn(CleanUpFailed(host_id, str(error), job_id))


async def _postpone(context: TaskContext, jobs: Jobs, order: commands_pb2.HostCommand, *, vm_id: str, what: str) -> str:
    """Repeatable: the leftover names the one job that tries; one that a person cancelled tries no more."""
    async with context.database.write() as connection:
        await store.alone(connection)
        held = await store.get_leftover(connection, vm_id, order.host_id)
        if held is not None and await jobs.is_open(held):
            return held
        kind = "clean-up.replica" if order.WhichOneof("action") == "remove_replica" else "clean-up.source"
        job_id = await jobs.submit(
            connection,
            kind="vm.clean-up",
            target=f"host/{order.host_id}",
            tasks=[TaskPlan(name=what.capitalize(), kind=kind, args={"vm": vm_id, "host": order.host_id}, stage=1)],
            created_by="system",
        )
        await store.put_leftover(connection, vm_id, order.host_id, job_id)
    return job_id


async def clean_up_later(context: TaskContext, order: commands_pb2.HostCommand, *, vm_id: str) -> None:
    """The task of the job that goes on trying until the host has done it; ended by cancelling the job."""
    attempt = 0
    while True:
        try:
            await tell(context, order, timeout=None, label=str(attempt))
            break
        except HostIsGone:
            break
        except Failed as error:
            await _again(context, error, attempt)
        attempt += 1
    async with context.database.write() as connection:
        await store.drop_leftover(connection, vm_id, order.host_id, job_id=context.job_id)


async def _again(context: TaskContext, error: TwinsiteError, attempt: int) -> None:
    at = context.clock.now() + min(_AGAIN_AT_MOST, _AGAIN_SECONDS * 2.0 ** min(attempt, 10))
    log.info("clean-up failed", task=context.task_id, code=status.to_proto(error).code, problem=str(error))

    async def due() -> bool | None:
        return context.clock.now() >= at or None

    await context.until(due, timeout=None)
