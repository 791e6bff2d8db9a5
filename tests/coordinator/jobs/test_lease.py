"""One live executor on one database."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from coordinator.jobs import lease
from coordinator.store.engine import Database
from twinsite.clock import SystemClock

Eventually = Callable[..., Awaitable[object]]


async def _hold(url: str, events: list[str], done: asyncio.Event) -> None:
    database = Database(url)
    try:
        async with lease.held(database, SystemClock()) as mine:
            events.append("leads")
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(mine.watch())
                await done.wait()
                watch.cancel()
    except* lease.LeaseLost:
        events.append("lost")
    finally:
        await database.close()


async def test_a_second_coordinator_on_one_sqlite_file_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    first, second = (Database(f"sqlite+aiosqlite:///{tmp_path}/c.db") for _ in range(2))
    async with lease.held(first, SystemClock()):
        with pytest.raises(lease.DatabaseInUse) as refused:
            await lease.held(second, SystemClock()).__aenter__()
        assert refused.value.pid.isdigit()
    async with lease.held(second, SystemClock()):
        pass


@pytest.mark.postgres
async def test_on_postgresql_the_second_stands_by_until_the_first_is_gone(
    postgres: object, eventually: Eventually
) -> None:
    with postgres.database(empty=True) as url:  # type: ignore[attr-defined]
        first, second = asyncio.Event(), asyncio.Event()
        events: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(url, events, first))
            await eventually(lambda: events == ["leads"])
            waiting: list[str] = []
            group.create_task(_hold(url, waiting, second))
            await asyncio.sleep(1.5)
            assert waiting == []
            first.set()
            await eventually(lambda: waiting == ["leads"])
            second.set()


@pytest.mark.postgres
async def test_a_leader_whose_connection_is_cut_stops(postgres: object, eventually: Eventually) -> None:
    with postgres.database(empty=True) as url:  # type: ignore[attr-defined]
        events: list[str] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(_hold(url, events, asyncio.Event()))
            await eventually(lambda: events == ["leads"])
            async with await psycopg.AsyncConnection.connect(postgres.admin, autocommit=True) as admin:  # type: ignore[attr-defined]
                await admin.execute("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")
            await eventually(lambda: events == ["leads", "lost"])
