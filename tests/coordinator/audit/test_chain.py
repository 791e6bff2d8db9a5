"""The audit log shows when it was altered."""

import asyncio

import pytest
import sqlalchemy as sa

from coordinator import audit
from coordinator.audit import chain
from coordinator.store.engine import Database


async def _write(database: Database, number: int, *, actor: str = "ana") -> None:
    async with database.write() as connection:
        await audit.record(
            connection,
            actor=actor,
            action="key.create",
            target=f"key/{number}",
            outcome="ok",
            facts={"uses": "2", "näme": "ü"},
            address="127.0.0.1:5",
            now=1_800_000_000.1 + number,
        )


async def _unlock(connection: sa.ext.asyncio.AsyncConnection) -> None:
    """What somebody with the database's password can do."""
    if connection.dialect.name == "sqlite":
        for name in ("ts_audit_no_update", "ts_audit_no_delete"):
            await connection.exec_driver_sql(f"DROP TRIGGER {name}")
    else:
        await connection.exec_driver_sql("DROP TRIGGER ts_audit_no_change ON ts_audit")


async def test_an_untouched_log_verifies_and_lists_newest_first(database: Database) -> None:
    async with database.read() as connection:
        assert await audit.verify(connection) is None
    for number in range(5):
        await _write(database, number, actor="ana" if number % 2 else "ben")
    async with database.read() as connection:
        assert await audit.verify(connection) is None
        assert [entry.target for entry in await audit.recent(connection, limit=2)] == ["key/4", "key/3"]
        assert [entry.sequence for entry in await audit.recent(connection, limit=9, actor="ana")] == [4, 2]


async def test_the_database_refuses_to_change_or_remove_an_entry(database: Database) -> None:
    await _write(database, 1)
    for statement in (sa.update(chain.entries).values(actor="eve"), sa.delete(chain.entries)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            async with database.write() as connection:
                await connection.execute(statement)
    async with database.read() as connection:
        assert (await audit.recent(connection, limit=1))[0].actor == "ana"


@pytest.mark.parametrize("column", ["actor", "at", "facts", "outcome", "address", "hash"])
async def test_an_altered_entry_is_named(database: Database, column: str) -> None:
    for number in range(4):
        await _write(database, number)
    value = {"at": 1.0, "facts": {"uses": "200"}}.get(column, "other")
    async with database.write() as connection:
        await _unlock(connection)
        await connection.execute(sa.update(chain.entries).where(chain.entries.c.sequence == 3).values({column: value}))
    async with database.read() as connection:
        assert await audit.verify(connection) == 3


async def test_a_removed_entry_is_named(database: Database) -> None:
    for number in range(4):
        await _write(database, number)
    async with database.write() as connection:
        await _unlock(connection)
        await connection.execute(sa.delete(chain.entries).where(chain.entries.c.sequence == 2))
    async with database.read() as connection:
        assert await audit.verify(connection) == 2


async def test_an_entry_of_a_transaction_that_rolls_back_never_was(database: Database) -> None:
    async with database.engine.connect() as connection:
        await audit.record(connection, actor="a", action="b", target="c", outcome="ok", now=1.0)
        await connection.rollback()
    await _write(database, 1)
    async with database.read() as connection:
        assert [entry.sequence for entry in await audit.recent(connection, limit=5)] == [1]
        assert await audit.verify(connection) is None


async def test_entries_written_at_once_still_form_one_chain(database: Database) -> None:
    async with asyncio.TaskGroup() as writers:
        for number in range(20):
            writers.create_task(_write(database, number))
    async with database.read() as connection:
        assert await audit.verify(connection) is None
        assert len(await audit.recent(connection, limit=50)) == 20
