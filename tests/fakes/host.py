"""A host agent as its provider meets it: it joins with a file, keeps a session, executes each command once."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from twinsite import keys
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.channel import Channel, dial
from twinsite.credentials import Credentials
from twinsite.errors import TwinsiteError, Unreachable
from twinsite.identity import Identity
from twinsite.tls import channel_credentials, channel_credentials_roots


class FakeHost:
    """`answer` decides a command's result; None leaves it running."""

    def __init__(self, join_file: Path) -> None:
        self.invitation: dict[str, Any] = json.loads(join_file.read_bytes())
        self.name: str = self.invitation["host_name"]
        self.key = keys.new_key()
        self.credentials: Credentials | None = None
        self.server: Identity = Identity.parse(self.invitation["server"])
        self.link_address = ""
        self.got: list[pb.ToHost] = []
        self.ended: TwinsiteError | None = None
        self.executed: Counter[str] = Counter()
        self.results: dict[str, commands_pb2.CommandResult] = {}
        self.answer: Callable[[commands_pb2.HostCommand], commands_pb2.CommandResult | None] = self.succeed
        self._call: Any = None

    @property
    def id(self) -> str:
        return self.credentials.identity.id

    @staticmethod
    def succeed(command: commands_pb2.HostCommand) -> commands_pb2.CommandResult:
        return commands_pb2.CommandResult(id=command.id, ok=True, note="done")

    async def join(self, *, secret: str | None = None, key: keys.PrivateKey | None = None) -> pb.JoinResponse:
        roots = self.invitation["roots_pem"].encode()
        credentials = channel_credentials_roots(roots)
        async with dial(self.invitation["address"], credentials, peer=self.server.dns) as channel:
            request = pb.JoinRequest(
                key_id=self.invitation["key_id"],
                secret=self.invitation["secret"] if secret is None else secret,
                csr_der=keys.csr(key or self.key),
                agent_version="0",
            )
            response = await rpc.HostEnrollmentStub(channel).Join(request)
        self.credentials = Credentials.of(key or self.key, response.chain_pem, response.roots_pem, {})
        self.link_address = response.link_address
        return response

    def channel(self) -> Channel:
        return dial(self.link_address, channel_credentials(self.credentials), peer=self.server.dns)

    async def renew(self) -> None:
        key = keys.new_key()
        async with self.channel() as channel:
            response = await rpc.HostLinkStub(channel).Renew(pb.RenewHostRequest(csr_der=keys.csr(key)))
        self.credentials = Credentials.of(key, response.chain_pem, response.roots_pem, {})

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["FakeHost"]:
        """One session while the block runs; `ended` says why it ended earlier."""
        self.got, self.ended = [], None
        async with self.channel() as channel, asyncio.TaskGroup() as group:
            call = self._call = rpc.HostLinkStub(channel).Connect()
            status = types_pb2.HostStatus(host_id=self.id, name=self.name, hypervisor="embedded")
            try:
                await self.say(pb.FromHost(status=status))
            except TwinsiteError as refused:  # before the first word was out; the reader is told the same
                self.ended = refused
            reader = group.create_task(self._read(call))
            try:
                yield self
            finally:
                reader.cancel()
                call.cancel()

    async def stay_connected(self) -> None:
        """Session after session; ends when it is cancelled."""
        while True:
            try:
                async with self.connected():
                    while self.ended is None:
                        await asyncio.sleep(0.01)
            except* TwinsiteError:
                pass
            await asyncio.sleep(0.05)

    async def say(self, message: pb.FromHost) -> None:
        await self._call.write(message)

    def kind(self, name: str) -> list[Any]:
        return [getattr(message, name) for message in self.got if message.WhichOneof("message") == name]

    async def finish(self, result: commands_pb2.CommandResult) -> None:
        self.results[result.id] = result
        await self.say(pb.FromHost(result=result))

    async def _read(self, call: Any) -> None:
        try:
            async for message in call:
                self.got.append(message)
                match message.WhichOneof("message"):
                    case "command":
                        await self._execute(message.command)
                    case "cancel" if message.cancel.id not in self.results:
                        error = types_pb2.ErrorDetail(code="CANCELLED", message="rolled back")
                        await self.finish(commands_pb2.CommandResult(id=message.cancel.id, ok=False, error=error))
            self.ended = self.ended or Unreachable()
        except TwinsiteError as error:
            self.ended = error

    async def _execute(self, command: commands_pb2.HostCommand) -> None:
        await self.say(pb.FromHost(received=pb.CommandReceived(id=command.id)))
        if command.id not in self.results:
            self.executed[command.id] += 1
            result = self.answer(command)
            if result is None:
                return
            self.results[command.id] = result
        await self.finish(self.results[command.id])
