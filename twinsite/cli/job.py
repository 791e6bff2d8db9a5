"""`twinsite job`."""

import asyncio

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import confirm, names, waiting
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.output import age, local


@click.group()
def job() -> None:
    """What was asked for, and how far it is."""


@job.command(name="list")
@click.option("--state", default="", help="For example failed or in_progress.")
@click.option("--target", default="", help="For example vm/web01.")
@click.option("--limit", type=click.IntRange(1, 10000), default=200, show_default=True)
@command(watches=True)
async def list_(context: Context, state: str, target: str, limit: int) -> None:
    """Jobs, newest first.

    \b
    twinsite job list --state failed
    """
    async with context.connect() as api:
        found = (await api.jobs.List(admin_pb2.ListJobsRequest(state=state, target=target, limit=limit))).jobs
    now = context.clock.now()
    rows = [
        (j.id, j.kind, j.target, j.state.replace("_", " "), f"{_percent(j)} %", j.created_by, age(j.created, now))
        for j in found
    ]
    context.output.items("JobList", admin_pb2.Job, found, ("JOB", "KIND", "TARGET", "STATE", "DONE", "BY", "AGE"), rows)


@job.command()
@click.argument("id_", metavar="JOB", shell_complete=names.jobs)
@command(watches=True)
async def show(context: Context, id_: str) -> None:
    """One job with its tasks.

    \b
    twinsite job show j-8f31c2aa
    """
    async with context.connect() as api:
        j = await api.jobs.Show(admin_pb2.ShowRequest(name=id_))
    facts = [
        ("Job", j.id),
        ("Kind", j.kind),
        ("Target", j.target),
        ("State", j.state.replace("_", " ") + (", cancel asked for" if j.cancel_requested else "")),
        ("Started", f"{local(j.created)} by {j.created_by}"),
        ("Ended", local(j.ended)),
        *((f"  {number} {t.name}", _task(t)) for number, t in enumerate(j.tasks, 1)),
        *((name.replace("_", " ").capitalize(), value) for name, value in sorted(j.result.items())),
        ("Error", j.error.message),
        ("Next", j.error.next_step),
    ]
    context.output.one("Job", j, facts)


@job.command()
@click.argument("id_", metavar="JOB", shell_complete=names.jobs)
@click.option("--wait-timeout", "seconds", type=DURATION, default=0, help="Exit 8 when it takes longer; 0: never.")
@command()
async def watch(context: Context, id_: str, seconds: int) -> None:
    """Follow a job to its end; Ctrl-C detaches.

    \b
    twinsite job watch j-8f31c2aa
    """
    async with context.connect() as api:
        code = await waiting.follow(api, id_, context.output, timeout=seconds)
    raise click.exceptions.Exit(code)


@job.command()
@click.argument("ids", metavar="JOB…", nargs=-1, required=True, shell_complete=names.jobs)
@click.option("--wait-timeout", "seconds", type=DURATION, default=0, help="Exit 8 when they take longer; 0: never.")
@command()
async def wait(context: Context, ids: tuple[str, ...], seconds: int) -> None:
    """Wait for jobs without showing progress; exits with the worst of their codes.

    \b
    twinsite job wait j-8f31c2aa j-51c0aa31 --wait-timeout 10m
    """
    worst = 0
    try:
        async with asyncio.timeout(seconds or None), context.connect() as api:
            for id_ in ids:
                async for j in waiting.changes(api, id_):
                    if j.state in waiting.FINAL:
                        context.output.note(f"job {j.id} {j.kind} {j.target}: {j.state.replace('_', ' ')}")
                        code = waiting.EXIT[j.state]
                        worst = code if code == 1 or worst == 0 else worst
    except TimeoutError:
        context.output.note(f"still running after {units.duration(seconds)}")
        worst = waiting.TIMED_OUT
    raise click.exceptions.Exit(worst)


@job.command()
@click.argument("id_", metavar="JOB", shell_complete=names.jobs)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True)
async def cancel(context: Context, id_: str, yes: bool, dry_run: bool) -> None:
    """Ask a job to stop at its next safe point; what it did is rolled back to there.

    \b
    twinsite job cancel j-8f31c2aa -y
    """
    async with context.connect() as api:
        j = await api.jobs.Cancel(admin_pb2.CancelJobRequest(id=id_, dry_run=True))
        confirm.show([f"job {j.id} ({j.kind} of {j.target}, by {j.created_by}) stops at its next safe point"])
        if dry_run:
            return
        confirm.yes(f"cancelling job {id_}", given=yes, no_input=context.no_input)
        j = await api.jobs.Cancel(admin_pb2.CancelJobRequest(id=id_))
    if j.state in waiting.FINAL:
        context.output.done(f"job {j.id} had ended already: {j.state.replace('_', ' ')}")
    else:
        context.output.done(f"job {j.id} stops at its next safe point", following=f"twinsite job watch {j.id}")


def _percent(job_: admin_pb2.Job) -> int:
    return sum(task.percent for task in job_.tasks) // max(1, len(job_.tasks))


def _task(task: admin_pb2.Task) -> str:
    text = task.state.replace("_", " ")
    if task.state == "in_progress":
        text += f" {task.percent} %"
    if task.bytes_total and task.state == "succeeded":
        text += f", {units.size(task.bytes_total)}"
    elif task.bytes_total:
        text += f", {units.size(task.bytes_done)} of {units.size(task.bytes_total)}"
    if task.message:
        text += f" ({task.message})"
    if task.HasField("error"):
        text += f": {task.error.message}"
    return text
