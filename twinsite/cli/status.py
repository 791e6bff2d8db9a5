"""`twinsite status`: everything on one screen."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli.command import Context, command
from twinsite.cli.output import local


@click.command()
@click.option("--exit-code", is_flag=True, help="10 when there are warnings, 11 when something is critical.")
@command(watches=True)
async def status(context: Context, exit_code: bool) -> None:
    """Sites, VMs, jobs and what is wrong, worst first.

    \b
    twinsite status
    twinsite status --exit-code -q
    """
    async with context.connect() as api:
        now = await api.status.Show(admin_pb2.Empty())
    sites = "   ".join(
        f"{site.server} {context.output.health('normal' if site.connected else 'critical')} "
        f"{site.hosts_connected}/{units.count(site.hosts, 'host')}"
        for site in now.sites
    )
    vms = (
        f"protected {now.vms_protected}   normal {now.vms_normal}   warning {now.vms_warning}   "
        f"critical {now.vms_critical}   paused {now.vms_paused}   not protected {now.vms - now.vms_protected}"
    )
    jobs = f"running {now.jobs_running}   waiting for you {now.jobs_waiting}   failed 24 h: {now.jobs_failed_24h}"
    facts = [
        ("Vault", now.vault_name or "<unset>  (twinsite vault create NAME)"),
        ("Coordinator", f"{now.coordinator_version}, data as of {local(now.now)}"),
        ("Sites", sites or "<none>  (twinsite key create)"),
        ("VMs", vms),
        ("Jobs", jobs),
        *(("Problem", problem) for problem in now.problems),
    ]
    context.output.one("Status", now, facts)
    if exit_code and (now.vms_critical or now.vms_warning or now.problems):
        raise click.exceptions.Exit(11 if now.vms_critical else 10)
