"""`Replication` at the target: who may send, and the way of a message from the socket into the store.

Nothing is allocated for a caller before its grant is checked. While one message is stored, the next is read; the
queue between is short, so a slow disk is felt at the source through flow control.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final

import grpc

from hyperv_host_agent import wire
from hyperv_host_agent.fingerprint_feed import Feed
from hyperv_host_agent.reception import Reception, Receptions, Stream
from hyperv_host_agent.replication.cycle import PROTOCOL, Committed, DiskGeometry
from hyperv_host_agent.replication.receiving import (
    AckCommitted,
    AckDurable,
    BatchReceived,
    Began,
    EndReceived,
    Event,
    Granted,
    Refuse,
)
from twinsite import grants
from twinsite.access import Rule, Table, caller
from twinsite.api.host.v1 import replication_pb2 as pb
from twinsite.api.types.v1.types_pb2 import SignedDocument
from twinsite.clock import Clock
from twinsite.errors import Aborted, InvalidInput, NotFound, Precondition
from twinsite.grants import Grant, GrantRefused
from twinsite.identity import Identity
from twinsite.server import Mount

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Replication"]
TABLE: Final[Table] = {
    f"/{SERVICE.full_name}/{name}": Rule(frozenset({"host"})) for name in ("Open", "Send", "Fingerprints")
}
FingerprintsContext = grpc.aio.ServicerContext[pb.FingerprintsRequest, pb.FingerprintsChunk]
Context = grpc.aio.ServicerContext[Any, pb.Ack]  # what is read is bytes, or EOF
_WANTED: Final = 4096  # runs told in one answer; the next cycle's answer has the others
_AHEAD: Final = 2  # messages read and not yet stored: they come in while the disk is synced


class OtherProtocol(InvalidInput):
    public = "the peer speaks version {error.theirs} of the replication protocol, this host version {error.ours}"
    still_works = "nothing was written; points that exist are untouched"
    next_step = "update the older of the two host agents"

    def __init__(self, theirs: int) -> None:
        self.theirs, self.ours = theirs, PROTOCOL


class NotTarget(Precondition):
    public = "this host holds no replica of VM {error.vm_id}"
    still_works = "nothing was written"
    next_step = "twinsite vm show: the coordinator prepares the replica first"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class SourceSilent(Aborted):
    public = "the source sent nothing for {error.seconds:.0f} s"
    still_works = "what was acked as durable stays; the source goes on from there"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Replication:
    """The servicer. `signing_keys` are asked anew for each call: they may change with a renewal."""

    def __init__(
        self,
        identity: Identity,
        receptions: Receptions,
        clock: Clock,
        signing_keys: Callable[[], Mapping[str, bytes]],
        *,
        silent_seconds: float,
    ) -> None:
        """`silent_seconds`: after so long without a message a stream is given up."""
        self._identity = identity
        self._receptions = receptions
        self._clock = clock
        self._signing_keys = signing_keys
        self._silent_seconds = silent_seconds

    def mount(self) -> Mount:
        return Mount(SERVICE, self._attach)

    async def open(self, request: pb.OpenRequest, _context: object) -> pb.OpenResponse:
        """Answers an older term too: the source learns from it that it is no longer the owner."""
        if request.protocol != PROTOCOL:
            raise OtherProtocol(request.protocol)
        reception = await self._reception(self._granted(request.grant))
        state = await reception.ask()
        response = pb.OpenResponse(term=state.term)
        if state.committed is not None:
            response.committed_cycle = state.committed.number
            response.committed_id = state.committed.id
        if state.unfinished is not None:
            response.unfinished.cycle = state.unfinished.number
            response.unfinished.id = state.unfinished.id
            response.unfinished.durable = state.unfinished.durable
            response.unfinished.digest = state.unfinished.digest
        # What a scrub or an import changed meanwhile, the receiver was not told.
        held = reception.held
        present = await held.run(held.replica.state)
        response.wanted.extend(
            pb.Wanted(disk_id=wanted.disk, start=wanted.run.start, count=wanted.run.count)
            for wanted in present.wanted[:_WANTED]
        )
        response.awaiting_seed = present.awaiting_seed
        response.seed = present.seed
        response.seed_after = present.seed_after
        return response

    async def fingerprints(self, request: pb.FingerprintsRequest, context: FingerprintsContext) -> None:
        """What the newest cycle holds, to a source that lost or doubts its own index."""
        grant = self._granted(request.grant)
        reception = await self._reception(grant)
        feed = Feed(reception.held, Committed(request.cycle, request.id), grant.term)
        async with aclosing(feed.chunks()) as chunks:
            async for chunk in chunks:
                await context.write(chunk)

    async def send(self, _requests: object, context: Context) -> None:
        """One cycle; messages come in as bytes (see `wire`)."""
        first = await context.read()
        if not isinstance(first, bytes):
            return  # the peer closed without a word
        message = wire.decode(first)
        if message.header.WhichOneof("frame") != "begin":
            raise wire.BadMessage("a stream starts with a begin frame")
        frame = message.header.begin
        grant = self._granted(frame.grant)
        if frame.machine.id != grant.vm_id:
            raise wire.BadMessage("it describes another VM than its grant")
        reception = await self._reception(grant)
        stream = reception.stream()
        try:
            await reception.tell(
                Began(
                    stream.number,
                    wire.cycle_of(frame, grant.vm_id),
                    frame.resume_after,
                    Granted(grant.term, tuple(DiskGeometry(disk, size) for disk, size in grant.disks)),
                )
            )
            await _receive(stream, frame.resume_after, context, self._silent_seconds)
        finally:
            await asyncio.shield(reception.closed(stream.number))

    def _granted(self, document: SignedDocument) -> Grant:
        """The grant, if it lets the caller send that VM here. Raises GrantRefused."""
        source = caller().identity
        grant = grants.verify(document, self._signing_keys(), self._clock.now())
        problem = (
            (grant.vault != self._identity.vault and "it is of another vault")
            or (grant.mode != "https" and f"it is for mode {grant.mode[:20]!a}, this is https")
            or (grant.target_host != self._identity.id and "it names another target host")
            or ((source is None or grant.source_host != source.id) and "it names another source host than the caller")
        )
        if problem:
            raise GrantRefused(problem)
        return grant

    async def _reception(self, grant: Grant) -> Reception:
        try:
            return await self._receptions.get(grant.vm_id)
        except NotFound:
            raise NotTarget(grant.vm_id) from None

    def _attach(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE.full_name,
                    {
                        "Open": grpc.unary_unary_rpc_method_handler(
                            self.open,
                            request_deserializer=pb.OpenRequest.FromString,
                            response_serializer=pb.OpenResponse.SerializeToString,
                        ),
                        "Fingerprints": grpc.unary_stream_rpc_method_handler(
                            self.fingerprints,
                            request_deserializer=pb.FingerprintsRequest.FromString,
                            response_serializer=pb.FingerprintsChunk.SerializeToString,
                        ),
                        # No deserializer: a batch is not copied through protobuf.
                        "Send": grpc.stream_stream_rpc_method_handler(
                            self.send,
                            response_serializer=pb.Ack.SerializeToString,
                        ),
                    },
                ),
            )
        )


async def _receive(stream: Stream, resumed: int, context: Context, silent_seconds: float) -> None:
    """From after batch `resumed` until the cycle is committed, refused, or the source goes away."""
    arrived: asyncio.Queue[Event] = asyncio.Queue(_AHEAD)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_read(stream.number, resumed, context, arrived, silent_seconds)),
            group.create_task(_store(stream, arrived)),
            group.create_task(stream.reception.tick()),
        ]
        await _reply(stream, context)
        for task in tasks:
            task.cancel()


async def _read(
    number: int, sequence: int, context: Context, arrived: asyncio.Queue[Event], silent_seconds: float
) -> None:
    ended = False
    # After the end nothing has to come.
    while isinstance(raw := await _message(context, None if ended else silent_seconds), bytes):
        message = wire.decode(raw)
        match message.header.WhichOneof("frame"):
            case "batch":
                sequence += 1
                await arrived.put(BatchReceived(number, wire.batch_of(message, sequence), (message.body,)))
            case "end":
                ended = True
                await arrived.put(EndReceived(number, message.header.end.batches, message.header.end.digest))
            case "alive":
                pass
            case other:
                raise wire.BadMessage(f"a {other} frame inside a cycle")
    if not ended:
        raise wire.BadMessage("the stream ends inside a cycle")


async def _message(context: Context, seconds: float | None) -> object:
    """The next one, or what ends them; None: however long it takes. Raises SourceSilent."""
    try:
        async with asyncio.timeout(seconds):
            return await context.read()
    except TimeoutError:
        raise SourceSilent(seconds or 0.0) from None


async def _store(stream: Stream, arrived: asyncio.Queue[Event]) -> None:
    while True:
        events = [await arrived.get()]
        while not arrived.empty():
            events.append(arrived.get_nowait())
        await stream.reception.tell(*events)


async def _reply(stream: Stream, context: Context) -> None:
    while True:
        match await stream.replies.get():
            case AckDurable(sequence=sequence):
                await context.write(pb.Ack(durable=sequence))
            case AckCommitted(committed=committed):
                await context.write(pb.Ack(committed=pb.Committed(cycle=committed.number, id=committed.id)))
                return
            case Refuse(error=error):
                raise error
