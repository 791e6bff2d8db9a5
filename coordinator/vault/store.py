"""The only SQL of the vault."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store import schema
from coordinator.vault.model import ACTIVE, CREATING, Vault

vaults = schema.table(
    "vault",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)


async def get(connection: AsyncConnection) -> Vault | None:
    row = (await connection.execute(sa.select(vaults))).mappings().first()
    return None if row is None else Vault(**row)


async def add(connection: AsyncConnection, vault_id: str, name: str, region: str, *, now: float) -> None:
    await connection.execute(
        sa.insert(vaults).values(id=vault_id, name=name, region=region, state=CREATING, created=now)
    )


async def activate(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(vaults).values(state=ACTIVE))
