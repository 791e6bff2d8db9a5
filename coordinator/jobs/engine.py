"""DBOS behind our rows: it decides when a step runs again, we decide what is seen. With `workflows` the only user.

What a person sees is `store`'s tables; the engine's own are its business. Guard rails kept here:

1. the application version is a constant kept by hand. DBOS's default is a hash of the workflows' source, and any edit
   would strand every waiting job without a word.
2. the executor id is fixed, and `lease` sees to exactly one live executor: with another id a killed executor's jobs
   are never recovered, with the same id twice live steps run twice.
5. cancel is our flag and a wake; `DBOS.cancel_workflow` runs no cleanup and leaves waits parked.
7. progress goes to our task row; an event of the engine's costs two rows each.
8. the serializer is JSON. The default is pickle: who can write the database could run code in the coordinator.
10. our tables are prefixed `ts_`; on SQLite the engine's share their namespace.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.jobs import model, store, workflows
from coordinator.jobs.model import State, TaskCancelled
from coordinator.jobs.wakes import Wakes
from coordinator.store.engine import Database
from twinsite import retry, status
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.errors import Internal, TwinsiteError

APPLICATION_VERSION: Final = "1"
EXECUTOR_ID: Final = "coordinator"
KEPT_SECONDS: Final = 90 * 86400  # how long an ended job stays on the Jobs page
_NAME: Final = "coordinator"
_QUEUE: Final = "jobs"
_POLL_SECONDS: Final = 0.2  # the wait between submitting a job and its first task
_DEAD: Final = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "SUCCESS")

T = TypeVar("T")
log = structlog.get_logger()


class EngineStopped(Internal):
    public = "the job engine is not running"
    still_works = "no job was made"
    next_step = "repeat the command in a few seconds"


class Engine:
    """Runs `run` for each task of each job; one per process, because DBOS is one per process."""

    def __init__(
        self, database: Database, clock: Clock, wakes: Wakes, run: Callable[[model.Task, int], Awaitable[None]]
    ) -> None:
        self._database, self._clock, self._wakes, self._run = database, clock, wakes, run
        self._client: DBOSClient | None = None
        self._stopping = False
        self._alive: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        workflows.bind(self)
        self._stopping = False
        # Its start-up lines say that SQLite is for development and show an address; what matters is WARNING and up.
        logging.getLogger("dbos").setLevel(logging.WARNING)
        url = _engine_url(self._database.url)
        config: DBOSConfig = {
            "name": _NAME,
            "system_database_url": url,
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR_ID,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "max_executor_threads": 16,
            "notification_listener_polling_interval_sec": 1.0,
        }
        try:
            DBOS(config=config)
            DBOS.launch()  # on the loop's thread, so that async workflows run on this loop
            await DBOS.register_queue_async(_QUEUE, worker_concurrency=50, polling_interval_sec=_POLL_SECONDS)
            self._client = await asyncio.to_thread(
                lambda: DBOSClient(
                    system_database_url=url, application_name=_NAME, serializer=DBOSPortableJSONSerializer()
                )
            )
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Unfinished workflows stay pending; no row of ours is changed."""
        if not workflows.bound(self):
            return
        self._stopping = True
        # What is cut off in a step logs that its pool is gone; it stays pending, which is what we want.
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        for task in list(self._alive):
            task.cancel()
        if self._alive:
            await asyncio.wait(self._alive, timeout=5)
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.destroy)
        await asyncio.to_thread(DBOS.destroy)
        # DBOS made its own pool the loop's default one and has just shut it down.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        workflows.unbind()

    async def enqueue(self, connection: AsyncConnection, job_id: str, *, attempt: int) -> None:
        """Part of the caller's transaction: our rows and the engine's are committed together."""
        client = self._client
        if client is None:
            raise EngineStopped
        await connection.run_sync(
            lambda synchronous: client.enqueue_in_transaction(
                synchronous,
                {
                    "workflow_name": "run_job",
                    "queue_name": _QUEUE,
                    "workflow_id": f"{job_id}@{attempt}",
                    "app_version": APPLICATION_VERSION,
                },
                job_id,
                attempt,
            )
        )

    # ---- steps: everything may run more than once, the last write wins or finds itself done ---------------------

    def entered(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._alive.add(task)
            task.add_done_callback(self._alive.discard)

    async def load(self, job_id: str) -> list[dict[str, str | int | bool]]:
        async def begin() -> model.Job | None:
            async with self._database.write() as connection:
                await store.begin_job(connection, job_id)
                return await store.get(connection, job_id)

        job = await self._insist(begin)
        self._wakes.wake(f"job:{job_id}")
        tasks = () if job is None else job.tasks
        return [{"id": task.id, "stage": task.stage, "always": task.always} for task in tasks]

    async def stopped(self, job_id: str) -> bool:
        async def read() -> bool:
            async with self._database.read() as connection:
                job = await store.get(connection, job_id)
            return job is None or model.stopped(job.tasks, cancel_requested=job.cancel_requested)

        return await self._insist(read)

    async def perform(self, task_id: str, attempt: int) -> str:
        async def begin() -> model.Task:
            async with self._database.write() as connection:
                await store.begin_task(connection, task_id, now=self._clock.now())
                return await store.get_task(connection, task_id)

        task = await self._insist(begin)
        if task.state in model.FINAL:  # killed between our row and the engine's record of this step
            return task.state
        self._wakes.wake(f"job:{task.job_id}")
        state, error = await self._outcome(task, attempt)

        async def end() -> State:
            async with self._database.write() as connection:
                warned = (await store.get_task(connection, task_id)).error is not None
                final = State.COMPLETED_WITH_ERRORS if state is State.SUCCEEDED and warned else state
                await store.end_task(connection, task_id, final, error, now=self._clock.now())
            return final

        final = await self._insist(end)
        self._wakes.wake(f"job:{task.job_id}")
        return final

    async def finish(self, job_id: str) -> str:
        async def end() -> State:
            async with self._database.write() as connection:
                job = await store.get(connection, job_id)
                if job is None:
                    return State.FAILED
                state, error = model.ending(job.tasks, cancel_requested=job.cancel_requested)
                await store.end_job(connection, job_id, state, error, now=self._clock.now())
            return state

        state = await self._insist(end)
        self._wakes.wake(f"job:{job_id}", "")
        return state

    async def _outcome(self, task: model.Task, attempt: int) -> tuple[State, types_pb2.ErrorDetail | None]:
        try:
            await self._insist(lambda: self._run(task, attempt))
        except TaskCancelled:
            return State.CANCELLED, None
        except TwinsiteError as error:
            log.warning("task failed", task=task.id, kind=task.kind, code=error.code, error=str(error))
            return State.FAILED, status.to_proto(error)
        except Exception as error:
            if self._stopping:  # torn down under the handler: it runs again after the next start
                raise asyncio.CancelledError from error
            log.exception("a handler has a defect", task=task.id, kind=task.kind)
            return State.FAILED, status.to_proto(model.HandlerDefect(task.id, type(error).__name__))
        return State.SUCCEEDED, None

    async def _insist(self, function: Callable[[], Awaitable[T]]) -> T:
        """Outlast a database that restarts or is busy: a step that raised would end its job for good."""
        for delay in retry.delays(base=0.2, cap=5.0):
            try:
                return await function()
            except DBAPIError as error:
                if self._stopping or not _passes(error):
                    raise
                log.warning("the database does not answer; trying again", error=str(error.orig))
            await self._clock.sleep(delay)
        raise AssertionError("delays are endless")

    # ---- once a minute --------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Jobs whose workflow died are failed, stranded ones named, old ones forgotten."""
        async with self._database.read() as connection:
            ours = await store.open_jobs(connection)
        ids = [f"{job_id}@{attempt}" for job_id, attempt in ours]
        found = await DBOS.list_workflows_async(workflow_ids=ids, load_input=False) if ids else []
        by_id = {workflow.workflow_id: workflow for workflow in found}
        for job_id, attempt in ours:
            workflow = by_id.get(f"{job_id}@{attempt}")
            if workflow is None:
                await self._give_up(job_id, "its workflow is missing")
            elif workflow.status in _DEAD:
                await self._give_up(job_id, f"its workflow ended as {workflow.status}: {workflow.error}")
            elif workflow.app_version not in (APPLICATION_VERSION, None):
                log.error("job waits for another version of the program", job=job_id, version=workflow.app_version)
            elif workflow.status == "PENDING" and workflow.executor_id != EXECUTOR_ID:
                log.error("job was held by another executor; taking it over", job=job_id, held_by=workflow.executor_id)
                await DBOS.resume_workflows_async([workflow.workflow_id], queue_name=_QUEUE)
        await self._forget()

    async def _give_up(self, job_id: str, reason: str) -> None:
        log.error("the engine gave up on a job", job=job_id, reason=reason)
        error = status.to_proto(model.EngineFailed(reason))
        async with self._database.write() as connection:
            await store.end_job(connection, job_id, State.FAILED, error, now=self._clock.now())
        self._wakes.wake(f"job:{job_id}")

    async def _forget(self) -> None:
        async with self._database.write() as connection:
            old = await store.forget_before(connection, self._clock.now() - KEPT_SECONDS)
        if old:
            ids = [f"{job_id}@{attempt}" for job_id, attempt in old]
            await DBOS.delete_workflows_async(ids, delete_children=True)


def _engine_url(url: str) -> str:
    """The same database for the engine's synchronous driver: one file, one backup."""
    parsed = sa.make_url(url)
    driver = "sqlite" if parsed.drivername.startswith("sqlite") else "postgresql"
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


def _passes(error: DBAPIError) -> bool:
    """Whether waiting may help: the connection was lost, or SQLite's lock or disk is somebody else's for now."""
    if error.connection_invalidated:
        return True
    if isinstance(error, OperationalError) and type(error.orig).__module__.startswith("sqlite3"):
        return any(word in str(error.orig) for word in ("locked", "busy", "full", "I/O"))
    return isinstance(error, OperationalError | InterfaceError)
