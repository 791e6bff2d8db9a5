"""What a task's handler may do. Nothing here or in a handler knows the engine.

A handler is run again from its start when the coordinator was killed, so each of its effects must be repeatable:
commands are (their id is the task's), database writes must be upserts or conditional, waits ask for a level.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.jobs import model, store
from coordinator.jobs.commands import Commands
from coordinator.jobs.model import JSON, TaskCancelled
from coordinator.jobs.wakes import Wakes, wait
from coordinator.store.engine import Database
from twinsite import status
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import Clock
from twinsite.errors import Failed, TwinsiteError

T = TypeVar("T")
POLL_SECONDS = 1.0  # the safety net below the wakes
CANCEL_GRACE_SECONDS = 30.0  # how long a withdrawn command may take to roll back before its task ends without it


class TaskContext:
    """One run of one task. `key` is stable over crashes: task id and attempt."""

    def __init__(
        self, task: model.Task, attempt: int, *, database: Database, clock: Clock, wakes: Wakes, commands: Commands
    ) -> None:
        self.job_id = task.job_id
        self.task_id = task.id
        self.key = f"{task.id}@{attempt}"
        self.args: Mapping[str, JSON] = task.args
        self.clock = clock
        self.database = database
        self._task, self._wakes, self._commands = task, wakes, commands

    async def command(
        self, server_id: str, command: commands_pb2.HostCommand, *, timeout: float | None = None, label: str = ""
    ) -> commands_pb2.CommandResult:
        """Have a host of this server execute `command` (its id is filled in here) and return its result.

        The command is stored before it is sent; a re-run after a crash finds it and waits on, so its first form
        counts. A task that gives several commands tells them apart by `label`. `timeout` is in seconds since the
        command was stored. Raises the agent's error, CommandTimedOut, and TaskCancelled when the user cancelled and
        the host did not finish all the same; an `always` task is not cancelled.
        """
        command_id = f"{self.key}.{label}" if label else self.key
        order = commands_pb2.HostCommand()
        order.CopyFrom(command)
        order.id = command_id
        await self._store_command(server_id, order)
        self._wakes.wake(f"server:{server_id}")
        with self._wakes.listening(f"command:{command_id}", f"job:{self.job_id}") as event:
            while True:
                async with self.database.read() as connection:
                    row = await store.get_command(connection, command_id)
                    cancel = await self._cancelled(connection)
                if row is None:  # deleted with its job
                    raise TaskCancelled
                if row["result"] is not None:
                    return _answer(row["result"], cancelled=cancel)
                now = self.clock.now()
                overdue = timeout is not None and now >= row["created"] + timeout
                if (cancel or overdue) and row["cancelled"] is None:
                    async with self.database.write() as connection:
                        await store.withdraw_command(connection, command_id, now=now)
                    self._wakes.wake(f"server:{server_id}")
                if overdue and timeout is not None:
                    raise model.CommandTimedOut(order.host_id, timeout)
                if cancel and row["cancelled"] is not None and now >= row["cancelled"] + CANCEL_GRACE_SECONDS:
                    raise TaskCancelled
                await wait(event, POLL_SECONDS)

    async def progress(self, percent: int, bytes_done: int = 0, bytes_total: int = 0, message: str = "") -> bool:
        """Show how far the task is; may be called as often as one likes. False: too soon after the last, not shown."""
        return await self._commands.progress_task(
            self.task_id, percent=percent, done=bytes_done, total=bytes_total, message=message
        )

    async def until(self, check: Callable[[], Awaitable[T | None]], *, timeout: float | None) -> T:
        """The first value of `check` that is not None; asked at each wake and each second.

        `timeout` is in seconds since the task first started, so that it does not begin anew after a crash. Raises
        WaitTimedOut, and TaskCancelled when the user cancelled.
        """
        with self._wakes.listening("", f"job:{self.job_id}") as event:
            while True:
                found = await check()
                if found is not None:
                    return found
                async with self.database.read() as connection:
                    if await self._cancelled(connection):
                        raise TaskCancelled
                started = self._task.started
                if timeout is not None and started is not None and self.clock.now() >= started + timeout:
                    raise model.WaitTimedOut(timeout)
                await wait(event, POLL_SECONDS)

    async def set_result(self, **facts: str) -> None:
        """Add to what the job hands back to whoever asked for it, for example the id of a test."""
        async with self.database.write() as connection:
            await store.add_result(connection, self.job_id, facts)

    async def warn(self, error: TwinsiteError) -> None:
        """The task goes on and will have completed with errors; `model` says what that means for the job."""
        async with self.database.write() as connection:
            await store.warn(connection, self.task_id, status.to_proto(error))

    async def _cancelled(self, connection: AsyncConnection) -> bool:
        return not self._task.always and await store.cancel_requested(connection, self.job_id)

    async def _store_command(self, server_id: str, order: commands_pb2.HostCommand) -> None:
        async with self.database.write() as connection:
            held = await store.get_command(connection, order.id)
            if held is None:
                if await self._cancelled(connection):
                    raise TaskCancelled
                await store.insert_command(
                    connection,
                    order.id,
                    task_id=self.task_id,
                    server_id=server_id,
                    body=order.SerializeToString(),
                    now=self.clock.now(),
                )
                return
        before = commands_pb2.HostCommand.FromString(held["body"])
        same = before.host_id == order.host_id and before.WhichOneof("action") == order.WhichOneof("action")
        if not same or held["server_id"] != server_id:
            raise model.CommandReused(order.id)


def _answer(data: bytes, *, cancelled: bool) -> commands_pb2.CommandResult:
    result = commands_pb2.CommandResult.FromString(data)
    if result.ok:  # also when the cancel came too late: the effect is there and must be dealt with
        return result
    if cancelled:
        raise TaskCancelled
    raise status.from_proto(result.error, status.status_of(Failed()))


Handler: TypeAlias = Callable[[TaskContext], Awaitable[None]]
