"""The only SQL of test failovers."""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store.schema import table

STARTING, RUNNING, CLEANING = "starting", "running", "cleaning"

tests = table(
    "test_failover",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("vm_id", sa.Text, nullable=False, index=True),
    sa.Column("host_id", sa.Text, nullable=False),
    sa.Column("cycle", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Test:
    """A throw-away copy of a VM at its target host."""

    id: str
    vm_id: str
    host_id: str
    cycle: int
    state: str
    job_id: str  # that set the state
    created: float  # seconds since 1970


async def list_tests(connection: AsyncConnection, vm_id: str = "") -> dict[str, list[Test]]:
    """Oldest first, by VM."""
    query = sa.select(tests).order_by(tests.c.created, tests.c.id)
    if vm_id:
        query = query.where(tests.c.vm_id == vm_id)
    found: dict[str, list[Test]] = {}
    for row in (await connection.execute(query)).mappings():
        found.setdefault(row["vm_id"], []).append(Test(**row))
    return found


async def get_test(connection: AsyncConnection, test_id: str) -> Test | None:
    row = (await connection.execute(sa.select(tests).where(tests.c.id == test_id))).mappings().first()
    return Test(**row) if row else None


async def insert_test(connection: AsyncConnection, test: Test) -> None:
    await connection.execute(
        sa.insert(tests).values(
            id=test.id,
            vm_id=test.vm_id,
            host_id=test.host_id,
            cycle=test.cycle,
            state=test.state,
            job_id=test.job_id,
            created=test.created,
        )
    )


async def set_test(connection: AsyncConnection, test_id: str, *, state: str, job_id: str, cycle: int = 0) -> None:
    """`cycle` 0 leaves it."""
    values = {"state": state, "job_id": job_id} | ({"cycle": cycle} if cycle else {})
    await connection.execute(sa.update(tests).where(tests.c.id == test_id).values(**values))


async def delete_test(connection: AsyncConnection, test_id: str) -> None:
    await connection.execute(sa.delete(tests).where(tests.c.id == test_id))
