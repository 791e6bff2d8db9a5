"""The two workflows, generic and dull.

Guard rail 3: exactly these two, and nothing but steps in them. A replay after a crash, or after an upgrade while
somebody thinks for two weeks, must take the same turns; what differs between jobs is data (task rows and stages).
Guard rail 4: tasks run side by side as child workflows with deterministic ids, joined in a fixed order; gathering
steps swapped results between branches after a recovery.
Guard rail 9: nothing is caught here. Steps return outcomes, so that no error's type can differ on replay, and what a
shutdown raises leaves the workflow pending for the next start.
A changed order of steps needs `DBOS.patch_async` or a new application version (see `engine`).
"""

from typing import Protocol

from dbos import DBOS, SetWorkflowID


class Runner(Protocol):
    """What the steps do; `engine.Engine` in the program."""

    def entered(self) -> None:
        """A workflow began on the running loop."""

    async def load(self, job_id: str) -> list[dict[str, str | int | bool]]: ...
    async def stopped(self, job_id: str) -> bool: ...
    async def perform(self, task_id: str, attempt: int) -> str: ...
    async def finish(self, job_id: str) -> str: ...


_runner: list[Runner] = []  # the engine is one for a process, and so is whoever runs its steps


def bind(runner: Runner) -> None:
    if _runner:
        raise RuntimeError("the job engine runs in this process already")
    _runner.append(runner)


def bound(runner: Runner) -> bool:
    return runner in _runner


def unbind() -> None:
    _runner.clear()


@DBOS.step(name="load")
async def load(job_id: str) -> list[dict[str, str | int | bool]]:
    return await _runner[0].load(job_id)


@DBOS.step(name="stopped")
async def stopped(job_id: str) -> bool:
    return await _runner[0].stopped(job_id)


@DBOS.step(name="perform")
async def perform(task_id: str, attempt: int) -> str:
    return await _runner[0].perform(task_id, attempt)


@DBOS.step(name="finish")
async def finish(job_id: str) -> str:
    return await _runner[0].finish(job_id)


# max_recovery_attempts=None: a coordinator in a restart loop must not send its jobs to the dead letters.
@DBOS.workflow(name="run_task", max_recovery_attempts=None)
async def run_task(task_id: str, attempt: int) -> str:
    _runner[0].entered()
    return await perform(task_id, attempt)


@DBOS.workflow(name="run_job", max_recovery_attempts=None)
async def run_job(job_id: str, attempt: int) -> str:
    _runner[0].entered()
    tasks = await load(job_id)
    for stage in sorted({int(task["stage"]) for task in tasks}):
        only_always = await stopped(job_id)
        handles = []
        for task in tasks:
            if task["stage"] == stage and (task["always"] or not only_always):
                with SetWorkflowID(f"{task['id']}@{attempt}"):
                    handles.append(await DBOS.start_workflow_async(run_task, str(task["id"]), attempt))
        for handle in handles:
            await handle.get_result()
    return await finish(job_id)
