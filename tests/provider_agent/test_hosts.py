"""Hosts join, keep their session, and renew."""

import json

import pytest

from provider_agent.host_keys import LIFE_SECONDS
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.pki import TestVault
from tests.provider_agent.conftest import Lab, Until
from twinsite import keys
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.api.types.v1 import types_pb2
from twinsite.channel import dial
from twinsite.clock import MovedClock, SystemClock
from twinsite.errors import Aborted, Exhausted, Unauthenticated, Unreachable
from twinsite.tls import channel_credentials


async def test_a_host_joins_with_its_file_and_is_seen_at_the_coordinator(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving() as addresses:
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        response = await host.join()
        assert response.link_address == addresses.link
        assert response.signing_key == coordinator.vault.signer.public
        async with host.connected():
            await until(lambda: (seen := coordinator.host("hv1")) and seen.connected)
        await until(lambda: not coordinator.host("hv1").connected)


async def test_a_repeated_join_with_the_same_key_pair_gets_the_same_answer(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        assert await host.join() == await host.join()
    async with lab.serving():
        assert (await host.join()).host_id == host.id


async def test_a_join_key_is_good_for_one_key_pair(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        with pytest.raises(Unauthenticated) as used:
            await host.join(key=keys.new_key())
        with pytest.raises(Unauthenticated) as wrong:
            await host.join(secret="x" * 43)
        host.invitation["key_id"] = "../../etc/passwd"
        with pytest.raises(Unauthenticated) as unknown:
            await host.join()
        assert str(used.value) == str(wrong.value) == str(unknown.value)
        assert len(coordinator.hosts) == 1


async def test_a_join_key_expires_after_five_days(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    host = lab.invite("hv1")
    clock = MovedClock(SystemClock().now() + LIFE_SECONDS - 60)
    async with lab.serving(clock):
        await until(lambda: coordinator.links)
        clock.advance(120)
        with pytest.raises(Unauthenticated, match="expired") as caught:
            await host.join()
        assert "host-key create --host hv1" in caught.value.text("next_step")
        assert not coordinator.hosts


async def test_the_provider_keeps_no_secret_of_a_join_key(lab: Lab, coordinator: FakeCoordinator):
    await lab.register()
    host = lab.invite("hv1")
    kept = [path.read_text() for path in (lab.settings.state / "host-keys").iterdir()]
    assert kept
    assert not any(host.invitation["secret"] in text for text in kept)


async def test_guessing_join_keys_is_slowed_down(lab: Lab, coordinator: FakeCoordinator):
    await lab.register()
    async with lab.serving():
        host = lab.invite("hv1")
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await host.join(secret="guess")
        with pytest.raises(Exhausted):
            await host.join(secret="guess")


async def test_joining_without_a_coordinator_is_refused_with_the_next_step_and_works_later(lab: Lab, until: Until):
    async with lab.coordinator.serving():
        await lab.register()
    async with lab.serving():
        host = lab.invite("hv1")
        with pytest.raises(Unreachable) as caught:
            await host.join()
        assert "twinsite-provider status" in caught.value.text("next_step")
        async with lab.coordinator.serving():
            await until(lambda: lab.coordinator.links)
            await host.join()


async def test_a_host_that_joins_again_under_its_name_keeps_its_id(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host, again = lab.invite("hv1"), lab.invite("hv1")
        await host.join()
        async with host.connected():
            await until(lambda: host.got)
            await again.join()
            assert again.id == host.id
        async with again.connected():
            await until(lambda: again.got)
        # Its new key is in use: the old one is worth nothing any more.
        async with host.connected():
            await until(lambda: host.ended)
            assert isinstance(host.ended, Unauthenticated)


async def test_a_second_session_of_a_host_ends_the_first(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        first = lab.invite("hv1")
        await first.join()
        second = lab.invite("hv1")
        second.credentials, second.link_address = first.credentials, first.link_address
        async with first.connected(), second.connected():
            await until(lambda: first.ended)
            assert isinstance(first.ended, Aborted)
            await until(lambda: (seen := coordinator.host("hv1")) and seen.connected)
            assert second.ended is None


async def test_a_renewed_host_certificate_replaces_the_old_one_when_it_is_used(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        old = host.credentials
        async with host.connected():
            await host.renew()
            # A reply that is lost must not lock the host out: until the new certificate is used, the old one is good.
            new, host.credentials = host.credentials, old
            await host.renew()
            host.credentials = new
            assert host.ended is None
        async with host.connected():
            await until(lambda: host.got)
        host.credentials = old
        async with host.connected():
            await until(lambda: host.ended)
            assert isinstance(host.ended, Unauthenticated)


async def test_only_hosts_of_this_provider_have_a_session(lab: Lab, coordinator: FakeCoordinator, until: Until):
    made = await lab.register()
    async with lab.serving() as addresses:
        vault = coordinator.vault
        for stranger in (vault.host(), vault.server(), vault.user(), vault.coordinator(), made, TestVault().host()):
            credentials = channel_credentials(stranger)
            async with dial(addresses.link, credentials, peer=made.identity.dns) as channel:
                call = rpc.HostLinkStub(channel).Connect()
                with pytest.raises((Unauthenticated, Unreachable)):
                    async for _ in call:
                        pass


async def test_a_host_cannot_speak_for_another(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            claim = types_pb2.HostStatus(host_id="h-000000000000", name="hv2", agent_version="9")
            await host.say(pb.FromHost(status=claim))
            await until(lambda: (seen := coordinator.host("hv1")) and seen.status.agent_version == "9")
            assert coordinator.host("hv1").status.host_id == host.id
            assert coordinator.host("hv2") is None


async def test_what_a_host_that_is_away_has_is_still_known_after_a_restart(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    machine = types_pb2.Machine(id="vm-1", name="web01")
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            await host.say(pb.FromHost(status=types_pb2.HostStatus(machines=[machine])))
            await until(lambda: (seen := coordinator.host("hv1")) and seen.status.machines)
    coordinator.links.clear()
    async with lab.serving():
        await until(lambda: coordinator.host("hv1"))
        assert not coordinator.host("hv1").connected
        assert list(coordinator.host("hv1").status.machines) == [machine]


async def test_the_join_file_is_for_its_owner_only_and_overwrites_nothing(lab: Lab, coordinator: FakeCoordinator):
    await lab.register()
    path = lab.folder / "hv1.json"
    assert lab.command("host-key", "create", "--host", "hv1", "-O", str(path)) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert lab.command("host-key", "create", "--host", "hv1", "-O", str(path)) == 6
    assert path.read_bytes() == before
    assert len(list((lab.settings.state / "host-keys").iterdir())) == 1
    assert json.loads(before)["address"] == lab.settings.listen_join
    assert lab.command("host-key", "create", "--host", "../x", "-O", str(lab.folder / "x")) == 2
