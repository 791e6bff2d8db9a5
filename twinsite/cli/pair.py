"""`twinsite pair`: a primary cloud and the cloud it recovers into."""

import click

from twinsite import schedules, units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli import confirm, names
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.output import age, local


@click.group()
def pair() -> None:
    """Cloud pairs and their protection policy."""


_FREQUENCY = "Time between two cycles: 30s, 5m, 15m, or any from 1s on."
_POINTS = "Hourly points besides the newest."
_KEEP = "Retention beside the hourly points, EVERY:FOR: all:1h,5m:24h,1h:7d,1d:90d; or none."
_RATE = 'Cap of each VM, "10MB/s mon-fri 08:00-18:00"; the first that covers a moment holds; repeatable.'
_LINK_RATE = "Cap of all VMs together; the pair's source hosts share it; repeatable."
_APPLICATION = "Try an application-consistent point every so many hours; 0: never."


@pair.command()
@click.argument("source")
@click.argument("target")
@click.option("--frequency", type=DURATION, default=300, show_default="5m", help=_FREQUENCY)
@click.option("--points", type=click.IntRange(0, 24), default=0, show_default=True, help=_POINTS)
@click.option("--keep", default=schedules.NONE, show_default=True, help=_KEEP)
@click.option("--app-consistent", "application", type=DURATION, default=0, help=_APPLICATION)
@click.option("--rate", "rates", multiple=True, help=_RATE)
@click.option("--link-rate", "link_rates", multiple=True, help=_LINK_RATE)
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
    keep: str,
    application: int,
    rates: tuple[str, ...],
    link_rates: tuple[str, ...],
    compression: bool,
    delete_replica: bool,
    dry_run: bool,
) -> None:
    """Pair two clouds: VMs of SOURCE are protected into TARGET.

    \b
    twinsite pair create gold-a gold-b --frequency 30s --points 24
    twinsite pair create gold-a gold-b --keep all:1h,5m:24h,1h:7d,1d:90d
    """
    policy = types_pb2.Policy(
        frequency_seconds=frequency,
        additional_points=points,
        compression=compression,
        delete_replica=delete_replica,
        tiers=schedules.parse_keep(keep),
        vm_rates=map(schedules.parse_rate, rates),
        link_rates=map(schedules.parse_rate, link_rates),
        application_hours=_hours(application),
    )
    request = admin_pb2.CreatePairRequest(source_cloud=source, target_cloud=target, policy=policy, dry_run=dry_run)
    async with context.connect() as api:
        job = await api.pairs.Create(request)
        confirm.show((), job.warnings)
        if dry_run:
            context.output.done("nothing speaks against it; nothing was changed")
        await context.finish(api, job.job_id, following=f"twinsite vm protect NAME --pair {source}:{target}")


@pair.command(name="set")
@click.argument("name", shell_complete=names.pairs)
@click.option("--frequency", type=DURATION, help=_FREQUENCY)
@click.option("--points", type=click.IntRange(0, 24), help=_POINTS)
@click.option("--keep", help=_KEEP)
@click.option("--app-consistent", "application", type=DURATION, help=_APPLICATION)
@click.option("--rate", "rates", multiple=True, help=f"{_RATE} Replaces those there are.")
@click.option("--link-rate", "link_rates", multiple=True, help=f"{_LINK_RATE} Replaces those there are.")
@click.option("--no-rates", is_flag=True, help="No caps any more but those named here.")
@click.option("--compression/--no-compression", default=None)
@click.option("--delete-replica/--keep-replica", default=None, help="What unprotect does to the replica.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, and which points would go; change nothing.")
@command(mutates=True)
async def set_(
    context: Context,
    name: str,
    frequency: int | None,
    points: int | None,
    keep: str | None,
    application: int | None,
    rates: tuple[str, ...],
    link_rates: tuple[str, ...],
    no_rates: bool,
    compression: bool | None,
    delete_replica: bool | None,
    yes: bool,
    reason: str,
    dry_run: bool,
) -> None:
    """Change the policy of a pair, for all its VMs at once; what is not named stays.

    \b
    twinsite pair set gold-a:gold-b --frequency 5s --keep all:1h,5m:24h --dry-run
    twinsite pair set gold-a:gold-b --rate "10MB/s mon-fri 08:00-18:00" -y
    """
    values = {
        "frequency_seconds": frequency,
        "additional_points": points,
        "application_hours": None if application is None else _hours(application),
        "compression": compression,
        "delete_replica": delete_replica,
    }
    lists = {
        "tiers": None if keep is None else schedules.parse_keep(keep),
        "vm_rates": [schedules.parse_rate(one) for one in rates] if rates or no_rates else None,
        "link_rates": [schedules.parse_rate(one) for one in link_rates] if link_rates or no_rates else None,
    }
    if all(value is None for value in (*values.values(), *lists.values())):
        raise click.UsageError("name at least one setting that changes")
    async with context.connect() as api:
        request = admin_pb2.UpdatePairRequest(name=name, reason=reason, dry_run=True)
        request.policy.CopyFrom((await api.pairs.Show(admin_pb2.ShowRequest(name=name))).policy)
        for field, value in values.items():
            if value is not None:
                setattr(request.policy, field, value)
        for field, rules in lists.items():
            if rules is not None:
                request.policy.ClearField(field)  # type: ignore[arg-type]  # a name of the stub's literal
                getattr(request.policy, field).extend(rules)
        plan = await api.pairs.Update(request)
        confirm.show(plan.consequences, plan.warnings)
        if dry_run or not plan.consequences:
            return
        confirm.yes(f"changing pair {name}", given=yes, no_input=context.no_input)
        request.dry_run = False
        await api.pairs.Update(request)
        context.output.done(f"pair {name} has a new policy", following=f"twinsite pair show {name}")


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
    context.output.items("PairList", admin_pb2.Pair, found, ("NAME", "FROM", "TO", "POLICY", "VMS", "AGE"), rows)


@pair.command()
@click.argument("name", shell_complete=names.pairs)
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
        ("Frequency", units.span(p.policy.frequency_seconds)),
        ("Hourly points", str(p.policy.additional_points)),
        ("Retention", schedules.keep_text(p.policy.tiers)),
        ("App-consistent", _application(p.policy)),
        ("Rate of each VM", schedules.rates_text(p.policy.vm_rates)),
        ("Rate of the link", schedules.rates_text(p.policy.link_rates)),
        ("Compression", "on" if p.policy.compression else "off"),
        ("On unprotect", "the replica is deleted" if p.policy.delete_replica else "the replica is kept"),
        ("VMs", str(p.vms_protected)),
        ("Created", local(p.created)),
    ]
    context.output.one("Pair", p, facts)


@pair.command()
@click.argument("name", shell_complete=names.pairs)
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
    words = [
        f"every {units.span(policy.frequency_seconds)}",
        f"{units.count(policy.additional_points, 'hourly point')}",
    ]
    words += [schedules.keep_text(policy.tiers)] if policy.tiers else []
    words += ["rates"] if policy.vm_rates or policy.link_rates else []
    return ", ".join([*words, "compressed" if policy.compression else "not compressed"])


def _application(policy: types_pb2.Policy) -> str:
    if not policy.application_hours:
        return "never"
    ignored = "" if policy.additional_points or policy.tiers else "  (ignored: no point besides the newest is kept)"
    return f"every {policy.application_hours}h{ignored}"


def _hours(seconds: int) -> int:
    if seconds % 3600:
        raise click.BadParameter("whole hours only, such as 4h", param_hint="--app-consistent")
    return seconds // 3600
