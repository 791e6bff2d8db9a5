"""`twinsite point`: recovery points."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli.command import Context, command
from twinsite.cli.output import age, local


@click.group()
def point() -> None:
    """Recovery points."""


@point.command(name="list")
@click.argument("vm")
@command()
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
            p.pinned_by,
            str(p.term),
        )
        for p in found
    ]
    columns = ("POINT", "TIME", "TYPE", "LOSS-IF-USED", "CHANGED", "STORED", "IN-USE-BY", "TERM")
    context.output.items("PointList", found, columns, rows)
