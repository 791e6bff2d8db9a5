"""`twinsite point`: recovery points."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli import confirm, names, verify
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.moment import MOMENT
from twinsite.cli.output import age, local


@click.group()
def point() -> None:
    """Recovery points."""


@point.command(name="list")
@click.argument("vm", shell_complete=names.vms)
@command(watches=True)
async def list_(context: Context, vm: str) -> None:
    """Recovery points of a VM, newest first; POINT is what test and failover take with --point.

    \b
    twinsite point list web01
    """
    async with context.connect() as api:
        found = (await api.points.List(admin_pb2.ShowRequest(name=vm))).points
    now = context.clock.now()
    rows = [
        (
            str(p.cycle),
            local(p.instant),
            p.consistency,
            age(p.instant, now),
            units.size(p.changed_bytes),
            units.size(p.stored_bytes),
            p.name,
            ", ".join(_marks(p, now)),
            str(p.term),
        )
        for p in found
    ]
    columns = ("POINT", "TIME", "TYPE", "LOSS-IF-USED", "CHANGED", "STORED", "LABEL", "MARKS", "TERM")
    context.output.items("PointList", types_pb2.Point, found, columns, rows)


def _marks(p: types_pb2.Point, now: float) -> list[str]:
    """Worst first."""
    marks = []
    if p.lost:
        marks.append("LOST (its description is damaged)")
    elif p.damaged_clusters:
        marks.append(f"DAMAGED ({units.count(p.damaged_clusters, 'cluster')})")
    if p.pinned_by:
        marks.append(f"in use by {p.pinned_by}")
    if p.locked_until.seconds > now:
        marks.append(f"locked until {local(p.locked_until)}")
    if p.kept:
        marks.append("kept")
    return marks


async def _mark(context: Context, request: admin_pb2.MarkPointRequest, said: str) -> None:
    async with context.connect() as api:
        answer = await api.points.Mark(request)
        if request.dry_run or not answer.job_id:
            confirm.show(answer.consequences, answer.warnings)
            return
        await context.finish(api, answer.job_id)
        context.output.done(said, following=f"twinsite point list {request.vm}")


_POINT = click.argument("number", metavar="POINT", type=click.IntRange(1))
_REASON = click.option("--reason", default="", help="Goes to the audit log.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")


@point.command()
@click.argument("vm", shell_complete=names.vms)
@_POINT
@click.option("--name", "label", default=None, help="Also give it a name.")
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def pin(context: Context, vm: str, number: int, label: str | None, reason: str, dry_run: bool) -> None:
    """Keep a point until it is unpinned, whatever the pair's policy keeps.

    \b
    twinsite point pin web01 41 --name "before the update"
    """
    request = admin_pb2.MarkPointRequest(vm=vm, cycle=number, keep=True, name=label, reason=reason, dry_run=dry_run)
    await _mark(context, request, f"point {number} of {vm} is kept")


@point.command()
@click.argument("vm", shell_complete=names.vms)
@_POINT
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def unpin(context: Context, vm: str, number: int, reason: str, dry_run: bool) -> None:
    """Leave a point to the pair's policy again; a lock stays.

    \b
    twinsite point unpin web01 41
    """
    request = admin_pb2.MarkPointRequest(vm=vm, cycle=number, keep=False, reason=reason, dry_run=dry_run)
    await _mark(context, request, f"point {number} of {vm} is kept by its policy alone")


@point.command()
@click.argument("vm", shell_complete=names.vms)
@_POINT
@click.argument("label", metavar="NAME")
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def name(context: Context, vm: str, number: int, label: str, reason: str, dry_run: bool) -> None:
    """Give a point a name; an empty one takes it away. That alone does not keep the point.

    \b
    twinsite point name web01 41 "before the update"
    """
    request = admin_pb2.MarkPointRequest(vm=vm, cycle=number, name=label, reason=reason, dry_run=dry_run)
    await _mark(context, request, f"point {number} of {vm} is named" if label else f"point {number} has no name")


@point.command()
@click.argument("vm", shell_complete=names.vms)
@_POINT
@click.option("--until", type=MOMENT, help="A time, for example 2027-01-31 or +30d.")
@click.option("--for", "seconds", type=DURATION, help="So long from now on, for example 30d.")
@click.option("--confirm", "confirmed", help="The VM's name.")
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def lock(
    context: Context,
    vm: str,
    number: int,
    until: float | None,
    seconds: int | None,
    confirmed: str | None,
    reason: str,
    dry_run: bool,
) -> None:
    """Lock a point: nobody can delete it before its time, and nobody can shorten that. It cannot be undone.

    \b
    twinsite point lock web01 41 --for 30d --confirm web01
    twinsite point lock web01 41 --until 2027-01-31 --dry-run
    """
    if (until is None) == (seconds is None):
        raise click.UsageError("say --until TIME or --for DURATION")
    span = seconds if seconds is not None else int((until or 0.0) - context.clock.now())
    if span <= 0:
        raise click.UsageError("a lock ends in the future")
    request = admin_pb2.MarkPointRequest(vm=vm, cycle=number, lock_seconds=span, reason=reason, dry_run=True)
    async with context.connect() as api:
        plan = await api.points.Mark(request)
        confirm.show(plan.consequences, plan.warnings)
        if dry_run or not plan.consequences:
            return
        confirm.typed_name(f"locking point {number} of {vm}", vm, given=confirmed, no_input=context.no_input)
        request.dry_run = False
        answer = await api.points.Mark(request)
        await context.finish(api, answer.job_id, following=f"twinsite point list {vm}")


@point.command(name="verify")
@click.argument("vm", shell_complete=names.vms)
@_POINT
@_DRY_RUN
@command(mutates=True, waits=True)
async def verify_(context: Context, vm: str, number: int, dry_run: bool) -> None:
    """Read and check all that a point stands on; exit 3 when something is damaged.

    \b
    twinsite point verify web01 41
    """
    await verify.run(context, admin_pb2.VerifyRequest(name=vm, cycle=number, dry_run=dry_run))
