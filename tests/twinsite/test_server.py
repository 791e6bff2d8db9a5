"""A listener's own services, its end, and peers that fall silent."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.fakes.echo import ALL, BOTH, UNARY, World
from twinsite import errors, server, tls
from twinsite.channel import Channel, dial

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    started = await World().start(ALL)
    yield started
    await started.running.stop(0)


async def _described(channel: Channel) -> Any:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    return {service.name for service in answer.list_services_response.service}


async def test_reflection_is_off_unless_asked_for_and_then_for_members_only(world: World) -> None:
    async with world.dial(world.vault.server()) as channel:
        with pytest.raises(errors.InvalidInput):  # UNIMPLEMENTED
            await _described(channel)
    credentials = tls.server_credentials(world.watched)
    asked = await server.serve(
        "127.0.0.1:0", [world.echo.mount()], credentials=credentials, gate=world.gate, reflection=True
    )
    peer, member = world.watched.credentials.identity.dns, world.vault.server()
    async with dial(asked.address, tls.channel_credentials(member), peer=peer) as channel:
        assert "twinsite.test.Echo" in await _described(channel)
        world.judge.denied.add(member.identity.id)
        with pytest.raises(errors.Unauthenticated):
            await _described(channel)
    await asked.stop(0)


async def test_two_tasks_may_write_to_one_stream(world: World) -> None:
    large = b"x" * 1_000_000
    async with world.dial(world.vault.server()) as channel, asyncio.TaskGroup() as group:
        stream = channel.stream_stream(BOTH)()

        async def write() -> None:
            for _ in range(10):
                await stream.write(large)

        group.create_task(write())
        group.create_task(write())
        for _ in range(20):
            assert await stream.read() == large
        stream.cancel()


async def test_a_listener_that_is_stopping_says_so_and_lets_running_calls_end(world: World) -> None:
    async with world.dial(world.vault.server()) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        stream = channel.stream_stream(BOTH)()
        await stream.write(b"hi")
        assert await stream.read() == b"hi"
        stopping = asyncio.ensure_future(world.running.stop(5))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        await stream.write(b"last")
        assert await stream.read() == b"last"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 4)


async def test_more_calls_at_once_than_the_limit_are_told_so_at_once(world: World) -> None:
    limits = server.Limits(message_bytes=65536, concurrent_calls=2)
    credentials = tls.server_credentials(world.watched)
    small = await server.serve(
        "127.0.0.1:0", [world.echo.mount()], credentials=credentials, gate=world.gate, limits=limits
    )
    peer = world.watched.credentials.identity.dns
    async with dial(small.address, tls.channel_credentials(world.vault.server()), peer=peer) as channel:
        streams = []
        for _ in range(2):
            stream = channel.stream_stream(BOTH)()
            await stream.write(b"hi")
            assert await stream.read() == b"hi"
            streams.append(stream)
        with pytest.raises(errors.Exhausted):
            await channel.unary_unary(UNARY)(b"hi")
        for stream in streams:
            stream.cancel()
    await small.stop(0)


class Wire:
    """A TCP relay that can stop passing bytes without closing anything: a cable pulled somewhere in between."""

    def __init__(self, onward: str) -> None:
        self._onward = onward
        self.passing = asyncio.Event()
        self.passing.set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._onward.rpartition(":")
        onward, back = await asyncio.open_connection(host, int(port))
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(onward, writer), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.passing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def stop(self) -> None:
        self.passing.set()
        for writer in self._writers:
            writer.close()
        self._server.close()
        await self._server.wait_closed()


async def test_a_peer_that_falls_silent_is_noticed_on_both_sides(world: World) -> None:
    """With the ping of the real limits it takes 18 seconds; here two."""
    limits = server.Limits(message_bytes=65536, ping_every=1, ping_within=1)
    credentials = tls.server_credentials(world.watched)
    quick = await server.serve(
        "127.0.0.1:0", [world.echo.mount()], credentials=credentials, gate=world.gate, limits=limits
    )
    wire = Wire(quick.address)
    peer, member = world.watched.credentials.identity.dns, world.vault.server()
    channel = dial(await wire.start(), tls.channel_credentials(member), peer=peer, limits=limits)
    try:
        stream = channel.stream_stream(BOTH)()
        await stream.write(b"wait")
        await asyncio.wait_for(world.echo.waiting.wait(), 10)
        wire.passing.clear()
        async with asyncio.timeout(15):
            with pytest.raises(errors.Unreachable):
                await stream.read()
            while not world.echo.closed:
                await asyncio.sleep(0.05)
    finally:
        await channel.close()
        await wire.stop()
        await quick.stop(0)


def test_the_real_limits_notice_a_dead_peer_within_twenty_seconds() -> None:
    for limits in (server.CONTROL, server.DATA, server.ENROLLMENT):
        assert limits.ping_every + limits.ping_within <= 20
