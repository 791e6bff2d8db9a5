"""`twinsite seed`: initial copies on media."""

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import confirm, names
from twinsite.cli.command import Context, command
from twinsite.cli.output import local

_KINDS = ("seed.export", "seed.import")


@click.group()
def seed() -> None:
    """Initial copies on media: export, carry, import."""


_REASON = click.option("--reason", default="", help="Goes to the audit log.")
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Ask the host whether the path will do and say what would happen; change nothing."
)


@seed.command()
@click.argument("vm", shell_complete=names.vms)
@click.option("--to", "path", required=True, help="Folder as the source host sees it; not on a hypervisor host.")
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def export(context: Context, vm: str, path: str, reason: str, dry_run: bool) -> None:
    """Write the disks of a VM, protected with --offline, to media; its target host alone can read them.

    \b
    twinsite seed export web01 --to /media/disk1
    """
    request = admin_pb2.SeedRequest(name=vm, path=path, reason=reason, dry_run=dry_run)
    async with context.connect() as api:
        answer = await api.machines.SeedExport(request)
        confirm.show(answer.consequences, answer.warnings)
        following = f"carry it to the target site, then: twinsite seed import {vm} --from PATH"
        await context.finish(api, answer.job_id, following="" if dry_run else following)


@seed.command(name="import")
@click.argument("vm", shell_complete=names.vms)
@click.option("--from", "path", required=True, help="Folder as the target host sees it; not on a hypervisor host.")
@_REASON
@_DRY_RUN
@command(mutates=True, waits=True)
async def import_(context: Context, vm: str, path: str, reason: str, dry_run: bool) -> None:
    """Read the media in at the target host; what is damaged or missing on them comes over the network.

    \b
    twinsite seed import web01 --from /media/disk1
    """
    request = admin_pb2.SeedRequest(name=vm, path=path, reason=reason, dry_run=dry_run)
    async with context.connect() as api:
        answer = await api.machines.SeedImport(request)
        confirm.show(answer.consequences, answer.warnings)
        await context.finish(api, answer.job_id, following="" if dry_run else f"twinsite seed status {vm}")


@seed.command()
@click.argument("vm", shell_complete=names.vms)
@command(watches=True)
async def status(context: Context, vm: str) -> None:
    """Whether the replica of a VM waits for its seed, and what became of exports and imports.

    \b
    twinsite seed status web01
    """
    async with context.connect() as api:
        m = await api.machines.Show(admin_pb2.ShowRequest(name=vm))
        jobs = (await api.jobs.List(admin_pb2.ListJobsRequest(target=f"vm/{m.name}", limit=200))).jobs
    p = m.protection
    facts = [
        ("VM", m.name),
        ("Replica on", p.target_host),
        ("Seed", _state(m)),
        ("Reason", p.reason),
        *((j.kind, _job(j)) for j in jobs if j.kind in _KINDS and j.result.get("vm") == m.id),
        ("Next", _next(m)),
    ]
    context.output.one("Vm", m, facts)


def _state(m: admin_pb2.MachineView) -> str:
    p = m.protection
    if not m.HasField("protection"):
        return "the VM is not protected"
    if p.awaiting_seed:
        return "awaited; what changes is replicated meanwhile"
    if p.initial_start.seconds:
        return f"nothing is tracked before {local(p.initial_start)}"
    return "not awaited"


def _next(m: admin_pb2.MachineView) -> str:
    if not m.HasField("protection"):
        return f"twinsite vm protect {m.name} --offline --pair SOURCE:TARGET"
    if m.protection.awaiting_seed:
        return f"twinsite seed export {m.name} --to PATH, carry it, twinsite seed import {m.name} --from PATH"
    return f"twinsite vm show {m.name}"


def _job(j: admin_pb2.Job) -> str:
    said = j.error.message if j.HasField("error") else j.result.get("note", "")
    percent = "" if j.HasField("ended") or not j.tasks else f" {j.tasks[0].percent} %"
    where = " ".join(part for part in (j.result.get("path", ""), j.result.get("seed", "")) if part)
    return f"{j.state.replace('_', ' ')}{percent}, {where}, {local(j.created)} ({j.id}){f': {said}' if said else ''}"
