"""`twinsite pair`: a primary cloud and the cloud it recovers into."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli import confirm
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.output import age, local


@click.group()
def pair() -> None:
    """Cloud pairs and their protection policy."""


@pair.command()
@click.argument("source")
@click.argument("target")
@click.option("--frequency", type=DURATION, default=300, show_default="5m", help="Time between two cycles.")
@click.option(
    "--points", type=click.IntRange(0, 24), default=0, show_default=True, help="Hourly points besides the newest."
)
@click.option("--compression/--no-compression", default=True, show_default=True)
@click.option(
    "--delete-replica/--keep-replica", default=False, show_default=True, help="What unprotect does to the replica."
)
@click.option("--dry-run", is_flag=True, help="Check; change nothing.")
@command(mutates=True, waits=True)
async def create(
    context: Context,
    source: str,
    target: str,
    frequency: int,
    points: int,
    compression: bool,
    delete_replica: bool,
    dry_run: bool,
) -> None:
    """Pair two clouds: VMs of SOURCE are protected into TARGET.

    \b
    twinsite pair create gold-a gold-b --frequency 30s --points 24
    """
    policy = types_pb2.Policy(
        frequency_seconds=frequency, additional_points=points, compression=compression, delete_replica=delete_replica
    )
    request = admin_pb2.CreatePairRequest(source_cloud=source, target_cloud=target, policy=policy, dry_run=dry_run)
    async with context.connect() as api:
        job = await api.pairs.Create(request)
        if dry_run:
            context.output.done("nothing speaks against it; nothing was changed")
        await context.finish(api, job.job_id, following=f"twinsite vm protect NAME --pair {source}:{target}")


@pair.command(name="list")
@command()
async def list_(context: Context) -> None:
    """Cloud pairs.

    \b
    twinsite pair list
    """
    async with context.connect() as api:
        found = (await api.pairs.List(admin_pb2.Empty())).pairs
    now = context.clock.now()
    rows = [
        (p.name, p.source_server, p.target_server, _policy(p.policy), str(p.vms_protected), age(p.created, now))
        for p in found
    ]
    context.output.items("PairList", found, ("NAME", "FROM", "TO", "POLICY", "VMS", "AGE"), rows)


@pair.command()
@click.argument("name")
@command()
async def show(context: Context, name: str) -> None:
    """One pair.

    \b
    twinsite pair show gold-a:gold-b
    """
    async with context.connect() as api:
        p = await api.pairs.Show(admin_pb2.ShowRequest(name=name))
    facts = [
        ("Name", p.name),
        ("From", f"{p.source_cloud} of {p.source_server}"),
        ("To", f"{p.target_cloud} of {p.target_server}"),
        ("Policy", _policy(p.policy)),
        ("On unprotect", "the replica is deleted" if p.policy.delete_replica else "the replica is kept"),
        ("VMs", str(p.vms_protected)),
        ("Created", local(p.created)),
    ]
    context.output.one("Pair", p, facts)


@pair.command()
@click.argument("name")
@click.option("--confirm", "confirmed", help="The pair's name.")
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def remove(context: Context, name: str, confirmed: str | None, reason: str, dry_run: bool) -> None:
    """Dissolve a pair that protects nothing any more.

    \b
    twinsite pair remove gold-a:gold-b --confirm gold-a:gold-b
    """
    async with context.connect() as api:
        plan = await api.pairs.Remove(admin_pb2.RemoveRequest(name=name, dry_run=True))
        confirm.show(plan.consequences)
        if dry_run:
            return
        confirm.typed_name(f"removing pair {name}", name, given=confirmed, no_input=context.no_input)
        answer = await api.pairs.Remove(admin_pb2.RemoveRequest(name=name, reason=reason))
        context.output.done(f"pair {name} is removed")
        await context.finish(api, answer.job_id)


def _policy(policy: types_pb2.Policy) -> str:
    compressed = "compressed" if policy.compression else "not compressed"
    return f"every {units.duration(policy.frequency_seconds)}, {policy.additional_points} points, {compressed}"
