"""What replication did since a VM is protected. The only SQL of it; functions take the caller's connection.

A source counts over its own restarts. That a sum never falls is kept here: a count that goes back (a killed agent, a
restored state folder) is waited for, and one that begins anew (a new state folder, another source) is added to those
before it.
"""

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory.model import LARGEST, instant
from coordinator.store.schema import table
from twinsite.api.types.v1 import types_pb2

_NUMBERS: Final = ("cycles", "changed_bytes", "wire_bytes")

totals = table(
    "replication_total",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, nullable=False),  # the source that counts now
    sa.Column("since", sa.Double, nullable=False),  # which of its counts it is
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _NUMBERS),  # of this count
    *(sa.Column(f"earlier_{name}", sa.BigInteger, nullable=False) for name in _NUMBERS),
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums since the protection began."""

    cycles: int = 0
    changed_bytes: int = 0
    wire_bytes: int = 0


async def count(connection: AsyncConnection, host_id: str, status: types_pb2.ReplicationStatus) -> None:
    """Take in what a source says; a status that counts nothing changes nothing."""
    since = instant(status.counted_since)
    if not since:
        return
    said = {name: min(getattr(status, name), LARGEST) for name in _NUMBERS}
    mine = totals.c.vm_id == status.vm_id
    held = (await connection.execute(sa.select(totals).where(mine))).mappings().first()
    if held is None:
        values = {"vm_id": status.vm_id, "host_id": host_id, "since": since, **said}
        await connection.execute(sa.insert(totals).values(**values, **{f"earlier_{name}": 0 for name in _NUMBERS}))
        return
    if (held["host_id"], held["since"]) == (host_id, since):
        values = {name: max(held[name], said[name]) for name in _NUMBERS}
        changed = any(held[name] != value for name, value in values.items())
    else:
        earlier = {f"earlier_{name}": min(LARGEST, held[f"earlier_{name}"] + held[name]) for name in _NUMBERS}
        values, changed = {"host_id": host_id, "since": since, **said, **earlier}, True
    if changed:
        await connection.execute(sa.update(totals).where(mine).values(**values))


async def list_totals(connection: AsyncConnection) -> dict[str, Totals]:
    """By VM."""
    rows = (await connection.execute(sa.select(totals))).mappings()
    return {
        row["vm_id"]: Totals(*(min(LARGEST, row[name] + row[f"earlier_{name}"]) for name in _NUMBERS)) for row in rows
    }


async def forget(connection: AsyncConnection, vm_id: str) -> None:
    await connection.execute(sa.delete(totals).where(totals.c.vm_id == vm_id))
