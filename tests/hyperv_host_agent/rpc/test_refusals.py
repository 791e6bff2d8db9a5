"""A source is always told: whatever fails at the target, and whenever, ends its stream with the reason."""

import os
from pathlib import Path

import pytest

from hyperv_host_agent.store.base import NoSpace, PointInfo, Replica
from tests.fakes.agent_pair import FIRST, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from twinsite.api.types.v1 import types_pb2

BLOCKED = types_pb2.REPLICATION_STATE_BLOCKED


@pytest.mark.parametrize("call", ["begin", "put", "sync", "commit"])
async def test_a_full_store_is_told_to_the_source_whichever_step_found_it_full(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        replica: Replica = (await two.target.targets.receptions.get(machine.id)).held.replica

        def full(*_: object, **__: object) -> PointInfo:
            raise NoSpace(0, 1)

        with monkeypatch.context() as patched:
            patched.setattr(replica, call, full)
            guest.write(FIRST, 0, os.urandom(100_000))
            await eventually("the source to say so", lambda: two.at_source.statuses[machine.id].state == BLOCKED)
            assert two.at_source.statuses[machine.id].reason.code == "NO_SPACE"
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)
