"""`twinsite vm`: protect, test and fail over."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli import confirm, names, protection, stats, verify
from twinsite.cli.command import Context, command
from twinsite.cli.moment import MOMENT
from twinsite.cli.output import age
from twinsite.cli.plain import enum_word


@click.group()
def vm() -> None:
    """VMs: protect, test, fail over."""


vm.add_command(stats.stats)
vm.add_command(stats.explain)


@vm.command(name="list")
@click.option("--unprotected", is_flag=True, help="Only VMs that are not protected.")
@command(watches=True)
async def list_(context: Context, unprotected: bool) -> None:
    """VMs of all hosts and how their replication does.

    \b
    twinsite vm list
    twinsite vm list --unprotected -o name
    """
    async with context.connect() as api:
        answer = await api.machines.List(admin_pb2.Empty())
    found = [m for m in answer.machines if not (unprotected and m.HasField("protection"))]
    columns = ("NAME", "HEALTH", "STATE", "CLOUD", "HOST", "RPO/TARGET", "POINTS", "TERM", "AGE")
    context.output.items("VmList", admin_pb2.MachineView, found, columns, [_row(context, machine) for machine in found])


def _row(context: Context, m: admin_pb2.MachineView) -> tuple[str, ...]:
    if not m.HasField("protection"):
        return (m.name, "", "not protected", m.cloud, m.host, "", "", "", age(m.last_seen, context.clock.now()))
    p = m.protection
    since = age(p.protected_since, context.clock.now())
    return (
        m.name,
        context.output.health(p.health),
        protection.state(p),
        m.cloud,
        m.host,
        protection.rpo(p),
        str(p.points),
        str(p.term),
        since,
    )


@vm.command()
@click.argument("name", shell_complete=names.vms)
@command(watches=True)
async def show(context: Context, name: str) -> None:
    """One VM: disks, replication, points.

    \b
    twinsite vm show web01
    """
    async with context.connect() as api:
        m = await api.machines.Show(admin_pb2.ShowRequest(name=name))
    power = enum_word(m.machine.DESCRIPTOR.fields_by_name["power"].enum_type, m.machine.power)
    facts = [
        ("Name", f"{m.name}  ({m.id})"),
        ("Host", f"{m.host} in {m.cloud or '<no cloud>'} of {m.server}"),
        ("Power", power),
        ("Disks", ", ".join(f"{disk.name} {units.size(disk.size_bytes)}" for disk in m.machine.disks)),
    ]
    if m.HasField("protection"):
        facts += protection.facts(context.output, m.protection)
    else:
        facts.append(("Protection", f"none  (twinsite vm protect {m.name} --pair SOURCE:TARGET)"))
    context.output.one("Vm", m, facts)


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--pair", required=True, shell_complete=names.pairs, help="SOURCE:TARGET clouds.")
@click.option(
    "--target-host",
    default="",
    shell_complete=names.hosts,
    help="The host in the target cloud with the most room unless told.",
)
@click.option("--at", "start", type=MOMENT, help="Begin then: +2h, 02:00, 2026-11-23T02:00; at most 7 days ahead.")
@click.option("--offline", is_flag=True, help="The initial copy comes on media: twinsite seed export, seed import.")
@click.option(
    "--existing", multiple=True, metavar="DISK=PATH", help="Image at the target a disk resembles; repeatable."
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def protect(
    context: Context,
    name: str,
    pair: str,
    target_host: str,
    start: float | None,
    offline: bool,
    existing: tuple[str, ...],
    yes: bool,
    dry_run: bool,
) -> None:
    """Replicate a VM to the pair's target cloud; ends when it can be failed over, or waits for its time or its seed.

    \b
    twinsite vm protect web01 --pair gold-a:gold-b
    twinsite vm protect web01 --pair gold-a:gold-b --at 02:00
    twinsite vm protect web01 --pair gold-a:gold-b --existing vda=/images/template.qcow2
    """
    initial = types_pb2.InitialReplication(
        method=types_pb2.InitialReplication.METHOD_OFFLINE if offline else types_pb2.InitialReplication.METHOD_NETWORK
    )
    if start is not None:
        initial.start_at.FromSeconds(int(start))
    request = admin_pb2.ProtectRequest(
        name=name, pair=pair, target_host=target_host, dry_run=True, initial=initial, existing=_images(existing)
    )
    request.ask_hosts = dry_run
    async with context.connect() as api:
        plan = await api.machines.Protect(request)
        confirm.show(plan.consequences, plan.warnings)
        if dry_run:
            if plan.job_id:
                await context.finish(api, plan.job_id, following="")
            return
        request.ask_hosts = False
        confirm.yes(f"protecting {name}", given=yes, no_input=context.no_input)
        request.dry_run = False
        answer = await api.machines.Protect(request)
        meanwhile = f"twinsite vm show {name}" if start is not None else ""
        if offline and not meanwhile:
            meanwhile = f"twinsite seed export {name} --to PATH"
        await context.finish(api, answer.job_id, following=f"twinsite vm test {name}", meanwhile=meanwhile)


def _images(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        disk, equals, path = word.partition("=")
        if not equals or not disk or not path or disk in found:
            raise click.BadParameter(f"{word!r} is not DISK=PATH, each disk once", param_hint="--existing")
        found[disk] = path
    return found


@vm.command(name="start-initial")
@click.argument("name", shell_complete=names.vms)
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True)
async def start_initial(context: Context, name: str, reason: str, dry_run: bool) -> None:
    """Begin an initial replication now that was put off with --at.

    \b
    twinsite vm start-initial web01
    """
    async with context.connect() as api:
        request = admin_pb2.MachineActionRequest(name=name, reason=reason, dry_run=dry_run)
        answer = await api.machines.StartInitial(request)
        confirm.show(answer.consequences, answer.warnings)
        if not dry_run:
            context.output.done(f"initial replication of {name} begins", following=f"twinsite vm show {name}")


@vm.command(name="verify")
@click.argument("name", shell_complete=names.vms)
@click.option("--repair", is_flag=True, help="Mend what is damaged: from other layers, or from the source.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def verify_(context: Context, name: str, repair: bool, dry_run: bool) -> None:
    """Read and check the whole replica of a VM; exit 3 when damage remains.

    \b
    twinsite vm verify web01
    twinsite vm verify web01 --repair
    """
    await verify.run(context, admin_pb2.VerifyRequest(name=name, repair=repair, dry_run=dry_run))


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--keep-replica/--delete-replica", "keep", default=None, help="The policy of the pair unless told.")
@click.option("--confirm", "confirmed", help="The VM's name.")
@click.option("--reason", help="Goes to the audit log; --delete-replica needs one.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def unprotect(
    context: Context, name: str, keep: bool | None, confirmed: str | None, reason: str | None, dry_run: bool
) -> None:
    """Stop replicating a VM; the VM itself stays as it is.

    \b
    twinsite vm unprotect web01 --keep-replica --confirm web01
    """
    request = admin_pb2.MachineActionRequest(
        name=name, dry_run=True, keep_replica=keep is True, delete_replica=keep is False
    )
    async with context.connect() as api:
        plan = await api.machines.Unprotect(request)
        confirm.show(plan.consequences, plan.warnings)
        if dry_run:
            return
        action = f"unprotecting {name}"
        confirm.typed_name(action, name, given=confirmed, no_input=context.no_input)
        request.reason = reason or ""
        if keep is False:
            request.reason = confirm.reason(action, given=reason, no_input=context.no_input)
            _fresh(context, action)
        request.dry_run = False
        answer = await api.machines.Unprotect(request)
        await context.finish(api, answer.job_id)


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def pause(context: Context, name: str, yes: bool, reason: str, dry_run: bool) -> None:
    """Stop sending cycles for now; changes go on being tracked, points stay.

    \b
    twinsite vm pause web01 -y
    """
    request = admin_pb2.MachineActionRequest(name=name, reason=reason, dry_run=True)
    async with context.connect() as api:
        plan = await api.machines.Pause(request)
        confirm.show(plan.consequences, plan.warnings)
        if dry_run or not plan.consequences:  # it is paused already: the warning says so
            return
        confirm.yes(f"pausing {name}", given=yes, no_input=context.no_input)
        request.dry_run = False
        answer = await api.machines.Pause(request)
        context.output.done(f"replication of {name} is paused", following=f"twinsite vm resume {name}")
        await context.finish(api, answer.job_id)


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def resume(context: Context, name: str, reason: str, dry_run: bool) -> None:
    """Go on with a paused replication.

    \b
    twinsite vm resume web01
    """
    async with context.connect() as api:
        request = admin_pb2.MachineActionRequest(name=name, reason=reason, dry_run=dry_run)
        answer = await api.machines.Resume(request)
        if dry_run or not answer.consequences:  # it is not paused: the warning says so
            confirm.show(answer.consequences, answer.warnings)
            return
        context.output.done(f"replication of {name} goes on", following=f"twinsite vm show {name}")
        await context.finish(api, answer.job_id)


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--point", type=click.IntRange(1), default=None, help="Of `twinsite point list`; the newest unless told.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def test(context: Context, name: str, point: int | None, dry_run: bool) -> None:
    """Start a throw-away copy "NAME - Test" from a point, on no network; replication goes on.

    \b
    twinsite vm test web01
    twinsite vm test web01 --point 41
    """
    async with context.connect() as api:
        answer = await api.machines.Test(admin_pb2.TestRequest(name=name, cycle=point or 0, dry_run=dry_run))
        if dry_run:
            confirm.show(answer.consequences, answer.warnings)
            return
        confirm.show([], answer.warnings)
        await context.finish(api, answer.job_id, following=f"twinsite vm test-cleanup {name}")


@vm.command(name="test-cleanup")
@click.argument("name", shell_complete=names.vms)
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def test_cleanup(context: Context, name: str, reason: str, dry_run: bool) -> None:
    """Stop and delete the test copies of a VM.

    \b
    twinsite vm test-cleanup web01
    """
    async with context.connect() as api:
        request = admin_pb2.MachineActionRequest(name=name, reason=reason, dry_run=dry_run)
        answer = await api.machines.TestCleanup(request)
        if dry_run:
            confirm.show(answer.consequences, answer.warnings)
            return
        if not answer.job_id:
            context.output.done(f"there is no test of {name}")
        await context.finish(api, answer.job_id)


@vm.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--point", type=click.IntRange(1), default=None, help="Of `twinsite point list`; the newest unless told.")
@click.option("--shutdown-source/--leave-source", default=False, help="Try to stop the source first; never waits long.")
@click.option("--confirm", "confirmed", help="The VM's name.")
@click.option("--reason", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would be lost and fenced; change nothing.")
@command(mutates=True, waits=True)
async def failover(
    context: Context,
    name: str,
    point: int | None,
    shutdown_source: bool,
    confirmed: str | None,
    reason: str | None,
    dry_run: bool,
) -> None:
    """Unplanned failover: run the VM from its replica; the source site may be dead.

    \b
    twinsite vm failover web01 --dry-run
    twinsite vm failover web01 --confirm web01 --reason "site A lost power"
    """
    request = admin_pb2.FailoverRequest(name=name, cycle=point or 0, shutdown_source=shutdown_source, dry_run=True)
    async with context.connect() as api:
        plan = await api.machines.Failover(request)
        context.output.note(f"UNPLANNED FAILOVER of {name}")
        confirm.show(plan.consequences, plan.warnings)
        if dry_run:
            return
        action = f"failing over {name}"
        confirm.typed_name(action, name, given=confirmed, no_input=context.no_input)
        request.reason = confirm.reason(action, given=reason, no_input=context.no_input)
        _fresh(context, action)
        request.dry_run = False
        answer = await api.machines.Failover(request)
        await context.finish(api, answer.job_id, following=f"twinsite vm show {name}")


def _fresh(context: Context, action: str) -> None:
    logged_in = float(context.home.context()["logged_in"])
    confirm.fresh_login(action, age_seconds=context.clock.now() - logged_in)
