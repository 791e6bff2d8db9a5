"""TLS as an attacker meets it: older versions, resumed sessions, wrong peers; and a certificate renewed under way."""

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.fakes.echo import ALL, BOTH, UNARY, World
from tests.fakes.pki import TestVault
from twinsite import errors, server, tls
from twinsite.channel import NotThePeer, dial
from twinsite.credentials import Credentials


@pytest.fixture
async def world() -> AsyncIterator[World]:
    started = await World().start(ALL)
    yield started
    await started.running.stop(0)


def _context(world: World, credentials: Credentials | None, tmp_path: Path) -> ssl.SSLContext:
    """A client that is free to misbehave."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=world.vault.roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    if credentials is not None:
        pair = tmp_path / "pair.pem"
        pair.write_bytes(credentials.key_pem + credentials.chain_pem)
        context.load_cert_chain(pair)
    return context


def _connect(world: World, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    host, _, port = world.running.address.rpartition(":")
    plain = socket.create_connection((host, int(port)), timeout=10)
    name = world.watched.credentials.identity.dns
    try:
        return context.wrap_socket(plain, server_hostname=name, session=session)
    except OSError:
        plain.close()
        raise


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _unary_call(connection: ssl.SSLSocket, method: str) -> None:
    """One gRPC call by hand: preface, settings, headers in plain literals, an empty message. Waits for the end."""
    headers = {
        ":method": "POST",
        ":scheme": "https",
        ":path": method,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0)
        + _frame(1, 0x4, 1, block)
        + _frame(0, 0x1, 1, b"\x00\x00\x00\x00\x00")
    )
    buffer = b""
    while True:
        received = connection.recv(65536)
        assert received, "the connection was closed without an answer"
        buffer += received
        while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
            length, kind, flags = int.from_bytes(buffer[:3], "big"), buffer[3], buffer[4]
            stream, buffer = int.from_bytes(buffer[5:9], "big"), buffer[9 + length :]
            if kind == 4 and not flags & 1:
                connection.sendall(_frame(4, 0x1, 0))
            if stream == 1 and kind in (0, 1) and flags & 1:
                return


async def test_a_resumed_session_does_not_hide_that_the_certificate_has_expired(world: World, tmp_path: Path) -> None:
    """TLS accepts the resumption after expiry; each call looks at the dates."""
    member = world.vault.server(ends=3.0)
    context = _context(world, member, tmp_path)
    first = await asyncio.to_thread(_connect, world, context)
    await asyncio.to_thread(_unary_call, first, UNARY)
    assert len(world.echo.callers) == 1
    session = first.session
    first.close()
    async with asyncio.timeout(30):
        while time.time() <= member.expires + 1:
            await asyncio.sleep(0.05)
    world.clock.advance(3.0 + 301)
    resumed = await asyncio.to_thread(_connect, world, context, session)
    assert resumed.session_reused
    await asyncio.to_thread(_unary_call, resumed, UNARY)
    resumed.close()
    assert len(world.echo.callers) == 1
    assert [refusal.error.code for refusal in world.refusals] == ["CERTIFICATE_EXPIRED"]


async def test_tls_1_2_is_refused_call_by_call(world: World, tmp_path: Path) -> None:
    context = _context(world, world.vault.server(), tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    old = await asyncio.to_thread(_connect, world, context)
    assert old.version() == "TLSv1.2"
    await asyncio.to_thread(_unary_call, old, UNARY)
    old.close()
    assert [refusal.error.code for refusal in world.refusals] == ["TLS_TOO_OLD"]
    assert world.echo.callers == []


async def test_without_a_certificate_or_with_a_strangers_nothing_is_reached(world: World) -> None:
    peer = world.watched.credentials.identity.dns
    stranger = TestVault().server()
    for credentials in (
        tls.channel_credentials_roots(world.vault.roots_pem),
        grpc.ssl_channel_credentials(world.vault.roots_pem, stranger.key_pem, stranger.chain_pem),
        tls.channel_credentials(world.vault.server(begins=-60.0, ends=-1.0)),
    ):
        async with dial(world.running.address, credentials, peer=peer) as channel:
            with pytest.raises(errors.Unreachable):
                await channel.unary_unary(UNARY)(b"hi")
    assert world.echo.callers == []


async def test_another_member_at_the_address_is_not_the_peer(world: World) -> None:
    member, other = world.vault.server(), world.vault.host()
    for peer in (other.identity.dns, f"main.coordinator.{TestVault().vault}.twinsite"):
        async with dial(world.running.address, tls.channel_credentials(member), peer=peer) as channel:
            with pytest.raises(NotThePeer, match="is not"):
                await channel.unary_unary(UNARY)(b"hi")


async def test_a_renewed_certificate_serves_new_connections_and_open_streams_go_on(
    world: World, tmp_path: Path
) -> None:
    member = world.vault.server()
    context = _context(world, member, tmp_path)

    def shown() -> bytes:
        with _connect(world, context) as connection:
            found = connection.getpeercert(binary_form=True)
        assert found
        return found

    async with world.dial(member) as channel:
        stream = channel.stream_stream(BOTH)()
        await stream.write(b"before")
        assert await stream.read() == b"before"
        before = await asyncio.to_thread(shown)
        world.watched.replace(world.vault.coordinator())
        after = await asyncio.to_thread(shown)
        assert before != after
        await stream.write(b"after")
        assert await stream.read() == b"after"
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        async with world.dial(member) as fresh:
            assert await fresh.unary_unary(UNARY)(b"hi") == b"hi"


async def test_the_environments_web_proxy_is_not_used_between_members(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with world.dial(world.vault.server()) as channel:
        assert await channel.unary_unary(UNARY)(b"hi") == b"hi"


async def test_a_proxy_that_is_configured_is_used(world: World) -> None:
    """The least of a CONNECT proxy: it tells what it was asked for, then passes bytes."""
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def proxied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, _, port = world.running.address.rpartition(":")
        onward, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, back), pump(onward, writer), return_exceptions=True)

    proxy = await asyncio.start_server(proxied, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    credentials, peer = tls.channel_credentials(world.vault.server()), world.watched.credentials.identity.dns
    async with dial(world.running.address, credentials, peer=peer, proxy=address) as channel:
        assert await channel.unary_unary(UNARY)(b"hi") == b"hi"
    assert asked[0].startswith(f"CONNECT {world.running.address} ".encode())
    await world.running.stop(0)
    proxy.close()
    await proxy.wait_closed()


async def test_a_port_that_is_taken_and_an_address_that_is_none_are_named(world: World) -> None:
    credentials = tls.server_credentials(world.watched)
    with pytest.raises(server.PortInUse) as taken:
        await server.serve(world.running.address, [], credentials=credentials, gate=world.gate)
    assert taken.value.address == world.running.address
    for address in ("203.0.113.1:0", "nonsense", "127.0.0.1:70000", "127.0.0.1:x"):
        with pytest.raises(server.CannotListen):
            await server.serve(address, [], credentials=credentials, gate=world.gate)


async def test_a_message_above_the_limit_is_refused_and_the_connection_goes_on(world: World) -> None:
    async with world.dial(world.vault.server()) as channel:
        with pytest.raises(errors.Exhausted):
            await channel.unary_unary(UNARY)(bytes(server.CONTROL.message_bytes + 1))
        assert await channel.unary_unary(UNARY)(b"hi") == b"hi"


async def test_a_unary_call_to_somebody_silent_ends_at_its_deadline(world: World) -> None:
    async with world.dial(world.vault.server()) as channel:
        with pytest.raises(errors.Unreachable) as late:
            await channel.unary_unary(UNARY)(b"wait", timeout=0.2)
    assert late.value.code == "DEADLINE_EXCEEDED"


async def test_nobody_at_the_address_is_said_so() -> None:
    vault = TestVault()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        async with dial(address, tls.channel_credentials(vault.server()), peer="x.twinsite") as channel:
            with pytest.raises(errors.Unreachable, match="does not answer") as nobody:
                await channel.unary_unary(UNARY)(b"hi")
    assert nobody.value.text("next_step")
