"""Jobs as the rest of the coordinator sees them."""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.jobs import engine, model, store
from coordinator.jobs.commands import Commands, Order
from coordinator.jobs.context import Handler, TaskContext
from coordinator.jobs.model import Job, TaskPlan
from coordinator.jobs.wakes import Wakes, wait
from coordinator.store.engine import Database
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import Clock

_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_POLL_SECONDS = 1.0


class Jobs:
    """Submit, watch and cancel jobs; hand their commands to the links. `start` begins to run them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._wakes = Wakes()
        self._commands = Commands(database, clock, self._wakes)
        self._handlers: dict[str, Handler] = {}
        self._engine = engine.Engine(database, clock, self._wakes, self._run)

    # ---- setting up --------------------------------------------------------------------------------------------

    def handler(self, kind: str, function: Handler) -> None:
        """Name the function that runs tasks of a kind. All of them before `start`, or recovered tasks fail."""
        if kind in self._handlers:
            raise ValueError(f"two handlers for {kind}")
        self._handlers[kind] = function

    async def start(self) -> None:
        """Run what is there and what is submitted from now on. The caller holds the one executor's lock."""
        await self._engine.start()

    async def stop(self) -> None:
        """Leave unfinished work for the next start; nothing is marked failed."""
        await self._engine.stop()

    async def reconcile(self) -> None:
        """Compare our rows with the engine's and repair; once a minute."""
        await self._engine.reconcile()
        self.wake()

    # ---- submitting and reading --------------------------------------------------------------------------------

    async def submit(
        self,
        connection: AsyncConnection,
        *,
        kind: str,
        target: str,
        tasks: Sequence[TaskPlan],
        created_by: str,
        request_id: str = "",
        result: Mapping[str, str] = _NONE,
    ) -> str:
        """The id of a new job, in the caller's write transaction: if that rolls back, there is no job.

        A repeat of the same `kind`, `created_by` and `request_id` is answered with the first one's id.
        """
        if request_id:
            request_id = f"{kind} {request_id}"  # a person may use one id for several commands
            held = await store.by_request(connection, created_by, request_id)
            if held is not None:
                return held
        for task in tasks:
            if task.kind not in self._handlers:
                raise model.UnknownTaskKind(task.kind)
        job_id = f"j-{secrets.token_hex(4)}"
        await store.insert(
            connection,
            job_id,
            tasks,
            kind=kind,
            target=target,
            created_by=created_by,
            request_id=request_id,
            result=result,
            now=self._clock.now(),
        )
        await self._engine.enqueue(connection, job_id, attempt=1)
        return job_id

    async def get(self, job_id: str) -> Job:
        """By id or a unique prefix of at least 8 characters. Raises JobNotFound."""
        async with self._database.read() as connection:
            found = await store.get(connection, job_id)
            if found is None and len(job_id) >= 8:
                ids = await store.ids_with_prefix(connection, job_id)
                found = await store.get(connection, ids[0]) if len(ids) == 1 else None
        if found is None:
            raise model.JobNotFound(job_id)
        return found

    async def is_open(self, job_id: str) -> bool:
        """Whether there is such a job and it has not ended. By its whole id."""
        async with self._database.read() as connection:
            found = await store.get(connection, job_id)
        return found is not None and not found.final

    async def list(self, *, state: str = "", target: str = "", limit: int = 50) -> list[Job]:
        """Newest first; empty means any. Raises UnknownJobState."""
        if state and state not in tuple(model.State):
            raise model.UnknownJobState(state)
        async with self._database.read() as connection:
            return await store.newest(connection, state=state, target=target, limit=limit)

    async def counts(self, *, ended_after: float) -> dict[str, int]:
        """Jobs by state; of the final ones only those that ended after the instant (seconds since 1970 UTC)."""
        async with self._database.read() as connection:
            return await store.counts(connection, ended_after=ended_after)

    async def changes(self, job_id: str) -> AsyncIterator[Job]:
        """The job now and whenever it changed, the last time when it is final. Raises JobNotFound."""
        shown: Job | None = None
        job_id = (await self.get(job_id)).id
        with self._wakes.listening(f"job:{job_id}") as event:
            while True:
                job = await self.get(job_id)
                if job != shown:
                    shown = job
                    yield job
                if job.final:
                    return
                await wait(event, _POLL_SECONDS)

    async def cancel(self, job_id: str, by: str, *, address: str = "", dry_run: bool = False) -> Job:
        """Ask the job to stop at its next safe point; who asked goes into the audit log. Raises JobIsFinal."""
        job = await self.get(job_id)
        if dry_run:
            if job.final:
                raise model.JobIsFinal(job.id, job.state)
            return job
        async with self._database.write() as connection:
            if not await store.request_cancel(connection, job.id):
                if job.cancel_requested:
                    return await self.get(job.id)
                raise model.JobIsFinal(job.id, (await self.get(job.id)).state)
            await audit.record(
                connection,
                actor=by,
                action="job.cancel",
                target=f"job/{job.id}",
                outcome="ok",
                address=address,
                now=self._clock.now(),
            )
        self._wakes.wake(f"job:{job.id}")
        return await self.get(job.id)

    def wake(self) -> None:
        """What some task may be waiting for has changed: every `until` asks again."""
        self._wakes.wake("")

    # ---- the links' side ---------------------------------------------------------------------------------------

    async def commands_for(self, server_id: str) -> Sequence[Order]:
        """What this server has not answered yet, oldest first: send all after a connect, new ones after a wake."""
        return await self._commands.for_server(server_id)

    def command_wakes(self, server_id: str) -> AsyncIterator[None]:
        """`async for _ in …`: once at the start, then whenever `commands_for` may have changed; never ends."""
        return self._commands.wakes(server_id)

    async def command_received(self, server_id: str, command_id: str) -> None:
        """Raises CommandOfAnotherServer, as the next two do: only who was given a command speaks of it."""
        await self._commands.received(server_id, command_id)

    async def command_progress(self, server_id: str, report: commands_pb2.CommandProgress) -> None:
        await self._commands.progress(server_id, report)

    async def command_result(self, server_id: str, result: commands_pb2.CommandResult) -> None:
        """Once this returns, the result is stored and the server may be told so."""
        await self._commands.result(server_id, result)

    # ---- the engine's side -------------------------------------------------------------------------------------

    async def _run(self, task: model.Task, attempt: int) -> None:
        handler = self._handlers.get(task.kind)
        if handler is None:
            raise model.UnknownTaskKind(task.kind)
        context = TaskContext(
            task, attempt, database=self._database, clock=self._clock, wakes=self._wakes, commands=self._commands
        )
        await handler(context)
