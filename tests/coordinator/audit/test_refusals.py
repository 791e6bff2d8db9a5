"""What was refused is in the log under the name people know, and cannot fill the disk."""

import pytest

from coordinator.access import store
from coordinator.access.model import User
from coordinator.audit import recent
from coordinator.audit.refusals import Refusals
from coordinator.enrollment.model import KeyRefused
from coordinator.store.engine import Database
from tests.fakes.identity_plane import IdentityPlane, real_time
from twinsite import keys
from twinsite.access import NotCurrent, Refusal
from twinsite.clock import MovedClock
from twinsite.identity import Identity


async def test_a_refused_member_is_named_as_everywhere_else_once_an_hour(database: Database, clock: MovedClock) -> None:
    async with database.write() as connection:
        await store.add_user(connection, User("u-0123456789ab", "ana", "viewer", "-", clock.now()))
    refusals = Refusals(database, clock)
    for identity in ("u-0123456789ab", "u-0123456789ab", "u-000000000000"):
        who = Identity("user", identity, "v-0123456789abcdef")
        await refusals.tell(Refusal("/x/Failover", who, "10.0.0.1", NotCurrent(who)))
    async with database.read() as connection:
        assert [entry.actor for entry in await recent(connection, limit=9)] == ["user/u-000000000000", "user/ana"]


async def test_strangers_from_many_addresses_do_not_fill_the_log(tmp_path, sqlite_template) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite+aiosqlite:///{path}")
    async with IdentityPlane.started(tmp_path / "state", database, real_time()) as plane:
        csr = keys.csr(keys.new_key())

        async def guess(number: int) -> None:
            with pytest.raises(KeyRefused):
                await plane.enrollment.register(
                    key_id="0" * 16,
                    secret="x" * 43,
                    csr_der=csr,
                    name="site-a",
                    agent_version="",
                    address=f"fd00::{number:x}",
                )

        for number in range(210):
            await guess(number)
        assert len(await plane.audited()) == 200
        plane.clock.advance(60)
        await guess(999)
        newest = (await plane.audited())[0]
        assert (newest.address, newest.facts["left_out"]) == ("fd00::3e7", "10")
    await database.close()
