"""A repeated mutation is answered, not repeated."""

from coordinator.store import requests
from coordinator.store.engine import Database

NOW = 1_800_000_000.0


async def test_an_answer_is_recalled_for_the_same_user_method_and_request_for_a_day(database: Database) -> None:
    async with database.write() as connection:
        await requests.remember(connection, "r-1", "key.create", "ana", b"answer", now=NOW)
    async with database.read() as connection:

        async def recall(request_id: str, method: str, actor: str, now: float) -> bytes | None:
            return await requests.recall(connection, request_id, method, actor, now=now)

        assert await recall("r-1", "key.create", "ana", NOW + 86_400) == b"answer"
        assert await recall("r-1", "key.create", "ana", NOW + 86_401) is None
        assert await recall("r-1", "key.create", "ben", NOW) is None
        assert await recall("r-1", "key.revoke", "ana", NOW) is None
        assert await recall("r-2", "key.create", "ana", NOW) is None


async def test_without_a_request_id_nothing_is_remembered(database: Database) -> None:
    async with database.write() as connection:
        await requests.remember(connection, "", "m", "ana", b"answer", now=NOW)
        await requests.remember(connection, "", "m", "ana", b"answer", now=NOW)
        assert await requests.recall(connection, "", "m", "ana", now=NOW) is None


async def test_old_answers_do_not_pile_up(database: Database) -> None:
    async with database.write() as connection:
        await requests.remember(connection, "r-1", "m", "ana", b"old", now=NOW)
        await requests.remember(connection, "r-1", "m", "ana2", b"new", now=NOW + 90_000)
        assert await requests.recall(connection, "r-1", "m", "ana", now=NOW) is None
