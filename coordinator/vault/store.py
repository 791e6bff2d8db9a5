"""The only SQL of the vault."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store import schema
from coordinator.vault.model import ACTIVE, CREATING, UNNAMED, Vault

vaults = schema.table(
    "vault",
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),  # 1: there is no second row
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("region", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)


async def identity(connection: AsyncConnection) -> str | None:
    """The id of the vault this database belongs to; None for a new database."""
    found: str | None = await connection.scalar(sa.select(vaults.c.id))
    return found


async def claim(connection: AsyncConnection, vault_id: str) -> None:
    await connection.execute(
        sa.insert(vaults).values(only=1, id=vault_id, name="", region="", state=UNNAMED, created=0.0)
    )


async def get(connection: AsyncConnection) -> Vault | None:
    """None before it was created."""
    row = (await connection.execute(sa.select(vaults).where(vaults.c.state != UNNAMED))).first()
    return None if row is None else Vault(row.id, row.name, row.region, row.state, row.created)


async def create(connection: AsyncConnection, name: str, region: str, *, now: float) -> bool:
    """False when it was created before."""
    unnamed = sa.update(vaults).where(vaults.c.state == UNNAMED)
    done = await connection.execute(unnamed.values(name=name, region=region, state=CREATING, created=now))
    return done.rowcount == 1


async def activate(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(vaults).values(state=ACTIVE))
