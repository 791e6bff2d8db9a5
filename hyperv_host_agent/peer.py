"""The target host, as the source of one VM sees it."""

import asyncio
from typing import TYPE_CHECKING, Final

import grpc

from hyperv_host_agent import wire
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.replication.cycle import PROTOCOL, Committed, CycleHeader, TargetState, Unfinished, Wanted
from hyperv_host_agent.replication.sending import CommitAcked, Durable
from hyperv_host_agent.replication.stream import UnexpectedAck
from twinsite.api.host.v1 import replication_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.channel import Call, Channel, dial
from twinsite.clock import Clock
from twinsite.errors import Unreachable
from twinsite.extents import Run
from twinsite.server import DATA
from twinsite.tls import channel_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Replication"].full_name
ASK_SECONDS: Final = 10.0
STALL_SECONDS: Final = 300.0  # a message the network does not take for so long; one takes 100 s at 32 kB/s
SILENCE_SECONDS: Final = 600.0  # a target that has something and neither acks nor refuses it; a commit may take a while
ALIVE_SECONDS: Final = 60.0  # without a message, while the source compares: the target hears that it is there
_LOOK_SECONDS: Final = 10.0


class Stalled(Unreachable):
    public = "the target {error.what} for {error.seconds:.0f} s"
    still_works = "changes go on being tracked; replication goes on by itself"

    def __init__(self, what: str, seconds: float) -> None:
        self.what, self.seconds = what, seconds


class StreamEnded(Unreachable):
    public = "the target ended the stream before the cycle was committed"
    still_works = "what it acked is durable; replication goes on from there by itself"


class Peer:
    """One connection, made when it is needed, and again after a failure or a renewal of the certificate."""

    def __init__(self, membership: Membership, host_id: str, address: str, clock: Clock) -> None:
        self._membership = membership
        self._clock = clock
        self.host_id = host_id
        self._address = address
        self._channel: Channel | None = None
        self._dialled_with: object = None

    async def ask(self, grant: types_pb2.SignedDocument, machine: types_pb2.Machine) -> TargetState:
        """What the target has. Raises what it refuses with, and Unreachable."""
        channel = await self._connected()
        call = channel.unary_unary(
            f"/{_SERVICE}/Open",
            request_serializer=pb.OpenRequest.SerializeToString,
            response_deserializer=pb.OpenResponse.FromString,
        )
        answer: pb.OpenResponse = await call(
            pb.OpenRequest(protocol=PROTOCOL, grant=grant, machine=machine), timeout=ASK_SECONDS
        )
        return TargetState(
            term=answer.term,
            committed=Committed(answer.committed_cycle, answer.committed_id) if answer.committed_cycle else None,
            unfinished=Unfinished(
                answer.unfinished.cycle, answer.unfinished.id, answer.unfinished.durable, answer.unfinished.digest
            )
            if answer.HasField("unfinished")
            else None,
            wanted=tuple(Wanted(wanted.disk_id, Run(wanted.start, wanted.count)) for wanted in answer.wanted),
            awaiting_seed=answer.awaiting_seed,
            seed=answer.seed,
            seed_after=answer.seed_after,
        )

    async def fingerprints(
        self, cycle: Committed, grant: types_pb2.SignedDocument
    ) -> "AsyncGenerator[pb.FingerprintsChunk, None]":
        """Of the target's newest cycle, which has to be this one. Raises what it refuses with, Stalled, Unreachable."""
        channel = await self._connected()
        call: Call = channel.unary_stream(
            f"/{_SERVICE}/Fingerprints",
            request_serializer=pb.FingerprintsRequest.SerializeToString,
            response_deserializer=pb.FingerprintsChunk.FromString,
        )(pb.FingerprintsRequest(grant=grant, cycle=cycle.number, id=cycle.id))
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        chunk = await call.read()
                except TimeoutError:
                    raise Stalled("answered nothing", SILENCE_SECONDS) from None
                if chunk is grpc.aio.EOF:
                    return
                yield chunk
        finally:
            call.cancel()

    async def send(
        self, number: int, header: CycleHeader, resume_after: int, grant: types_pb2.SignedDocument
    ) -> "Sending":
        """A stream on which the begin frame was sent. Raises TwinsiteError."""
        channel = await self._connected()
        call: Call = channel.stream_stream(f"/{_SERVICE}/Send", response_deserializer=pb.Ack.FromString)()
        sending = Sending(number, call, self._clock, resume_after=resume_after)
        await sending.write(wire.encode(wire.begin(header, resume_after=resume_after, grant=grant)))
        return sending

    async def close(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    async def _connected(self) -> Channel:
        credentials = self._membership.watched.credentials
        if self._dialled_with is not credentials:
            await self.close()
        if self._channel is None:
            self._channel = dial(
                self._address, channel_credentials(credentials), peer=self._membership.peer(self.host_id), limits=DATA
            )
            self._dialled_with = credentials
        return self._channel


class Sending:
    def __init__(self, number: int, call: Call, clock: Clock, *, resume_after: int = 0) -> None:
        self.number = number
        self._call = call
        self._clock = clock
        self._begun = resume_after  # the newest batch that the target may have
        self._written = self._acked = 0  # batches
        self._since = 0.0  # when the target began to owe an answer, or gave the last one
        self._said = clock.monotonic()  # when the last message was taken

    async def write(self, message: bytes, batch: int = 0) -> None:
        """Waits for flow control, which is the network and the target's disk. Raises TwinsiteError, Stalled."""
        self._begun = max(self._begun, batch)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._call.write(message)
        except TimeoutError:
            self._call.cancel()
            raise Stalled("took nothing", STALL_SECONDS) from None
        self._said = self._clock.monotonic()
        if not batch:
            return
        if self._written <= self._acked:
            self._since = self._clock.monotonic()
        self._written = max(self._written, batch)

    async def acks(self) -> "AsyncIterator[Durable | CommitAcked]":
        """Up to the commit. Raises TwinsiteError, StreamEnded, UnexpectedAck."""
        while (ack := await self._call.read()) is not grpc.aio.EOF:
            self._since = self._clock.monotonic()
            if ack.WhichOneof("ack") == "durable":
                if ack.durable > self._begun:  # what is acked is let go of
                    raise UnexpectedAck(f"batch {ack.durable}")
                self._acked = ack.durable
                yield Durable(self.number, ack.durable)
            else:
                yield CommitAcked(self.number, Committed(ack.committed.cycle, ack.committed.id))
                return
        raise StreamEnded

    async def watch(self) -> None:
        """Runs beside the stream, and keeps it alive. Raises Stalled when the target has gone silent."""
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            if self._written > self._acked and self._clock.monotonic() > self._since + SILENCE_SECONDS:
                raise Stalled("answered nothing", SILENCE_SECONDS)
            if self._clock.monotonic() > self._said + ALIVE_SECONDS and not self._call.done():
                await self.write(wire.encode(wire.alive()))

    def cancel(self) -> None:
        self._call.cancel()
