"""`twinsite server`: registered VMM servers."""

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import confirm, names
from twinsite.cli.command import Context, command
from twinsite.cli.output import age, local


@click.group()
def server() -> None:
    """Registered VMM servers."""


@server.command(name="list")
@command(watches=True)
async def list_(context: Context) -> None:
    """Registered servers.

    \b
    twinsite server list
    """
    async with context.connect() as api:
        found = (await api.servers.List(admin_pb2.Empty())).servers
    now = context.clock.now()
    rows = [
        (
            s.name,
            s.state,
            "connected" if s.connected else f"silent {age(s.last_seen, now)}",
            ",".join(s.clouds),
            f"{s.hosts_connected}/{s.hosts}",
            s.agent_version,
            age(s.registered, now),
        )
        for s in found
    ]
    columns = ("NAME", "STATE", "LINK", "CLOUDS", "HOSTS", "VERSION", "AGE")
    context.output.items("ServerList", admin_pb2.Server, found, columns, rows)


@server.command()
@click.argument("name", shell_complete=names.servers)
@command()
async def show(context: Context, name: str) -> None:
    """One server.

    \b
    twinsite server show vmm-a
    """
    async with context.connect() as api:
        s = await api.servers.Show(admin_pb2.ShowRequest(name=name))
    facts = [
        ("Name", s.name),
        ("ID", s.id),
        ("State", s.state),
        ("Link", "connected" if s.connected else f"silent since {local(s.last_seen)}"),
        ("Clouds", ", ".join(s.clouds)),
        ("Hosts", f"{s.hosts_connected} of {s.hosts} connected"),
        ("Version", s.agent_version),
        ("Registered", local(s.registered)),
        ("Certificate", f"until {local(s.certificate_expires)}, generation {s.generation}"),
    ]
    context.output.one("Server", s, facts)


@server.command()
@click.argument("name", shell_complete=names.servers)
@click.option("--confirm", "confirmed", help="The server's name.")
@click.option("--reason", default="", help="Goes to the audit log.")
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@command(mutates=True, waits=True)
async def remove(context: Context, name: str, confirmed: str | None, reason: str, dry_run: bool) -> None:
    """Unregister a server: its identity and its hosts' are worth nothing afterwards.

    \b
    twinsite server remove vmm-a --dry-run
    twinsite server remove vmm-a --confirm vmm-a
    """
    async with context.connect() as api:
        plan = await api.servers.Remove(admin_pb2.RemoveRequest(name=name, dry_run=True))
        confirm.show(plan.consequences)
        if dry_run:
            return
        confirm.typed_name(f"removing server {name}", name, given=confirmed, no_input=context.no_input)
        answer = await api.servers.Remove(admin_pb2.RemoveRequest(name=name, reason=reason))
        context.output.done(f"server {name} is unregistered")
        await context.finish(api, answer.job_id)
