"""What a user's job does, through the API the services and the links use."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
import sqlalchemy as sa

from coordinator import audit
from coordinator.jobs import Job, Jobs, State, TaskCancelled, TaskContext, TaskPlan, model
from coordinator.jobs.store import commands
from coordinator.store.engine import Database
from tests.fakes.provider import FakeProvider
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import MovedClock
from twinsite.errors import Failed, TwinsiteError

Eventually = Callable[..., Awaitable[object]]
CHECK = commands_pb2.HostCommand(host_id="h-1", check_source=commands_pb2.CheckSource(vm_id="vm"))


class Broken(Failed):
    public = "the thing broke"
    next_step = "mend it"


async def submit(
    jobs: Jobs, database: Database, tasks: Sequence[TaskPlan], *, request_id: str = "", kind: str = "test"
) -> str:
    async with database.write() as connection:
        return await jobs.submit(
            connection, kind=kind, target="vm/web01", tasks=tasks, created_by="ana", request_id=request_id
        )


async def ended(jobs: Jobs, job_id: str) -> Job:
    async with asyncio.timeout(30):
        async for job in jobs.changes(job_id):
            if job.final:
                return job
    raise AssertionError


def task(kind: str, stage: int = 1, *, always: bool = False, optional: bool = False, **args: str) -> TaskPlan:
    return TaskPlan(name=f"Do {kind}", kind=kind, args=dict(args), stage=stage, always=always, optional=optional)


async def nothing(_: TaskContext) -> None: ...


async def breaks(_: TaskContext) -> None:
    raise Broken


async def warns(context: TaskContext) -> None:
    await context.warn(Broken())


async def commanding(context: TaskContext) -> None:
    result = await context.command("s-1", CHECK)
    await context.set_result(note=result.note)


@pytest.fixture
async def started(jobs: Jobs) -> Jobs:
    for name, handler in {"nothing": nothing, "breaks": breaks, "warns": warns, "commanding": commanding}.items():
        jobs.handler(name, handler)
    await jobs.start()
    return jobs


async def test_tasks_of_a_stage_run_side_by_side_and_stages_one_after_the_other(jobs: Jobs, database: Database) -> None:
    running: set[str] = set()
    order: list[str] = []
    both = asyncio.Event()

    async def meet(context: TaskContext) -> None:
        running.add(context.task_id)
        if len(running) == 2:
            both.set()
        await both.wait()
        order.append("first")

    async def last(_: TaskContext) -> None:
        order.append("second")

    jobs.handler("meet", meet)
    jobs.handler("last", last)
    await jobs.start()
    job_id = await submit(jobs, database, [task("meet"), task("meet"), task("last", 2)])
    job = await ended(jobs, job_id)
    assert job.state is State.SUCCEEDED
    assert order == ["first", "first", "second"]
    assert [each.id for each in job.tasks] == [f"{job_id}.{number}" for number in (1, 2, 3)]
    assert {each.percent for each in job.tasks} == {100}
    assert job.ended is not None


async def test_a_job_of_a_transaction_that_rolls_back_never_was(started: Jobs, database: Database) -> None:
    async with database.engine.connect() as connection:
        lost = await started.submit(connection, kind="k", target="t", tasks=[task("nothing")], created_by="ana")
        await connection.rollback()
    kept = await submit(started, database, [task("nothing")])
    assert (await ended(started, kept)).state is State.SUCCEEDED
    assert [job.id for job in await started.list()] == [kept]
    with pytest.raises(model.JobNotFound):
        await started.get(lost)


async def test_a_repeated_request_gets_the_same_job(started: Jobs, database: Database) -> None:
    first = await submit(started, database, [task("nothing")], request_id="r-1")
    again = await submit(started, database, [task("nothing")], request_id="r-1")
    other = await submit(started, database, [task("nothing")], request_id="r-2")
    assert first != await submit(started, database, [task("nothing")], request_id="r-1", kind="another")
    assert first == again != other


async def test_a_failed_task_fails_the_job_with_its_error_and_cleaning_up_runs(
    started: Jobs, database: Database
) -> None:
    job = await ended(
        started,
        await submit(started, database, [task("breaks"), task("nothing", 2), task("nothing", 3, always=True)]),
    )
    assert job.state is State.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.next_step) == ("BROKEN", "mend it")
    assert [each.state for each in job.tasks] == [State.FAILED, State.NOT_STARTED, State.SUCCEEDED]


async def test_a_defect_in_a_handler_fails_its_job_without_telling_details(jobs: Jobs, database: Database) -> None:
    async def wrong(_: TaskContext) -> None:
        raise KeyError("secret")

    jobs.handler("wrong", wrong)
    await jobs.start()
    job = await ended(jobs, await submit(jobs, database, [task("wrong")]))
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "HANDLER_DEFECT"
    assert "secret" not in str(job.error)


@pytest.mark.parametrize(
    ("plan", "state"),
    [
        (task("warns"), State.COMPLETED_WITH_ERRORS),
        (task("warns", optional=True), State.SUCCEEDED),
        (task("breaks", optional=True), State.COMPLETED_WITH_ERRORS),
    ],
)
async def test_what_did_not_go_as_asked_shows_in_how_the_job_ends(
    started: Jobs, database: Database, plan: TaskPlan, state: State
) -> None:
    job = await ended(started, await submit(started, database, [plan, task("nothing", 2)]))
    assert job.state is state
    assert job.tasks[1].state is State.SUCCEEDED
    assert job.tasks[0].error is not None
    assert job.tasks[0].error.code == "BROKEN"
    assert (job.error is not None) == (state is State.COMPLETED_WITH_ERRORS)


async def test_a_command_reaches_its_host_once_and_its_answer_the_task(started: Jobs, database: Database) -> None:
    async with FakeProvider(started).connected() as provider:
        job_id = await submit(started, database, [task("commanding")])
        job = await ended(started, job_id)
    assert job.state is State.SUCCEEDED
    assert job.result == {"note": "done"}
    assert [command.id for command in provider.executed] == [f"{job_id}.1@1"]
    assert provider.executed[0].check_source.vm_id == "vm"
    assert list(await started.commands_for("s-1")) == []


async def test_the_agents_error_is_the_jobs_error(started: Jobs, database: Database) -> None:
    provider = FakeProvider(started)
    provider.answer = provider.fail
    async with provider.connected():
        job = await ended(started, await submit(started, database, [task("commanding")]))
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("NO_SPACE", "the store {is} full")


async def test_a_result_told_twice_counts_once_and_only_from_its_own_server(
    started: Jobs, database: Database, eventually: Eventually
) -> None:
    job_id = await submit(started, database, [task("commanding")])
    await eventually(lambda: started.commands_for("s-1"))
    command_id = f"{job_id}.1@1"
    with pytest.raises(model.CommandOfAnotherServer):
        await started.command_result("s-2", commands_pb2.CommandResult(id=command_id, ok=True))
    await started.command_result("s-1", commands_pb2.CommandResult(id=command_id, ok=True, note="first"))
    await started.command_result("s-1", commands_pb2.CommandResult(id=command_id, ok=False))
    await started.command_result("s-1", commands_pb2.CommandResult(id="j-gone.1@1", ok=True))
    job = await ended(started, job_id)
    assert (job.state, job.result) == (State.SUCCEEDED, {"note": "first"})


async def test_only_the_server_that_was_given_a_command_speaks_of_it(
    started: Jobs, database: Database, eventually: Eventually
) -> None:
    job_id = await submit(started, database, [task("commanding")])
    await eventually(lambda: started.commands_for("s-1"))
    report = commands_pb2.CommandProgress(id=f"{job_id}.1@1", percent=99)
    with pytest.raises(model.CommandOfAnotherServer) as refused:
        await started.command_progress("s-2", report)
    assert refused.value.text("next_step")
    with pytest.raises(model.CommandOfAnotherServer):
        await started.command_received("s-2", report.id)
    assert (await started.get(job_id)).tasks[0].percent == 0
    await started.command_progress("s-2", commands_pb2.CommandProgress(id="j-gone.1@1", percent=1))
    await started.command_progress("s-1", report)
    assert (await started.get(job_id)).tasks[0].percent == 99
    await started.command_result("s-1", commands_pb2.CommandResult(id=report.id, ok=True))
    await ended(started, job_id)


async def test_cancel_withdraws_the_command_skips_later_stages_and_cleans_up(
    started: Jobs, database: Database, eventually: Eventually
) -> None:
    provider = FakeProvider(started)
    provider.answer = provider.keep_running
    plans = [task("commanding"), task("nothing", 2), task("nothing", 3, always=True)]
    async with provider.connected():
        job_id = await submit(started, database, plans)
        await eventually(lambda: provider.executed)
        shown = await started.cancel(job_id, "ben")
        assert shown.cancel_requested
        await started.cancel(job_id, "ben")
        job = await ended(started, job_id)
    assert job.state is State.CANCELLED
    assert [each.state for each in job.tasks] == [State.CANCELLED, State.NOT_STARTED, State.SUCCEEDED]
    assert provider.cancelled == [f"{job_id}.1@1"]
    async with database.read() as connection:
        entry = (await audit.recent(connection, limit=1))[0]
    assert (entry.actor, entry.action, entry.target) == ("ben", "job.cancel", f"job/{job_id}")
    assert (await started.cancel(job_id, "ben")).state is State.CANCELLED


async def test_cancel_of_a_job_that_has_ended_is_refused(started: Jobs, database: Database) -> None:
    job = await ended(started, await submit(started, database, [task("nothing")]))
    with pytest.raises(model.JobIsFinal, match="ended already"):
        await started.cancel(job.id, "ben")


async def test_a_cancelled_job_does_not_wait_for_ever_for_a_host_that_is_gone(
    started: Jobs, database: Database, clock: MovedClock, eventually: Eventually
) -> None:
    job_id = await submit(started, database, [task("commanding")])
    await eventually(lambda: started.commands_for("s-1"))
    await started.cancel(job_id, "ben")

    async def withdrawn() -> bool:
        return any(isinstance(order, commands_pb2.CancelCommand) for order in await started.commands_for("s-1"))

    await eventually(withdrawn)
    clock.advance(31)
    assert (await ended(started, job_id)).state is State.CANCELLED


async def test_a_command_that_takes_too_long_is_withdrawn(
    jobs: Jobs, database: Database, clock: MovedClock, eventually: Eventually
) -> None:
    async def hurried(context: TaskContext) -> None:
        await context.command("s-1", CHECK, timeout=60)

    jobs.handler("hurried", hurried)
    await jobs.start()
    job_id = await submit(jobs, database, [task("hurried")])
    await eventually(lambda: jobs.commands_for("s-1"))
    clock.advance(61)
    job = await ended(jobs, job_id)
    assert job.error is not None
    assert job.error.code == "COMMAND_TIMED_OUT"
    assert [type(order) for order in await jobs.commands_for("s-1")] == [commands_pb2.CancelCommand]


async def test_waiting_for_a_level_ends_when_it_is_there_at_its_timeout_or_on_cancel(
    jobs: Jobs, database: Database, clock: MovedClock, eventually: Eventually
) -> None:
    level: dict[str, str] = {}
    asked: set[str] = set()

    async def waits(context: TaskContext) -> None:
        async def check() -> str | None:
            asked.add(context.job_id)
            return level.get(context.job_id)

        await context.set_result(found=await context.until(check, timeout=100))

    jobs.handler("waits", waits)
    await jobs.start()
    there, late, cancelled = [await submit(jobs, database, [task("waits")]) for _ in range(3)]
    await eventually(lambda: len(asked) == 3)
    level[there] = "yes"
    jobs.wake()
    assert (await ended(jobs, there)).result == {"found": "yes"}
    await jobs.cancel(cancelled, "ben")
    assert (await ended(jobs, cancelled)).state is State.CANCELLED
    clock.advance(101)
    job = await ended(jobs, late)
    assert job.error is not None
    assert job.error.code == "WAIT_TIMED_OUT"


async def test_progress_of_a_command_shows_on_the_task_with_its_rate_and_what_is_left(
    started: Jobs, database: Database, clock: MovedClock, eventually: Eventually
) -> None:
    provider = FakeProvider(started)
    provider.answer = provider.keep_running
    async with provider.connected():
        job_id = await submit(started, database, [task("commanding")])
        await eventually(lambda: provider.executed)
        command_id = provider.executed[0].id
        for done in (0, 100, 200):
            clock.advance(2)
            report = commands_pb2.CommandProgress(
                id=command_id, percent=done // 10, bytes_done=done, bytes_total=1000, message="half"
            )
            await started.command_progress("s-1", report)
            await started.command_progress("s-1", commands_pb2.CommandProgress(id=command_id, percent=99))  # too soon
        shown = (await started.get(job_id)).tasks[0]
        assert (shown.percent, shown.bytes_done, shown.bytes_total) == (20, 200, 1000)
        assert shown.bytes_per_second == pytest.approx(50)
        assert shown.eta_seconds == pytest.approx(16)
        await started.command_result("s-1", provider.succeed(provider.executed[0]))
        await ended(started, job_id)
    clock.advance(2)
    await started.command_progress("s-1", commands_pb2.CommandProgress(id=command_id, percent=7))
    whole = (await started.get(job_id)).tasks[0]
    assert (whole.percent, whole.message) == (100, "")  # a step on the way is no summary of the whole


async def test_a_command_asked_for_again_with_another_action_is_a_defect(jobs: Jobs, database: Database) -> None:
    async def changes_its_mind(context: TaskContext) -> None:
        await context.command("s-1", CHECK)
        other = commands_pb2.HostCommand(host_id="h-1", remove_replica=commands_pb2.RemoveReplica(vm_id="vm"))
        await context.command("s-1", other, label="second")
        await context.command("s-1", other)

    jobs.handler("changes", changes_its_mind)
    await jobs.start()
    async with FakeProvider(jobs).connected() as provider:
        job_id = await submit(jobs, database, [task("changes")])
        job = await ended(jobs, job_id)
    assert job.error is not None
    assert job.error.code == "COMMAND_REUSED"
    assert [command.id for command in provider.executed] == [f"{job_id}.1@1", f"{job_id}.1@1.second"]


async def test_unfinished_work_goes_on_after_a_stop_and_a_new_start(
    database: Database, clock: MovedClock, eventually: Eventually
) -> None:
    first = Jobs(database, clock)
    first.handler("commanding", commanding)
    await first.start()
    job_id = await submit(first, database, [task("commanding")])
    await eventually(lambda: first.commands_for("s-1"))
    await first.stop()
    assert (await first.get(job_id)).state is State.IN_PROGRESS
    second = Jobs(database, clock)
    second.handler("commanding", commanding)
    await second.start()
    try:
        async with FakeProvider(second).connected() as provider:
            assert (await ended(second, job_id)).state is State.SUCCEEDED
        assert len(provider.executed) == 1
        async with database.read() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(commands)) == 1
    finally:
        await second.stop()


async def test_watching_shows_each_state_and_ends_with_the_final_one(started: Jobs, database: Database) -> None:
    async with FakeProvider(started).connected():
        job_id = await submit(started, database, [task("commanding")])
        async with asyncio.timeout(20):
            seen = [job.state async for job in started.changes(job_id[:-1])]  # a unique prefix will do
    assert seen[-1] is State.SUCCEEDED
    assert State.SUCCEEDED not in seen[:-1]
    with pytest.raises(model.JobNotFound):
        await anext(started.changes("j-nothere"))


async def test_lists_are_newest_first_and_filtered(started: Jobs, database: Database, clock: MovedClock) -> None:
    good = await submit(started, database, [task("nothing")])
    await ended(started, good)
    clock.advance(1)
    bad = await submit(started, database, [task("breaks")])
    await ended(started, bad)
    assert [job.id for job in await started.list()] == [bad, good]
    assert [job.id for job in await started.list(state="failed")] == [bad]
    assert [job.id for job in await started.list(limit=1)] == [bad]
    assert await started.list(target="vm/other") == []
    assert await started.counts(ended_after=clock.now() - 1) == {"failed": 1}
    with pytest.raises(model.UnknownJobState, match="nonsense"):
        await started.list(state="nonsense")


async def test_a_task_of_an_unknown_kind_is_refused_at_submission(started: Jobs, database: Database) -> None:
    with pytest.raises(model.UnknownTaskKind, match="nobody"):
        await submit(started, database, [task("nobody")])
    assert await started.list() == []


async def test_reconcile_fails_jobs_whose_workflow_is_gone_and_forgets_old_ones(
    started: Jobs, database: Database, clock: MovedClock
) -> None:
    old = await submit(started, database, [task("nothing")])
    await ended(started, old)
    clock.advance(91 * 86400)
    orphan = await submit(started, database, [task("commanding")])
    workflow = "dbos.workflow_status" if not database.embedded else "workflow_status"
    async with database.write() as connection:
        await connection.execute(
            sa.text(f"DELETE FROM {workflow} WHERE workflow_uuid LIKE :name"), {"name": f"{orphan}%"}
        )
    await started.reconcile()
    job = await started.get(orphan)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "ENGINE_FAILED")
    with pytest.raises(model.JobNotFound):
        await started.get(old)


def test_errors_of_jobs_have_texts_without_holes() -> None:
    for error in (
        model.CommandTimedOut("h-1", 60),
        model.JobIsFinal("j-1", "failed"),
        model.WaitTimedOut(60),
        model.EngineFailed("x"),
        TaskCancelled(),
    ):
        assert isinstance(error, TwinsiteError)
        for field in ("public", "cause", "still_works", "next_step"):
            assert "{" not in error.text(field)
