"""Following a job: progress on stderr, JSON Lines on stdout, Ctrl-C detaches and never cancels."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Final, Self

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli.command import Detached
from twinsite.cli.output import Output, emit
from twinsite.cli.plain import to_plain
from twinsite.cli.session import Api
from twinsite.errors import Unreachable

FINAL: Final = frozenset({"succeeded", "completed_with_errors", "failed", "cancelled"})
EXIT: Final = {"succeeded": 0, "completed_with_errors": 3, "failed": 1, "cancelled": 1}
TIMED_OUT: Final = 8
_WIDE: Final = 110  # columns of a terminal
WAITS: Final = -1  # no exit code: the job has not ended and nothing is amiss


async def changes(api: Api, job_id: str) -> AsyncIterator[admin_pb2.Job]:
    """The job at every change, last when it is final; goes on over a restart of the coordinator."""
    while True:
        try:
            async for job in api.jobs.Watch(admin_pb2.ShowRequest(name=job_id)):
                yield job
                if job.state in FINAL:
                    return
        except Unreachable:
            await asyncio.sleep(0.5)  # noqa: TID251  # a person's terminal; no clock to move


async def follow(api: Api, job_id: str, output: Output, *, timeout: float | None, until_it_waits: bool = False) -> int:
    """Wait for the job, show it, say how it ended; the exit code, or WAITS. Raises Detached on Ctrl-C.

    `until_it_waits`: for a time that was chosen, or for a person: it is not waited for either, and goes on by itself.
    """
    try:
        async with asyncio.timeout(timeout or None):
            job = await _watch(api, job_id, output, until_it_waits=until_it_waits)
    except TimeoutError:
        output.note(f"job {job_id} still runs after {units.duration(timeout or 0)}; twinsite job watch {job_id}")
        return TIMED_OUT
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise Detached(job_id) from None
    if output.json:
        emit({"message_type": "summary", "job": to_plain(job)})
    if job.state not in FINAL:
        output.note(f"job {job_id} goes on by itself; twinsite job watch {job_id}")
        return WAITS
    _say(job, output)
    return EXIT[job.state]


async def _watch(api: Api, job_id: str, output: Output, *, until_it_waits: bool) -> admin_pb2.Job:
    last = admin_pb2.Job()
    with _bar(output) as show:
        async for job in changes(api, job_id):
            last = job
            if output.json and job.state not in FINAL:
                emit({"message_type": "status", "job": to_plain(job)})
            show(job)
            if until_it_waits and any(_waits(task) for task in job.tasks):
                break
    return last


def _waits(task: admin_pb2.Task) -> bool:
    """For a chosen time or a person; not for something that is amiss ("waiting: …")."""
    return task.state == "in_progress" and task.message.startswith("waits ")


class _bar:  # noqa: N801  # reads as a function
    """A live line per task on a terminal, one line per finished task elsewhere."""

    def __init__(self, output: Output) -> None:
        self.live = None
        self.output = output
        self.told: set[str] = set()
        if not output.quiet and not output.json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

            console = Console(stderr=True)
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f} %")]
            if console.width >= _WIDE:  # what is left and for how long comes before a picture of it
                columns.append(BarColumn(bar_width=24))
            self.live = Progress(*columns, TextColumn("{task.fields[detail]}"), console=console, transient=True)
            self.row = self.live.add_task("", total=100, detail="")

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, job: admin_pb2.Job) -> None:
        running = [task for task in job.tasks if task.state in ("in_progress", "waiting_for_action")]
        if self.live:
            task = running[-1] if running else (job.tasks[-1] if job.tasks else admin_pb2.Task())
            done = sum(task.state in FINAL for task in job.tasks)
            if job.id not in self.told:
                self.told.add(job.id)
                self.live.console.print(f"job {job.id} {job.kind} {job.target}  (Ctrl-C detaches, the job goes on)")
            description = f"  {min(done + 1, len(job.tasks))}/{len(job.tasks)} {task.name}"
            self.live.update(self.row, description=description, completed=task.percent, detail=_detail(task))
            return
        if self.output.json:
            return
        for task in running:
            if task.message.startswith("wait") and task.message not in self.told:  # for a time, or for a person
                self.told.add(task.message)
                self.output.note(f"  {task.name}: {task.message}")
        for task in job.tasks:
            if task.state in FINAL and task.id not in self.told:
                self.told.add(task.id)
                told = f" ({task.message})" if task.message and task.state == "succeeded" else ""
                self.output.note(f"  {task.name}: {task.state}{told}")


def _detail(task: admin_pb2.Task) -> str:
    if not task.bytes_total:
        return task.message
    if task.state == "succeeded":
        return units.size(task.bytes_total)
    text = f"{units.size(task.bytes_done)} of {units.size(task.bytes_total)}"
    if task.bytes_per_second:
        text += f"  {units.size(int(task.bytes_per_second))}/s  eta {units.duration(task.eta_seconds)}"
    return text


def _say(job: admin_pb2.Job, output: Output) -> None:
    length = units.duration(max(0, job.ended.seconds - job.created.seconds))
    output.note(f"job {job.id} {job.kind} {job.target}: {job.state.replace('_', ' ')} in {length}")
    if note := job.result.get("note"):
        output.note(f"  {note}")
    for task in job.tasks:
        if task.HasField("error"):
            output.note(f"  {task.name}: {task.error.message}  ({task.error.code})")
            for label, text in (
                ("Cause:", task.error.cause),
                ("State:", task.error.still_works),
                ("Next:", task.error.next_step),
            ):
                if text:
                    output.note(f"    {label:<8} {text}")
