"""What a VM's owner relies on, through two whole agents: real TLS, real store, a VM in memory."""

from pathlib import Path

from tests.fakes.agent_pair import FIRST, SECOND, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from twinsite.api.types.v1 import types_pb2
from twinsite.extents import CLUSTER


async def test_every_point_is_the_source_at_one_instant(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.replicated(machine.id)
        for round_ in range(3):
            guest.write(FIRST, round_ * CLUSTER + 100, b"changed %d" % round_)
            guest.write(FIRST, (40 + round_) * CLUSTER, bytes(CLUSTER))
            guest.write(SECOND, 3 * CLUSTER, b"tail %d" % round_)
            await two.settled(machine.id)
            cycle, found = await newest(two.target, machine.id)
            assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}
        for view in (two.at_source, two.at_target):
            told = view.statuses
            await eventually("the last cycle to be told", lambda told=told: told[machine.id].committed_cycle >= cycle)
            assert told[machine.id].state == types_pb2.REPLICATION_STATE_REPLICATING
