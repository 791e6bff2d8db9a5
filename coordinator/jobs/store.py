"""The only SQL of jobs, tasks and agent commands. Functions take the caller's connection."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.jobs.model import FINAL, Job, State, Task, TaskPlan
from coordinator.store import schema
from twinsite.api.types.v1 import types_pb2

jobs = schema.table(
    "job",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False, index=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("ended", sa.Double),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),  # NULL: none, so that the constraint below ignores it
    sa.Column("result", sa.JSON, nullable=False),
    sa.Column("error", sa.LargeBinary),  # ErrorDetail
    sa.UniqueConstraint("created_by", "request_id"),
)

tasks = schema.table(
    "task",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("ts_job.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("args", sa.JSON, nullable=False),
    sa.Column("always", sa.Boolean, nullable=False),
    sa.Column("optional", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("percent", sa.Integer, nullable=False),
    sa.Column("bytes_done", sa.BigInteger, nullable=False),
    sa.Column("bytes_total", sa.BigInteger, nullable=False),
    sa.Column("bytes_per_second", sa.Double, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("progressed", sa.Double),  # when bytes_done was last written
    sa.Column("error", sa.LargeBinary),  # ErrorDetail
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
)

commands = schema.table(
    "agent_command",
    sa.Column("id", sa.Text, primary_key=True),  # task@attempt, or task@attempt.label
    sa.Column("task_id", sa.ForeignKey("ts_task.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("server_id", sa.Text, nullable=False, index=True),
    sa.Column("body", sa.LargeBinary, nullable=False),  # HostCommand
    sa.Column("state", sa.Text, nullable=False),  # new | received | done
    sa.Column("cancelled", sa.Double),  # when it was withdrawn
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("result", sa.LargeBinary),  # CommandResult
)

_FINAL: Final = sorted(FINAL)


def _error(data: bytes | None) -> types_pb2.ErrorDetail | None:
    return None if data is None else types_pb2.ErrorDetail.FromString(data)


def _task(row: Mapping[Any, Any]) -> Task:
    return Task(
        id=row["id"],
        job_id=row["job_id"],
        stage=row["stage"],
        name=row["name"],
        kind=row["kind"],
        args=row["args"],
        always=row["always"],
        optional=row["optional"],
        state=State(row["state"]),
        percent=row["percent"],
        bytes_done=row["bytes_done"],
        bytes_total=row["bytes_total"],
        bytes_per_second=row["bytes_per_second"],
        message=row["message"],
        error=_error(row["error"]),
        started=row["started"],
        ended=row["ended"],
    )


def _job(row: Mapping[Any, Any], its_tasks: Sequence[Task]) -> Job:
    return Job(
        id=row["id"],
        kind=row["kind"],
        target=row["target"],
        state=State(row["state"]),
        tasks=tuple(its_tasks),
        error=_error(row["error"]),
        cancel_requested=row["cancel_requested"],
        created=row["created"],
        ended=row["ended"],
        created_by=row["created_by"],
        result=row["result"],
    )


# ---- jobs --------------------------------------------------------------------------------------------------------


async def insert(
    connection: AsyncConnection,
    job_id: str,
    plans: Sequence[TaskPlan],
    *,
    kind: str,
    target: str,
    created_by: str,
    request_id: str,
    result: Mapping[str, str],
    now: float,
) -> None:
    await connection.execute(
        sa.insert(jobs).values(
            id=job_id,
            kind=kind,
            target=target,
            state=State.NOT_STARTED,
            attempt=1,
            cancel_requested=False,
            created=now,
            created_by=created_by,
            request_id=request_id or None,
            result=dict(result),
        )
    )
    rows = [
        {
            "id": f"{job_id}.{number}",
            "job_id": job_id,
            "number": number,
            "stage": plan.stage,
            "name": plan.name,
            "kind": plan.kind,
            "args": dict(plan.args),
            "always": plan.always,
            "optional": plan.optional,
            "state": State.NOT_STARTED,
            "percent": 0,
            "bytes_done": 0,
            "bytes_total": 0,
            "bytes_per_second": 0.0,
            "message": "",
        }
        for number, plan in enumerate(plans, 1)
    ]
    if rows:
        await connection.execute(sa.insert(tasks), rows)


async def by_request(connection: AsyncConnection, created_by: str, request_id: str) -> str | None:
    """The job this user submitted with this request id before."""
    query = sa.select(jobs.c.id).where(jobs.c.created_by == created_by, jobs.c.request_id == request_id)
    found: str | None = await connection.scalar(query)
    return found


async def get(connection: AsyncConnection, job_id: str) -> Job | None:
    row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id))).mappings().first()
    if row is None:
        return None
    query = sa.select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.number)
    return _job(row, [_task(each) for each in (await connection.execute(query)).mappings()])


async def ids_with_prefix(connection: AsyncConnection, prefix: str) -> list[str]:
    query = sa.select(jobs.c.id).where(jobs.c.id.startswith(prefix, autoescape=True)).limit(2)
    return list((await connection.execute(query)).scalars())


async def newest(connection: AsyncConnection, *, state: str, target: str, limit: int) -> list[Job]:
    query = sa.select(jobs).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
    if state:
        query = query.where(jobs.c.state == state)
    if target:
        query = query.where(jobs.c.target == target)
    rows = (await connection.execute(query)).mappings().all()
    their = sa.select(tasks).where(tasks.c.job_id.in_([row["id"] for row in rows])).order_by(tasks.c.number)
    grouped: dict[str, list[Task]] = {}
    for each in (await connection.execute(their)).mappings():
        grouped.setdefault(each["job_id"], []).append(_task(each))
    return [_job(row, grouped.get(row["id"], [])) for row in rows]


async def counts(connection: AsyncConnection, *, ended_after: float) -> dict[str, int]:
    """Jobs by state; of the final ones only those that ended after the given instant."""
    recent = sa.or_(jobs.c.state.not_in(_FINAL), jobs.c.ended > ended_after)
    query = sa.select(jobs.c.state, sa.func.count()).where(recent).group_by(jobs.c.state)
    return {row[0]: row[1] for row in await connection.execute(query)}


async def open_jobs(connection: AsyncConnection) -> list[tuple[str, int]]:
    """Id and attempt of every job that has not ended."""
    query = sa.select(jobs.c.id, jobs.c.attempt).where(jobs.c.state.not_in(_FINAL)).order_by(jobs.c.id)
    return [(row.id, row.attempt) for row in await connection.execute(query)]


async def begin_job(connection: AsyncConnection, job_id: str) -> None:
    waiting = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.state == State.NOT_STARTED)
    await connection.execute(waiting.values(state=State.IN_PROGRESS))


async def end_job(
    connection: AsyncConnection, job_id: str, state: State, error: types_pb2.ErrorDetail | None, *, now: float
) -> None:
    """Once: a job that has ended stays as it ended."""
    data = None if error is None else error.SerializeToString()
    still_open = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.state.not_in(_FINAL))
    await connection.execute(still_open.values(state=state, error=data, ended=now))


async def request_cancel(connection: AsyncConnection, job_id: str) -> bool:
    """Whether the job was still open."""
    still_open = sa.update(jobs).where(jobs.c.id == job_id, jobs.c.state.not_in(_FINAL))
    return (await connection.execute(still_open.values(cancel_requested=True))).rowcount == 1


async def cancel_requested(connection: AsyncConnection, job_id: str) -> bool:
    return bool(await connection.scalar(sa.select(jobs.c.cancel_requested).where(jobs.c.id == job_id)))


async def add_result(connection: AsyncConnection, job_id: str, facts: Mapping[str, str]) -> None:
    query = sa.select(jobs.c.result).where(jobs.c.id == job_id).with_for_update()
    held = await connection.scalar(query)
    await connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(result={**(held or {}), **facts}))


async def forget_before(connection: AsyncConnection, instant: float) -> list[tuple[str, int]]:
    """Delete jobs that ended before the instant; their id and attempt."""
    old = sa.delete(jobs).where(jobs.c.ended < instant).returning(jobs.c.id, jobs.c.attempt)
    return [(row.id, row.attempt) for row in await connection.execute(old)]


# ---- tasks -------------------------------------------------------------------------------------------------------


async def get_task(connection: AsyncConnection, task_id: str) -> Task:
    return _task((await connection.execute(sa.select(tasks).where(tasks.c.id == task_id))).mappings().one())


async def find_task(connection: AsyncConnection, task_id: str) -> Task | None:
    row = (await connection.execute(sa.select(tasks).where(tasks.c.id == task_id))).mappings().first()
    return None if row is None else _task(row)


async def begin_task(connection: AsyncConnection, task_id: str, *, now: float) -> None:
    """Keeps the instant of the first start when the handler runs again after a crash."""
    await connection.execute(
        sa.update(tasks)
        .where(tasks.c.id == task_id, tasks.c.state.not_in(_FINAL))
        .values(state=State.IN_PROGRESS, started=sa.func.coalesce(tasks.c.started, now))
    )


async def end_task(
    connection: AsyncConnection, task_id: str, state: State, error: types_pb2.ErrorDetail | None, *, now: float
) -> None:
    values: dict[str, Any] = {"state": state, "ended": now}
    if error is not None:
        values["error"] = error.SerializeToString()
    if state in (State.SUCCEEDED, State.COMPLETED_WITH_ERRORS):
        values |= {"percent": 100, "message": ""}  # how far it was, or what it waited for, is true no more
    await connection.execute(sa.update(tasks).where(tasks.c.id == task_id).values(**values))


async def warn(connection: AsyncConnection, task_id: str, error: types_pb2.ErrorDetail) -> None:
    """The first warning is kept: what follows is mostly its consequence."""
    first = sa.update(tasks).where(tasks.c.id == task_id, tasks.c.error.is_(None))
    await connection.execute(first.values(error=error.SerializeToString()))


async def progress(
    connection: AsyncConnection,
    task_id: str,
    *,
    percent: int,
    done: int,
    total: int,
    message: str,
    rate: float,
    now: float,
) -> bool:
    """Whether the task was still running; what arrives later is dropped."""
    running = sa.update(tasks).where(tasks.c.id == task_id, tasks.c.state == State.IN_PROGRESS)
    written = await connection.execute(
        running.values(
            percent=min(percent, 100),
            bytes_done=done,
            bytes_total=total,
            message=message,
            bytes_per_second=rate,
            progressed=now,
        )
    )
    return written.rowcount == 1


async def progressed(connection: AsyncConnection, task_id: str) -> float | None:
    """When the task's progress was last written, seconds since 1970 UTC."""
    instant: float | None = await connection.scalar(sa.select(tasks.c.progressed).where(tasks.c.id == task_id))
    return instant


