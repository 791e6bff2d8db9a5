"""A small service behind a real gate on a real port, with a vault of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

from tests.fakes.pki import TestVault
from twinsite import access, errors, server, tls
from twinsite.access import Rule
from twinsite.channel import Channel, dial
from twinsite.clock import MovedClock
from twinsite.credentials import Credentials, Watched
from twinsite.server import Mount, Running

SERVICE = "twinsite.test.Echo"
SERVERS = Rule(frozenset({"server"}))
UNARY, DOWN, UP, BOTH = (f"/{SERVICE}/{name}" for name in ("Unary", "Down", "Up", "Both"))


class NoSpace(errors.Exhausted):
    public = "no space on {error.disk}"
    cause = "3 of 4 {{bytes}} are used"
    still_works = "nothing was written"
    next_step = "make room"

    def __init__(self, disk: str) -> None:
        self.disk = disk


def _descriptor() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="twinsite/test/echo.proto", package="twinsite.test")
    file.message_type.add(name="Any")
    service = file.service.add(name="Echo")
    for name in ("Unary", "Down", "Up", "Both"):
        service.method.add(name=name, input_type=".twinsite.test.Any", output_type=".twinsite.test.Any")
    pool = descriptor_pool.DescriptorPool()
    return pool.AddSerializedFile(file.SerializeToString()).services_by_name["Echo"]


class Echo:
    """Answers with what it got; "boom", "typed", "grouped" and "wait" do as they say. Plain bytes, no protobuf."""

    def __init__(self) -> None:
        self.callers: list[access.Caller] = []
        self.waiting = asyncio.Event()
        self.closed = 0

    async def _do(self, request: bytes) -> bytes:
        self.callers.append(access.caller())
        if request == b"boom":
            raise ZeroDivisionError("with a secret in it")
        if request == b"typed":
            raise NoSpace("vda")
        if request == b"grouped":
            async with asyncio.TaskGroup() as group:
                group.create_task(self._do(b"typed"))
        if request == b"wait":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.closed += 1
        return request

    async def unary(self, request: bytes, context: Any) -> bytes:
        return await self._do(request)

    async def down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield await self._do(request)

    async def down_writing(self, request: bytes, context: Any) -> None:
        for _ in range(3):
            await context.write(await self._do(request))

    async def up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b",".join([await self._do(request) async for request in requests])

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self._do(request)

    def mount(self, *, writing: bool = False) -> Mount:
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.down_writing if writing else self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        return Mount(_descriptor(), lambda server: server.add_generic_rpc_handlers((generic,)))


class World:
    def __init__(self) -> None:
        self.vault, self.echo, self.clock = TestVault(), Echo(), MovedClock(time.time())
        self.watched = Watched(self.vault.coordinator())
        self.judge = access.VaultMembers(self.vault.vault)
        self.refusals: list[access.Refusal] = []
        self.gate: access.Gate
        self.running: Running

    async def start(self, table: Mapping[str, Rule], *, writing: bool = False, require_client: bool = True) -> "World":
        async def refused(refusal: access.Refusal) -> None:
            self.refusals.append(refusal)

        self.gate = access.Gate(table, self.judge, self.clock, on_refused=refused)
        credentials = tls.server_credentials(self.watched, require_client=require_client)
        mounts = [self.echo.mount(writing=writing)]
        self.running = await server.serve("127.0.0.1:0", mounts, credentials=credentials, gate=self.gate)
        return self

    def dial(self, credentials: Credentials) -> Channel:
        peer = self.watched.credentials.identity.dns
        return dial(self.running.address, tls.channel_credentials(credentials), peer=peer)


ALL = dict.fromkeys((UNARY, DOWN, UP, BOTH), SERVERS)
