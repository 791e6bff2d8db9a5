"""`twinsite host`: hypervisor hosts."""

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import names
from twinsite.cli.command import Context, command
from twinsite.cli.output import age, local


@click.group()
def host() -> None:
    """Hypervisor hosts."""


@host.command(name="list")
@command(watches=True)
async def list_(context: Context) -> None:
    """Hosts of all servers.

    \b
    twinsite host list
    """
    async with context.connect() as api:
        found = (await api.hosts.List(admin_pb2.Empty())).hosts
    now = context.clock.now()
    rows = [
        (
            h.name,
            h.server,
            h.cloud,
            "connected" if h.connected else f"silent {age(h.last_seen, now)}",
            h.status.hypervisor,
            str(len(h.status.machines)),
            units.size(h.status.store_free_bytes),
            h.status.agent_version,
        )
        for h in found
    ]
    columns = ("NAME", "SERVER", "CLOUD", "LINK", "HYPERVISOR", "VMS", "FREE", "VERSION")
    context.output.items("HostList", admin_pb2.Host, found, columns, rows)


@host.command()
@click.argument("name", shell_complete=names.hosts)
@command()
async def show(context: Context, name: str) -> None:
    """One host.

    \b
    twinsite host show host-a1
    """
    async with context.connect() as api:
        h = await api.hosts.Show(admin_pb2.ShowRequest(name=name))
    total, free = h.status.store_total_bytes, h.status.store_free_bytes
    facts = [
        ("Name", h.name),
        ("ID", h.id),
        ("Server", h.server),
        ("Cloud", f"{h.cloud} / {h.host_group}" if h.cloud else ""),
        ("Link", "connected" if h.connected else f"silent since {local(h.last_seen)}"),
        ("State", h.state),
        ("Hypervisor", h.status.hypervisor),
        ("Replication", h.status.replication_address),
        ("Replica store", f"{units.size(free)} free of {units.size(total)}" if total else ""),
        ("VMs", ", ".join(machine.name for machine in h.status.machines)),
        ("Version", h.status.agent_version),
    ]
    context.output.one("Host", h, facts)
