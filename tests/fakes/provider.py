"""A provider's side of the command table: journals, executes at most once per id, answers repeats."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from coordinator.jobs import Jobs
from twinsite.api.types.v1 import commands_pb2, types_pb2


class FakeProvider:
    """Connects to `jobs` as one server. `answer` decides a result; None leaves the command running."""

    def __init__(self, jobs: Jobs, server_id: str = "s-1") -> None:
        self._jobs, self.server_id = jobs, server_id
        self.answer: Callable[[commands_pb2.HostCommand], commands_pb2.CommandResult | None] = self.succeed
        self.executed: list[commands_pb2.HostCommand] = []
        self.cancelled: list[str] = []
        self.sent: list[str] = []  # every delivery, also of repeats

    @staticmethod
    def succeed(command: commands_pb2.HostCommand) -> commands_pb2.CommandResult:
        return commands_pb2.CommandResult(id=command.id, ok=True, note="done")

    @staticmethod
    def fail(command: commands_pb2.HostCommand) -> commands_pb2.CommandResult:
        error = types_pb2.ErrorDetail(code="NO_SPACE", message="the store {is} full", next_step="make room")
        return commands_pb2.CommandResult(id=command.id, ok=False, error=error)

    @staticmethod
    def keep_running(_: commands_pb2.HostCommand) -> None:
        return None

    async def serve(self) -> None:
        sent: set[str] = set()
        async for _ in self._jobs.command_wakes(self.server_id):
            for order in await self._jobs.commands_for(self.server_id):
                name = f"{type(order).__name__}:{order.id}"
                if name in sent:
                    continue
                sent.add(name)
                if isinstance(order, commands_pb2.CancelCommand):
                    await self._cancel(order.id)
                else:
                    await self._take(order)

    async def _take(self, order: commands_pb2.HostCommand) -> None:
        self.sent.append(order.id)
        await self._jobs.command_received(self.server_id, order.id)
        if all(held.id != order.id for held in self.executed):
            self.executed.append(order)
        result = self.answer(order)
        if result is not None:
            await self._jobs.command_result(self.server_id, result)

    async def _cancel(self, command_id: str) -> None:
        self.cancelled.append(command_id)
        error = types_pb2.ErrorDetail(code="CANCELLED", message="rolled back")
        await self._jobs.command_result(
            self.server_id, commands_pb2.CommandResult(id=command_id, ok=False, error=error)
        )

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["FakeProvider"]:
        async with asyncio.TaskGroup() as link:
            task = link.create_task(self.serve())
            yield self
            task.cancel()
