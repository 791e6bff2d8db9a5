"""`twinsite vault`."""

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli.command import Context, command
from twinsite.cli.output import local


@click.group()
def vault() -> None:
    """The vault: what one coordinator looks after."""


@vault.command()
@click.argument("name")
@click.option("--region", default="", help="Where it stands; for people.")
@command(mutates=True, waits=True)
async def create(context: Context, name: str, region: str) -> None:
    """Name the vault and make it active.

    \b
    twinsite vault create main --region hamburg
    """
    async with context.connect() as api:
        job = await api.vaults.Create(admin_pb2.CreateVaultRequest(name=name, region=region))
        await context.finish(api, job.job_id, following="twinsite key create -O registration.json")


@vault.command()
@command()
async def show(context: Context) -> None:
    """The vault's name, state and addresses.

    \b
    twinsite vault show -o json
    """
    async with context.connect() as api:
        found = await api.vaults.Show(admin_pb2.Empty())
    facts = [
        ("Name", found.name),
        ("State", found.state),
        ("Region", found.region),
        ("ID", found.id),
        ("Created", local(found.created)),
        ("Root key", f"sha256:{found.root_spki_sha256}"),
        ("Enrolment", found.enrollment_address),
        ("Link and admin", found.link_address),
    ]
    context.output.one("Vault", found, facts)
