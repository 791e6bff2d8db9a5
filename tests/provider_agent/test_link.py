"""The session with the coordinator comes and goes; hosts do not notice."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator

from provider_agent.app import identity_folder
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.host import FakeHost
from tests.provider_agent.conftest import Lab, Until
from twinsite import keys
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock
from twinsite.credentials import Credentials


def assignments(host: FakeHost, version: int, *vm_ids: str) -> types_pb2.Assignments:
    found = [types_pb2.Assignment(vm_id=vm_id, role=types_pb2.ROLE_TARGET, term=1) for vm_id in vm_ids]
    return types_pb2.Assignments(host_id=host.id, version=version, assignments=found)


def status(lab: Lab) -> dict:
    return json.loads((lab.settings.state / "run" / "status.json").read_text())


async def test_the_session_is_found_again_after_the_coordinator_was_away(lab: Lab, until: Until):
    async with lab.coordinator.serving():
        await lab.register()
    async with lab.serving():
        for sessions in (1, 2):
            async with lab.coordinator.serving():
                await until(lambda sessions=sessions: len(lab.coordinator.links) == sessions)
                await until(lambda: lab.coordinator.links[-1].kind("inventory"))
                await until(lambda: lab.command("status") == 0)
            await until(lambda: lab.command("status") == 9)


async def test_hosts_keep_their_sessions_while_the_coordinator_is_away(lab: Lab, until: Until):
    async with contextlib.AsyncExitStack() as stack:
        async with lab.coordinator.serving():
            await lab.register()
            await stack.enter_async_context(lab.serving())
            await until(lambda: lab.coordinator.links)
            host = lab.invite("hv1")
            await host.join()
            lab.coordinator.assign(assignments(host, 1, "vm-1"))
            await stack.enter_async_context(host.connected())
            await until(lambda: host.kind("assignments"))
        point = types_pb2.Point(vm_id="vm-1", cycle=4)
        await host.say(pb.FromHost(points=pb.HostPoints(vm_id="vm-1", points=[point])))
        replicating = types_pb2.ReplicationStatus(vm_id="vm-1", committed_cycle=4)
        await host.say(pb.FromHost(statuses=pb.Statuses(statuses=[replicating])))
        async with lab.coordinator.serving():
            link = lambda: lab.coordinator.links[-1]  # noqa: E731  # the newest, whichever it is by then
            await until(lambda: link().kind("points") and link().kind("statistics"))
            assert list(link().kind("points")[-1].points) == [point]
            stray = pb.HostPoints(vm_id="vm-1", points=[types_pb2.Point(cycle=9)], changes=True, total=7)
            await host.say(pb.FromHost(points=stray))
            await until(lambda: host.kind("points_asked"))
            newer = pb.HostPoints(vm_id="vm-1", points=[types_pb2.Point(cycle=5)], changes=True, gone=[4], total=1)
            await host.say(pb.FromHost(points=newer))
            await until(lambda: list(link().kind("points")[-1].gone) == [4])
            assert list(link().kind("statistics")[-1].statuses) == [replicating]
            assert host.ended is None


async def test_assignments_reach_a_host_that_connects_later(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        coordinator.assign(assignments(host, 3, "vm-1"))
        await until((lab.settings.state / "assignments" / f"{host.id}.json").exists)
        async with host.connected():
            await until(lambda: host.kind("assignments"))
            assert host.kind("assignments") == [assignments(host, 3, "vm-1")]
            coordinator.assign(assignments(host, 4, "vm-1", "vm-2"))
            await until(lambda: len(host.kind("assignments")) == 2)
            assert host.ended is None


async def test_a_host_learns_when_its_assignments_become_current(lab: Lab, until: Until):
    async with lab.coordinator.serving():
        await lab.register()
        async with lab.serving():
            await until(lambda: lab.coordinator.links)
            host = lab.invite("hv1")
            await host.join()
            lab.coordinator.assign(assignments(host, 3, "vm-1"))
            async with host.connected():
                await until(lambda: host.kind("assignments"))
    async with lab.serving(), host.connected():
        await until(lambda: host.kind("assignments"))
        assert [one.assignments_current for one in host.kind("welcome")] == [False]
        async with lab.coordinator.serving():
            await until(lambda: len(host.kind("welcome")) == 2)
            assert host.kind("welcome")[1].assignments_current
            async with host.connected():
                await until(lambda: host.kind("assignments"))
                assert [one.assignments_current for one in host.kind("welcome")] == [True]
        await until(lambda: lab.command("status") == 9)
        async with host.connected():
            await until(lambda: host.kind("assignments"))
            assert [one.assignments_current for one in host.kind("welcome")] == [False]


async def test_assignments_for_a_host_of_another_provider_are_not_kept(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        coordinator.assign(types_pb2.Assignments(host_id="../escape", version=1))
        coordinator.assign(assignments(host, 1))
        await until((lab.settings.state / "assignments" / f"{host.id}.json").exists)
        assert [path.name for path in (lab.settings.state / "assignments").iterdir()] == [f"{host.id}.json"]


async def test_a_host_is_heard_only_on_machines_it_was_assigned(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        coordinator.assign(assignments(host, 1, "vm-1"))
        async with host.connected():
            await until(lambda: host.kind("assignments"))
            said = [types_pb2.ReplicationStatus(vm_id=vm_id) for vm_id in ("vm-9", "vm-1")]
            await host.say(pb.FromHost(statuses=pb.Statuses(statuses=said)))
            await until(lambda: coordinator.links[0].kind("statistics"))
            heard = [one.vm_id for report in coordinator.links[0].kind("statistics") for one in report.statuses]
            assert heard == ["vm-1"]


async def test_statistics_are_sent_at_most_once_a_second_and_the_newest_of_them(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    clock = MovedClock(time.time())
    async with lab.serving(clock):
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        coordinator.assign(assignments(host, 1, *(f"vm-{number}" for number in range(1, 50))))
        async with host.connected():
            await until(lambda: host.kind("assignments"))
            clock.advance(2)
            reports = coordinator.links[0].kind
            for cycle in range(1, 50):
                one = types_pb2.ReplicationStatus(vm_id="vm-1", committed_cycle=cycle)
                await host.say(pb.FromHost(statuses=pb.Statuses(statuses=[one])))
                await host.say(pb.FromHost(points=pb.HostPoints(vm_id=f"vm-{cycle}", points=[types_pb2.Point()])))
            # Of a VM that is not this host's: not passed on.
            await host.say(pb.FromHost(points=pb.HostPoints(vm_id="vm-50", points=[types_pb2.Point()])))
            await until(lambda: len(reports("points")) == 49)  # they are not paced, so the rest was taken in too
            assert len(reports("statistics")) <= 1

            def newest() -> list[int]:
                return [one.committed_cycle for report in reports("statistics")[-1:] for one in report.statuses]

            await until(lambda: newest() == [49], moving=clock, by=0.3)
            assert len(reports("statistics")) <= 3


async def test_a_revoked_provider_says_so_tries_slowly_and_its_hosts_stay(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    clock = MovedClock(time.time())
    async with lab.serving(clock):
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            coordinator.revoke()
            await until(lambda: status(lab)["coordinator"] == "refused", moving=clock, by=0.5)
            assert lab.command("status") == 4
            assert status(lab)["problem"]["next_step"]
            assert host.ended is None
            # An administrator puts it right: nobody has to restart anything.
            for server in coordinator.servers.values():
                server.revoked = False
            clock.advance(61)
            await until(lambda: status(lab)["coordinator"] == "connected")


async def test_a_token_that_is_not_good_any_more_is_replaced(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        for server in coordinator.servers.values():
            server.tokens.clear()
        coordinator.links[0].outgoing.put_nowait(None)
        await until(lambda: len(coordinator.links) == 2)


async def test_the_token_is_renewed_at_half_of_its_life(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    clock = MovedClock(time.time())
    async with lab.serving(clock):
        await until(lambda: coordinator.links and coordinator.links[0].kind("inventory"))
        (server,) = coordinator.servers.values()
        before = len(server.tokens)
        await until(lambda: (clock.advance(10), len(server.tokens) > before)[1])
        assert 1790 <= clock.now() - time.time() <= 1900
        assert len(coordinator.links) == 1


async def served_certificate(address: str) -> bytes:
    """What a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_the_certificate_is_renewed_at_half_of_its_life_and_hosts_keep_their_sessions(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    coordinator.certificate_seconds = 3600
    coordinator.token_seconds = 1e9
    old = await lab.register()
    clock = MovedClock(time.time())
    async with lab.serving(clock) as addresses:
        await until(lambda: coordinator.links and coordinator.links[0].kind("inventory"))
        host = lab.invite("hv1")
        await host.join()
        before = await served_certificate(addresses.join)
        async with host.connected():
            clock.advance(3600 * 0.44)
            await asyncio.sleep(0.1)
            assert len(coordinator.links) == 1
            clock.advance(3600 * 0.12)
            await until(lambda: len(coordinator.links) == 2, moving=clock, by=0.5)
            (server,) = coordinator.servers.values()
            assert server.generation == 2
            new = Credentials.load(identity_folder(lab.settings.state))
            assert new.meta["generation"] == "2"
            assert keys.spki_sha256(new.key) != keys.spki_sha256(old.key)
            assert await served_certificate(addresses.join) != before
            assert host.ended is None
        async with host.connected():
            await until(lambda: host.kind("welcome"))


async def test_a_lost_renewal_reply_does_not_lock_the_identity(lab: Lab, coordinator: FakeCoordinator, until: Until):
    coordinator.certificate_seconds = 3600
    await lab.register()
    clock = MovedClock(time.time())
    coordinator.lose_replies = 1
    async with lab.serving(clock):
        await until(lambda: coordinator.links and coordinator.links[0].kind("inventory"))
        clock.advance(3600 * 0.56)
        (server,) = coordinator.servers.values()
        await until(lambda: server.generation == 2)
    # Killed there and started again, it asks with the same key pair.
    async with lab.serving(clock):
        await until(lambda: lab.command("status") == 0, moving=clock, by=0.2)
        await until(
            lambda: Credentials.load(identity_folder(lab.settings.state)).meta["generation"] == "2",
            moving=clock,
            by=200.0,
        )
        assert not server.revoked
        assert server.generation == 2


async def test_a_renewal_key_whose_certificate_is_in_use_is_not_used_again(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    """What a kill leaves between storing the new certificate and forgetting its key."""
    coordinator.certificate_seconds = 3600
    old = await lab.register()
    (identity_folder(lab.settings.state) / "renewal-key.pem").write_bytes(old.key_pem)
    clock = MovedClock(time.time())
    async with lab.serving(clock):
        await until(lambda: coordinator.links and coordinator.links[0].kind("inventory"))
        clock.advance(3600 * 0.56)
        await until(lambda: len(coordinator.links) == 2, moving=clock, by=0.5)
    new = Credentials.load(identity_folder(lab.settings.state))
    assert keys.spki_sha256(new.key) != keys.spki_sha256(old.key)
    assert new.meta["generation"] == "2"


@contextlib.asynccontextmanager
async def connect_proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """A proxy that knows CONNECT, with the targets it was asked for."""
    targets: list[str] = []
    writers: list[asyncio.StreamWriter] = []
    handlers: list[asyncio.Task] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        assert method == "CONNECT"
        targets.append(target)
        host, _, port = target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writers.append(far_writer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    async with server:
        yield f"http://{host}:{port}", targets
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    await asyncio.gather(*handlers, return_exceptions=True)


async def test_registration_and_session_go_through_the_proxy_and_hosts_do_not(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    async with connect_proxy() as (proxy, targets):
        await lab.register(proxy=proxy)
        assert targets == [coordinator.enrollment_address]
        async with lab.serving():
            await until(lambda: coordinator.links)
            assert set(targets) == {coordinator.enrollment_address, coordinator.address}
            host = lab.invite("hv1")
            await host.join()
            async with host.connected():
                await until(lambda: host.got)
        assert set(targets) == {coordinator.enrollment_address, coordinator.address}
