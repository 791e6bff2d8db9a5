"""Commands to host agents: the row is the command, sent by whichever link its server has.

Guard rail 6: a command has the key task@attempt and is stored before it is sent; the agent keeps a durable ledger of
keys, because a handler is run again after a crash.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.jobs import model, store
from coordinator.jobs.wakes import Wakes, wait
from coordinator.store.engine import Database
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import Clock

Order: TypeAlias = commands_pb2.HostCommand | commands_pb2.CancelCommand
log = structlog.get_logger()
POLL_SECONDS = 5.0  # another replica may have stored the command
_PROGRESS_SECONDS = 1.0  # guard rail 7: progress is a row of ours, and not more often than a person can read


_MOST = 1000  # tasks whose last report is remembered; forgetting one costs a write


class Commands:
    def __init__(self, database: Database, clock: Clock, wakes: Wakes) -> None:
        self._database, self._clock, self._wakes = database, clock, wakes
        self._progressed: dict[str, float] = {}  # task id → monotonic

    async def for_server(self, server_id: str) -> list[Order]:
        """What the server has not answered yet, oldest first. Sent whole after every (re)connect."""
        async with self._database.read() as connection:
            rows = await store.open_commands(connection, server_id)
        return [
            commands_pb2.HostCommand.FromString(row["body"])
            if row["cancelled"] is None
            else commands_pb2.CancelCommand(id=row["id"])
            for row in rows
        ]

    async def wakes(self, server_id: str) -> AsyncIterator[None]:
        """Once at the start, then whenever `for_server` may have changed."""
        with self._wakes.listening(f"server:{server_id}") as event:
            while True:
                yield
                await wait(event, POLL_SECONDS)

    async def received(self, server_id: str, command_id: str) -> None:
        """Raises CommandOfAnotherServer."""
        async with self._database.write() as connection:
            if await self._given_to(connection, server_id, command_id) is not None:
                await store.receive_command(connection, command_id)

    async def progress(self, server_id: str, report: commands_pb2.CommandProgress) -> None:
        """Raises CommandOfAnotherServer."""
        async with self._database.read() as connection:
            row = await self._given_to(connection, server_id, report.id)
        if row is not None:
            await self.progress_task(
                row["task_id"],
                percent=report.percent,
                done=report.bytes_done,
                total=report.bytes_total,
                message=report.message,
            )

    async def progress_task(self, task_id: str, *, percent: int, done: int, total: int, message: str) -> bool:
        """Whether it was written: at most once a second; a report about a task that no longer runs is dropped."""
        now = self._clock.monotonic()
        if now - self._progressed.get(task_id, float("-inf")) < _PROGRESS_SECONDS:
            return False
        if len(self._progressed) >= _MOST:
            self._progressed.clear()
        self._progressed[task_id] = now
        async with self._database.write() as connection:
            row = await store.find_task(connection, task_id)
            if row is None or row.state is not model.State.IN_PROGRESS:
                self._progressed.pop(task_id, None)
                return False
            at = self._clock.now()
            before = await store.progressed(connection, task_id)
            since = at - (before or row.started or at)
            rate = model.rate(row.bytes_per_second, bytes_before=row.bytes_done, bytes_now=done, seconds=since)
            await store.progress(
                connection, task_id, percent=percent, done=done, total=total, message=message, rate=rate, now=at
            )
        self._wakes.wake(f"job:{row.job_id}")
        return True

    async def result(self, server_id: str, result: commands_pb2.CommandResult) -> None:
        """Store a result; a repeat changes nothing. Raises CommandOfAnotherServer."""
        async with self._database.write() as connection:
            if await self._given_to(connection, server_id, result.id) is None:
                # Its job was forgotten meanwhile: the agent may forget it too.
                log.info("result of a forgotten command", command=result.id, server=server_id)
                return
            await store.finish_command(connection, result.id, result.SerializeToString())
        self._wakes.wake(f"command:{result.id}")

    async def _given_to(self, connection: AsyncConnection, server_id: str, command_id: str) -> Mapping[Any, Any] | None:
        """The row, None when there is none any more. Raises CommandOfAnotherServer."""
        row = await store.get_command(connection, command_id)
        if row is not None and row["server_id"] != server_id:
            raise model.CommandOfAnotherServer(command_id)
        return row
