"""`twinsite cloud`."""

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import names
from twinsite.cli.command import Context, command


@click.group()
def cloud() -> None:
    """Clouds of the registered servers."""


@cloud.command(name="list")
@command()
async def list_(context: Context) -> None:
    """Clouds and what they are paired with.

    \b
    twinsite cloud list
    """
    async with context.connect() as api:
        found = (await api.clouds.List(admin_pb2.Empty())).clouds
    rows = [(c.name, c.server, c.role, c.pair, str(c.hosts), str(c.vms), str(c.vms_protected)) for c in found]
    columns = ("NAME", "SERVER", "ROLE", "PAIR", "HOSTS", "VMS", "PROTECTED")
    context.output.items("CloudList", admin_pb2.CloudView, found, columns, rows)


@cloud.command()
@click.argument("name", shell_complete=names.clouds)
@command()
async def show(context: Context, name: str) -> None:
    """One cloud: host groups, networks, storage.

    \b
    twinsite cloud show gold-a
    """
    async with context.connect() as api:
        c = await api.clouds.Show(admin_pb2.ShowRequest(name=name))
    facts = [
        ("Name", c.name),
        ("Server", c.server),
        ("Role", c.role),
        ("Pair", c.pair),
        ("Host groups", "; ".join(f"{group.name}: {', '.join(group.hosts)}" for group in c.cloud.host_groups)),
        ("Networks", ", ".join(c.cloud.networks)),
        ("Storage", ", ".join(c.cloud.storage_classifications)),
        ("VMs", f"{c.vms}, {c.vms_protected} protected"),
    ]
    context.output.one("Cloud", c, facts)
