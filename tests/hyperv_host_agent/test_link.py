"""The session with the provider: joining, keeping it, and doing without."""

import asyncio
import itertools
from pathlib import Path

import pytest

from hyperv_host_agent import app
from hyperv_host_agent.membership import BadJoinFile
from hyperv_host_agent.runfile import identity_folder, running
from tests.fakes.agent_pair import FIRST, contents, pair, spec
from tests.fakes.host_provider import agent_settings, eventually, host_agent, host_provider
from tests.fakes.newest_point import newest
from tests.fakes.pki import TestVault
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import SystemClock
from twinsite.credentials import Credentials
from twinsite.errors import Internal, Unauthenticated
from twinsite.journal import JournalInUse
from twinsite.server import PortInUse


async def test_a_join_whose_answer_was_lost_is_repeated_with_the_same_key(tmp_path: Path) -> None:
    async with host_provider(TestVault()) as provider:
        provider.cut_joins = 1
        settings = agent_settings(provider, tmp_path / "h1")
        with pytest.raises(Internal):
            async with app.agent(settings, SystemClock()):
                pass
        async with host_agent(provider, tmp_path / "h1") as agent:
            assert provider.names[agent.host_id] == "h1"
        assert len(provider.joins) == 2
        assert len(set(provider.joins)) == 1
        assert not (identity_folder(settings.state) / "join-key.pem").exists()


async def test_the_join_file_is_needed_once(tmp_path: Path) -> None:
    async with host_provider(TestVault()) as provider:
        async with host_agent(provider, tmp_path / "h1") as agent:
            first = agent.host_id
        (tmp_path / "h1" / "join.json").write_text("gone")
        async with host_agent(provider, tmp_path / "h1") as agent:
            assert agent.host_id == first
        assert len(provider.joins) == 1


async def test_a_join_waits_for_a_provider_that_is_down(tmp_path: Path) -> None:
    async with host_provider(TestVault()) as provider:
        settings = agent_settings(provider, tmp_path / "h1")
        await provider.stop()
        joined = asyncio.Event()

        async def start() -> None:
            async with app.agent(settings, SystemClock()):
                joined.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(start())
            await asyncio.sleep(0.3)
            assert not joined.is_set()
            await provider.start()
            await asyncio.wait_for(joined.wait(), 20)


@pytest.mark.parametrize("content", ["", "{}", '{"address": 1}', "[]"])
async def test_a_join_file_that_is_none_stops_the_start(tmp_path: Path, content: str) -> None:
    async with host_provider(TestVault()) as provider:
        settings = agent_settings(provider, tmp_path / "h1")
        settings.join_file.write_text(content)
        with pytest.raises(BadJoinFile):
            async with app.agent(settings, SystemClock()):
                pass
        assert running(settings.state) is None


async def test_a_join_with_a_wrong_secret_is_refused(tmp_path: Path) -> None:
    async with host_provider(TestVault()) as provider:
        settings = agent_settings(provider, tmp_path / "h1")
        provider._secrets.clear()
        with pytest.raises(Unauthenticated):
            async with app.agent(settings, SystemClock()):
                pass


async def test_a_second_agent_on_the_same_state_or_port_does_not_start(tmp_path: Path) -> None:
    async with host_provider(TestVault()) as provider, host_agent(provider, tmp_path / "h1") as agent:
        with pytest.raises(JournalInUse):
            async with host_agent(provider, tmp_path / "h1"):
                pass
        with pytest.raises(PortInUse):
            async with host_agent(provider, tmp_path / "h2", listen=agent.address):
                pass
        assert running(tmp_path / "h1" / "state") is not None
        assert running(tmp_path / "h2" / "state") is None


async def test_a_certificate_is_renewed_at_half_of_its_life_and_replication_does_not_notice(tmp_path: Path) -> None:
    async with pair(tmp_path, life=8.0) as two:
        machine = spec()
        guest = two.add(machine, contents())
        before = Credentials.load(identity_folder(tmp_path / "a1" / "state")).certificate.serial_number
        await two.protect(machine)
        await two.settled(machine.id)
        sessions = two.at_source.sessions
        await eventually("two renewals of both", lambda: two.provider.renewals >= 4)
        assert before != Credentials.load(identity_folder(tmp_path / "a1" / "state")).certificate.serial_number
        await asyncio.sleep(4)  # the first certificates have expired
        guest.write(FIRST, 0, b"with a new certificate")
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)
        assert two.at_source.sessions > sessions
        assert two.at_source.statuses[machine.id].state == types_pb2.REPLICATION_STATE_REPLICATING


async def test_replication_goes_on_without_a_provider_and_survives_a_restart_without_one(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        sessions = two.at_source.sessions
        await two.provider.stop()
        await two.restart_source(connect=False)
        guest.write(FIRST, 0, b"nobody is there to tell")
        held = (await two.target.targets.receptions.get(machine.id)).held

        async def arrived() -> bool:
            return (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)

        for _ in range(200):
            if await arrived():
                break
            await asyncio.sleep(0.1)
        assert await arrived()
        count = len(await held.run(held.replica.points))
        await two.provider.start()
        await eventually("both to connect again", lambda: two.at_source.sessions > sessions)
        await eventually("the points to be told", lambda: len(two.at_target.points[machine.id]) >= min(count, 1))


async def test_a_command_runs_once_and_its_result_is_sent_until_it_is_stored(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        check = commands_pb2.CheckSource(vm_id=machine.id)
        two.provider.store_results = False
        first = await two.provider.order(two.source.host_id, "c@1", check_source=check)
        assert first.ok
        two.hypervisor.stop(machine.id, timeout=0)  # so that a second execution would answer otherwise
        again = await two.provider.order(two.source.host_id, "c@1", check_source=check)
        assert again == first
        two.at_source.results.clear()
        await two.restart_source()
        assert await two.provider.result(two.source.host_id, "c@1") == first
        two.provider.store_results = True
        two.at_source.results.clear()
        await two.restart_source()
        await two.provider.result(two.source.host_id, "c@1")
        two.at_source.results.clear()
        await two.restart_source()
        assert not two.at_source.results


async def test_an_unknown_command_and_an_unknown_vm_are_answered(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        unknown = await two.provider.order(two.source.host_id, "x@1")
        assert unknown.error.code == "UNKNOWN_ACTION"
        missing = await two.provider.order(
            two.source.host_id, "y@1", check_source=commands_pb2.CheckSource(vm_id="../../etc/passwd")
        )
        assert missing.error.code == "MACHINE_MISSING"
        for name in ("forget_source", "remove_replica"):
            kind = {"forget_source": commands_pb2.ForgetSource, "remove_replica": commands_pb2.RemoveReplica}[name]
            evil = await two.provider.order(two.source.host_id, f"{name}@1", **{name: kind(vm_id="../../x")})
            assert not evil.ok
            assert evil.error.code == "BAD_NAME"


async def test_statuses_come_at_most_once_a_second(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        for _ in range(3):
            await two.settled(machine.id)
        times = two.at_source.times
        assert len(times) > 2
        assert min(late - early for early, late in itertools.pairwise(times)) > 0.8