# ---- agent commands ----------------------------------------------------------------------------------------------


async def get_command(connection: AsyncConnection, command_id: str) -> Mapping[Any, Any] | None:
    return (await connection.execute(sa.select(commands).where(commands.c.id == command_id))).mappings().first()


async def insert_command(
    connection: AsyncConnection, command_id: str, *, task_id: str, server_id: str, body: bytes, now: float
) -> None:
    await connection.execute(
        sa.insert(commands).values(
            id=command_id, task_id=task_id, server_id=server_id, body=body, state="new", created=now
        )
    )


async def open_commands(connection: AsyncConnection, server_id: str) -> list[Mapping[Any, Any]]:
    """Oldest first."""
    query = sa.select(commands).where(commands.c.server_id == server_id, commands.c.state != "done")
    return list((await connection.execute(query.order_by(commands.c.created, commands.c.id))).mappings())


async def withdraw_command(connection: AsyncConnection, command_id: str, *, now: float) -> None:
    running = sa.update(commands).where(commands.c.id == command_id, commands.c.state != "done")
    await connection.execute(running.where(commands.c.cancelled.is_(None)).values(cancelled=now))


async def receive_command(connection: AsyncConnection, command_id: str) -> None:
    await connection.execute(
        sa.update(commands).where(commands.c.id == command_id, commands.c.state == "new").values(state="received")
    )


async def finish_command(connection: AsyncConnection, command_id: str, result: bytes) -> bool:
    """False when a result was stored before: the first one counts."""
    running = sa.update(commands).where(commands.c.id == command_id, commands.c.state != "done")
    return (await connection.execute(running.values(state="done", result=result))).rowcount == 1
