"""The tables of registration keys and their uses, and all SQL on them."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.enrollment.model import Key
from coordinator.store import schema

keys = schema.table(
    "registration_key",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret_sha256", sa.Text, nullable=False),
    sa.Column("issued", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("revoked", sa.Double, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
)

uses = schema.table(
    "registration_key_use",
    sa.Column("key_id", sa.Text, sa.ForeignKey("ts_registration_key.id"), primary_key=True),
    sa.Column("spki", sa.Text, primary_key=True),  # a use is bound to the key pair that made it
    sa.Column("server_id", sa.Text, sa.ForeignKey("ts_server.id"), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)


async def add(connection: AsyncConnection, key: Key) -> None:
    await connection.execute(sa.insert(keys).values(**{name: getattr(key, name) for name in key.__slots__}))


async def get(connection: AsyncConnection, key_id: str, *, for_update: bool = False) -> Key | None:
    """`for_update`: nobody else counts a use of it until this transaction ends."""
    query = sa.select(keys).where(keys.c.id == key_id)
    row = (await connection.execute(query.with_for_update() if for_update else query)).mappings().first()
    return None if row is None else Key(**row)


async def everyone(connection: AsyncConnection) -> list[Key]:
    """Newest first."""
    query = sa.select(keys).order_by(keys.c.issued.desc(), keys.c.id)
    return [Key(**row) for row in (await connection.execute(query)).mappings()]


async def change(connection: AsyncConnection, key_id: str, **values: Any) -> None:
    await connection.execute(sa.update(keys).where(keys.c.id == key_id).values(**values))


async def count_failure(connection: AsyncConnection, key_id: str) -> None:
    await connection.execute(sa.update(keys).where(keys.c.id == key_id).values(failures=keys.c.failures + 1))


async def used_by(connection: AsyncConnection, key_id: str) -> dict[str, str]:
    """SPKI hash → server id."""
    query = sa.select(uses.c.spki, uses.c.server_id).where(uses.c.key_id == key_id).order_by(uses.c.at)
    return {row.spki: row.server_id for row in await connection.execute(query)}


async def use(connection: AsyncConnection, key_id: str, spki: str, server_id: str, now: float) -> None:
    await connection.execute(sa.insert(uses).values(key_id=key_id, spki=spki, server_id=server_id, at=now))
