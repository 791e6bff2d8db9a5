"""Migrating makes exactly the tables that are declared, on both databases, and touches nothing else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from coordinator.jobs import Jobs
from coordinator.protection import store
from coordinator.protection.policy import Policy
from coordinator.store.engine import Database
from coordinator.store.migrate import DatabaseIsNewer, config, migrate
from coordinator.store.migrations.tables import VERSION_TABLE, metadata, ours
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/new.db"
        return
    with request.getfixturevalue("postgres").database(empty=True) as url:
        yield url


@pytest.fixture
async def empty(empty_url: str) -> Iterator[Database]:
    database = Database(empty_url)
    yield database
    await database.close()


def _differences(connection: sa.Connection) -> list[object]:
    options = {"include_name": ours, "version_table": VERSION_TABLE, "compare_type": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def _tables(database: Database) -> set[str]:
    async with database.read() as connection:
        return set(await connection.run_sync(lambda synchronous: sa.inspect(synchronous).get_table_names()))


async def test_a_migrated_database_has_the_declared_tables_with_the_engines_beside_them(empty: Database) -> None:
    await migrate(empty)
    engine = Jobs(empty, MovedClock())
    await engine.start()
    await engine.stop()
    before = await _tables(empty)
    await migrate(empty)
    async with empty.read() as connection:
        assert await connection.run_sync(_differences) == []
    assert await _tables(empty) == before
    assert set(metadata.tables) <= before


async def test_a_migrated_audit_log_is_append_only(empty: Database) -> None:
    await migrate(empty)
    row = "1, 1.0, 'a', 'b', 'c', 'ok', '{}', '', '', ''"
    async with empty.write() as connection:
        await connection.exec_driver_sql(f"INSERT INTO ts_audit VALUES ({row})")
    for statement in ("UPDATE ts_audit SET actor = 'x'", "DELETE FROM ts_audit"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            await _run(empty, statement)


async def test_two_programs_that_migrate_at_once_do_not_disturb_each_other(empty: Database, empty_url: str) -> None:
    other = Database(empty_url)
    async with asyncio.TaskGroup() as both:
        both.create_task(migrate(empty))
        both.create_task(migrate(other))
    await other.close()
    async with empty.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_a_database_of_a_newer_program_is_refused_and_left_alone(empty: Database) -> None:
    await migrate(empty)
    await _run(empty, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    before = await _tables(empty)
    with pytest.raises(DatabaseIsNewer, match="newer coordinator"):
        await migrate(empty)
    assert await _tables(empty) == before


async def test_what_an_older_coordinator_stored_is_read_by_this_one(empty: Database) -> None:
    def first(connection: sa.Connection) -> None:
        made = config()
        made.attributes["connection"] = connection
        command.upgrade(made, "0001")

    async with empty.engine.connect() as connection:
        await connection.run_sync(first)
        await connection.rollback()
    pair = "'p-1', 'a:b', 'a', 'b', 30, 2, true, false, true, 'j-1', 5.0"
    protected = (
        "'vm', 'web01', 'p-1', 's', 't', 's', 1, 'protected', false, '[[\"d\", 9]]', NULL, 0, 'j', 5, false, 0, 0, 0"
    )
    async with empty.write() as connection:
        await connection.exec_driver_sql(f"INSERT INTO ts_pair VALUES ({pair})")
        await connection.exec_driver_sql(f"INSERT INTO ts_protected VALUES ({protected})")
        old = sa.table("ts_point", *(sa.column(name) for name in ("vm_id", "host_id", "cycle", "document")))
        for cycle, consistency in ((1, "none"), (2, "crash")):
            point = types_pb2.Point(vm_id="vm", cycle=cycle, consistency=consistency)
            values = {"vm_id": "vm", "host_id": "t", "cycle": cycle, "document": point.SerializeToString()}
            await connection.execute(sa.insert(old).values(**values))
    await migrate(empty)
    async with empty.read() as connection:
        (read,) = await store.list_pairs(connection)
        assert read.policy == Policy(frequency_seconds=30, additional_points=2, compression=True, delete_replica=False)
        (item,) = await store.list_protected(connection)
        assert (item.disks, item.offline, item.initial_start, item.existing) == ((("d", 9),), False, 0.0, ())
        assert [point.cycle for point in await store.list_points(connection, "vm")] == [2]
        assert (await store.newest_points(connection))["vm"][0] == 1


async def _run(database: Database, statement: str) -> None:
    async with database.write() as connection:
        await connection.exec_driver_sql(statement)
