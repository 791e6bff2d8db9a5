"""Runs the sender of one VM: does what it orders and tells it what happened.

An order that fails without having a reply ends this life of the sender; the next one starts from the stored state, as
after a crash.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent import index_fetch, wire
from hyperv_host_agent.causes import end_if_cancelled, first
from hyperv_host_agent.changes.base import SourcePoint, Tracking
from hyperv_host_agent.levels import Levels
from hyperv_host_agent.pacing import Pacer
from hyperv_host_agent.peer import Peer, Sending
from hyperv_host_agent.reading import BATCH_BYTES, Reader, Work
from hyperv_host_agent.replication import rates
from hyperv_host_agent.replication import state as stored
from hyperv_host_agent.replication.cycle import ID_BYTES, Committed, Kind, TargetState
from hyperv_host_agent.replication.progress import View
from hyperv_host_agent.replication.sender import Sender
from hyperv_host_agent.replication.sending import (
    AckPoint,
    Action,
    Applied,
    ApplyPending,
    AskSource,
    AskTarget,
    AskTurn,
    Assigned,
    BeginStream,
    ClosePoint,
    CloseStream,
    CommitAcked,
    DiscardPoint,
    DropPending,
    DropSpool,
    Durable,
    EndTurn,
    Event,
    FetchIndex,
    IndexFetched,
    OpenPoint,
    PartRead,
    Persist,
    PointOpened,
    PointRead,
    ReadPoint,
    ReadSlice,
    SendBatch,
    SendEnd,
    SliceRead,
    SourceFailed,
    SourceKnown,
    StorePending,
    StreamLost,
    SyncRequested,
    TargetFailed,
    TargetKnown,
    TurnGiven,
    Wake,
    Woke,
)
from hyperv_host_agent.spool import Memory, Spool
from hyperv_host_agent.store.base import StoreDamaged
from hyperv_host_agent.turns import Turns
from twinsite import files, retry
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.errors import Failed, Internal, InvalidInput, Precondition, TwinsiteError, Unreachable
from twinsite.extents import CLUSTER

_log = structlog.get_logger()


STATE_FILE: Final = "sender.json"
ACKED_BATCHES: Final = 16  # at most 3 MiB each: less than the sender's window, which would close otherwise
ACKED_SECONDS: Final = 1.0
CAPPED_BYTES: Final = 4 * CLUSTER  # the smallest unit of reading under a rate cap


_Outgoing = asyncio.Queue[tuple[int, bytes | None]]  # batches by number, None: it is in the spool; then the end


class StateUnwritable(Failed):
    public = "the agent's state in {error.folder} cannot be written: {error.reason}"
    still_works = "the VM runs on and its changes stay tracked; points at the target are untouched"
    next_step = "free space there or look at that disk's health; replication goes on by itself"

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder, self.reason = folder, reason


class PointGone(Unreachable):
    public = "the open point of VM {error.vm_id} is gone"
    still_works = "its changes are in the next cycle"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


@dataclass(frozen=True, slots=True)
class Order:
    """What an assignment asks of a transfer; all of it may change while it runs."""

    assigned: Assigned
    grant: types_pb2.SignedDocument
    policy: types_pb2.Policy


@dataclass(frozen=True, slots=True)
class Means:
    """What a transfer works with."""

    vm_id: str
    folder: Path  # of this VM's state
    reader: Reader
    peer: Peer
    pacer: Pacer
    describe: Callable[[], types_pb2.Machine]  # blocking
    turns: Turns  # of all VMs of the host
    spool_folder: Path
    spool_memory: Memory
    clock: Clock
    on_view: Callable[[View], None]
    on_failure: Callable[[TwinsiteError], None]


@dataclass(slots=True)
class Seen:
    """What a seed of the VM has to know of its transfer."""

    asked: bool = False  # the target, since this process began
    seed: bytes = b""  # that it waits for
    opened: int = 0  # number of the newest cycle whose instant may have passed

    def target(self, state: TargetState) -> None:
        self.asked, self.seed = True, state.seed
        self.cycle(state.committed.number if state.committed else 0)

    def cycle(self, number: int) -> None:
        self.opened = max(self.opened, number)

    def opens(self, number: int) -> None:
        """A point of this number is being opened."""
        self.opened = max(self.opened, number) if number > 1 else 1  # 1: a new chain, whose numbers start over


class Transfer:
    """One VM's, from `run` to its cancellation. On the event loop; what blocks is in threads."""

    def __init__(self, means: Means, order: Order) -> None:
        self._means = means
        self._order = order
        self._life: _Life | None = None
        self.seen = Seen()
        self._levels = Levels(means.reader.threads, means.clock)
        self._follow(order.policy)

    @property
    def reader(self) -> Reader:
        return self._means.reader

    async def run(self) -> None:
        """Ends only when it is cancelled."""
        try:
            waits = retry.delays(base=0.5, cap=15.0)
            while True:
                try:
                    await self._live()
                except* Exception as group:  # noqa: BLE001  # the top of a task; other VMs go on
                    self._failed(group)
                end_if_cancelled()
                await self._means.clock.sleep(next(waits))
        finally:
            await asyncio.shield(self._close())

    def change(self, order: Order) -> None:
        self._order = order
        self._follow(order.policy)
        if self._life is not None:
            self._life.put(order.assigned)

    def _follow(self, policy: types_pb2.Policy) -> None:
        self._means.reader.compression = policy.compression
        self._means.pacer.change(policy, self._means.peer.host_id)

    def sync(self) -> None:
        """Start a cycle now, whatever the schedule says."""
        if self._life is not None:
            self._life.put(SyncRequested())

    def look(self) -> None:
        """Show how it is now; what is missed grows while nothing happens."""
        if self._life is not None:
            self._life.put(Woke())

    async def _live(self) -> None:
        state = await asyncio.to_thread(self._load)
        self.seen.cycle(state.flight.header.number if state.flight else 0)
        sender = Sender(self._means.vm_id, state, lambda: os.urandom(ID_BYTES))
        async with asyncio.TaskGroup() as group:
            life = self._life = _Life(self._means, sender, group, self._levels, lambda: self._order, self.seen)
            try:
                await life.run()
            finally:
                self._life = None
                await asyncio.shield(life.release())

    def _load(self) -> stored.SenderState:
        try:
            return stored.load((self._means.folder / STATE_FILE).read_bytes())
        except FileNotFoundError:
            return stored.SenderState()
        except (ValueError, KeyError, TypeError) as error:
            # Nothing is lost by starting from nothing: the target is asked, and everything is looked at.
            _log.warning("sender_state_unreadable", vm_id=self._means.vm_id, reason=str(error))
            return stored.SenderState()

    def _failed(self, group: BaseExceptionGroup[Exception]) -> None:
        error = first(group)
        if isinstance(error, OSError):
            error = StateUnwritable(self._means.folder, error.strerror or str(error))
        elif not isinstance(error, TwinsiteError):
            _log.error("transfer_broke", vm_id=self._means.vm_id, exc_info=group)
            error = Internal()
        _log.warning("transfer_interrupted", vm_id=self._means.vm_id, reason=str(error), cause=error.text("cause"))
        self._means.on_failure(error)

    async def _close(self) -> None:
        self._means.pacer.close()
        try:
            await self._means.reader.close()
        except Exception:  # noqa: BLE001  # the top of a task; what is not durable now, the next life does without
            _log.exception("reader_not_closed", vm_id=self._means.vm_id)
        await self._means.peer.close()


class _Life:
    """One sender, until an order without a reply fails."""

    def __init__(
        self,
        means: Means,
        sender: Sender,
        group: asyncio.TaskGroup,
        levels: Levels,
        order: Callable[[], Order],
        seen: Seen,
    ) -> None:
        self._means = means
        self._seen = seen
        self._reader = means.reader
        self._source = means.reader.source
        self._sender = sender
        self._group = group
        self._levels = levels
        self._turn = means.turns.of(means.vm_id, lambda turn: self.put(TurnGiven(turn)))
        self._ended = 0.0  # when the last message was taken by the network
        self._order = order
        self._events: deque[Event] = deque()
        self._some = asyncio.Event()
        self._handed = 0  # newest batch handed to the stream
        self._acked = 0, 0, 0.0  # stream, batch and time of the last ack that was handed on
        self._timer: asyncio.Task[None] | None = None
        self._point: SourcePoint | None = None
        self._spool: Spool | None = None
        self._slices: dict[int, bytes] = {}  # read and not yet ordered to be sent
        self._stream: asyncio.Task[None] | None = None
        self._outgoing: _Outgoing = asyncio.Queue()

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._some.set()

    async def run(self) -> None:
        self.put(self._order().assigned)
        while True:
            while not self._events:
                self._some.clear()
                await self._some.wait()
            event = self._events.popleft()
            if isinstance(event, Durable):
                if not self._worth_a_checkpoint(event):
                    continue
                if self._spool is not None:
                    await self._reader.run(self._spool.release, event.sequence)
            for action in self._sender.handle(event, self._means.clock.monotonic()):
                await self._act(action)
            self._means.on_view(self._sender.view)

    def _worth_a_checkpoint(self, ack: Durable) -> bool:
        """Each ack that is handed on costs the source two syncs of its own; a window has room for several acks."""
        now = self._means.clock.monotonic()
        stream, sequence, at = self._acked
        more = ack.sequence < self._handed  # acks will come
        if more and stream == ack.stream and ack.sequence < sequence + ACKED_BATCHES and now < at + ACKED_SECONDS:
            return False
        self._acked = ack.stream, ack.sequence, now
        return True

    async def release(self) -> None:
        self._turn.close()
        if self._stream is not None:
            self._stream.cancel()
        await self._reader.stop()
        await self._close_point()
        await self._drop_spool()

    async def _act(self, action: Action) -> None:
        match action:
            case Wake(at):
                self._arm(at)
            case Persist(state):
                await asyncio.to_thread(files.replace, self._means.folder / STATE_FILE, stored.dump(state))
            case AskTarget():
                self._group.create_task(self._ask_target())
            case AskTurn():
                self._turn.ask(action)
            case EndTurn():
                self._turn.end()
            case FetchIndex(committed):
                self._group.create_task(self._fetch(committed))
            case AskSource():
                self._group.create_task(self._ask_source())
            case AckPoint(committed):
                await self._reader.run(self._source.ack, committed.number, committed.id)
            case DiscardPoint():
                await self._close_point()
                await self._reader.run(self._source.discard)
            case OpenPoint():
                self._seen.opens(action.number)
                self._group.create_task(self._open_point(action))
            case ClosePoint():
                await self._close_point()
            case ReadPoint():
                self._group.create_task(self._read_point(action))
            case ReadSlice():
                self._group.create_task(self._read_slice(action))
            case StorePending(id_, through):
                await self._reader.run(self._reader.pending.store, id_, through)
            case ApplyPending():
                self._group.create_task(self._apply(action))
            case DropPending():
                await self._reader.run(self._reader.pending.drop)
            case DropSpool():
                await self._drop_spool()
            case BeginStream():
                self._close_stream()
                self._outgoing = asyncio.Queue()
                self._stream = self._group.create_task(self._send(action, self._outgoing))
            case SendBatch(_, sequence):
                message = self._slices.pop(sequence, None)
                if message is None and self._spool is not None:
                    message = self._spool.held(sequence)
                self._outgoing.put_nowait((sequence, message))
                self._handed = sequence
            case SendEnd(_, batches, digest):
                self._outgoing.put_nowait((batches + 1, wire.encode(wire.end(batches, digest))))
            case CloseStream():
                self._close_stream()

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._group.create_task(self._wake(at))

    async def _wake(self, at: float) -> None:
        await self._means.clock.sleep(max(0.0, at - self._means.clock.monotonic()))
        self.put(Woke())

    async def _ask_target(self) -> None:
        try:
            machine = await asyncio.to_thread(self._means.describe)
            state = await self._means.peer.ask(self._order().grant, machine)
            self._seen.target(state)
            self.put(TargetKnown(state))
        except TwinsiteError as error:
            self.put(TargetFailed(error))

    async def _fetch(self, committed: Committed) -> None:
        try:
            present = await self._reader.run(self._source.disks)
            async with contextlib.aclosing(self._fingerprints(committed)) as chunks:
                disks = await index_fetch.fetch(chunks, committed, self._reader, present)
        except TwinsiteError as error:
            _log.warning("index_not_fetched", vm_id=self._means.vm_id, reason=str(error), cause=error.text("cause"))
            if isinstance(error, Precondition | InvalidInput) or error.code == StoreDamaged.code:
                self.put(IndexFetched(sound=False))
            else:  # worth another try
                self.put(TargetFailed(error))
        else:
            _log.info("index_fetched", vm_id=self._means.vm_id, cycle=committed.number)
            self.put(IndexFetched(sound=True, disks=disks))

    async def _fingerprints(self, committed: Committed) -> index_fetch.Chunks:
        """What comes counts against the caps as what goes."""
        async with contextlib.aclosing(self._means.peer.fingerprints(committed, self._order().grant)) as chunks:
            async for chunk in chunks:
                await self._means.pacer.through(len(chunk.fingerprints))
                yield chunk

    async def _ask_source(self) -> None:
        try:
            await self._reader.run(self._source.start)
            anchor, _ = await self._reader.run(self._source.status)
            disks = await self._reader.run(self._source.disks)
        except TwinsiteError as error:
            self.put(SourceFailed(error))
        else:
            named = Committed(anchor.cycle, anchor.id) if anchor is not None else None
            self.put(SourceKnown(named, disks, index=self._reader.index.base))

    async def _open_point(self, order: OpenPoint) -> None:
        try:
            point = await self._reader.run(
                self._source.open_point, order.number, order.id, consistency=order.consistency
            )
        except TwinsiteError as error:
            self.put(SourceFailed(error))
        else:
            self._point = point
            whole = point.tracking is Tracking.OK
            self.put(
                PointOpened(point.instant, point.consistency, point.disks, whole, point.machine, doubt=point.doubt)
            )

    async def _close_point(self) -> None:
        if self._point is not None:
            point, self._point = self._point, None
            await self._reader.run(point.close)

    async def _read_point(self, order: ReadPoint) -> None:
        await self._drop_spool()
        spool = self._spool = Spool(self._means.spool_folder, self._means.spool_memory)
        self._pace(beside=False)
        started = self._means.clock.monotonic()
        try:
            if self._point is None:
                raise PointGone(self._means.vm_id)
            work = await self._reader.point(self._point, order, spool, lambda batch: self.put(PartRead((batch,))))
        except TwinsiteError as error:
            await self._drop_spool()
            await self._close_point()
            self.put(SourceFailed(error))
        else:
            self._packed(work, beside=False)
            # The threads did both at a time: each gets its share of what passed.
            share = (self._means.clock.monotonic() - started) / max(1e-9, work.read_seconds + work.pack_seconds)
            self.put(PointRead((), work.read_seconds * share, work.pack_seconds * share))
        finally:
            if self._spool is not spool:  # it was dropped meanwhile: what came since is let go of too
                await self._reader.run(spool.close)

    async def _read_slice(self, order: ReadSlice) -> None:
        self._pace(beside=True)
        try:
            built, position, work = await self._reader.slice(order)
        except TwinsiteError as error:
            await self._reader.stop()
            self.put(SourceFailed(error, order.stream))
        else:
            if built is not None:
                self._slices[order.sequence] = built.message
            ready = built.ready if built is not None else None
            self.put(SliceRead(order.stream, ready, position, work.read_seconds, work.pack_seconds))
            self._packed(work, beside=True)
            self._levels.look(beside=True)

    def _packed(self, work: Work, *, beside: bool) -> None:
        if self._reader.compression:
            self._levels.packed(work, beside=beside)

    def _pace(self, *, beside: bool) -> None:
        self._reader.level = self._levels.level(beside=beside)
        self._reader.batch_bytes = rates.message_bytes(self._means.pacer.rate, BATCH_BYTES, CAPPED_BYTES)

    async def _apply(self, order: ApplyPending) -> None:
        sound = await self._reader.run(
            self._reader.pending.apply, self._reader.index, order.header, complete=order.complete
        )
        self.put(Applied(sound))

    async def _drop_spool(self) -> None:
        if self._spool is not None:
            spool, self._spool = self._spool, None
            await self._reader.run(spool.close)

    def _close_stream(self) -> None:
        self._slices.clear()
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _send(self, order: BeginStream, outgoing: _Outgoing) -> None:
        copy = order.header.kind is not Kind.DELTA
        capped = self._means.pacer.seconds
        try:
            sending = await self._means.peer.send(order.stream, order.header, order.resume_after, self._order().grant)
            try:
                async with asyncio.TaskGroup() as group:
                    beside = [
                        group.create_task(self._write(sending, outgoing, copy=copy)),
                        group.create_task(sending.watch()),
                    ]
                    async for ack in sending.acks():
                        if isinstance(ack, CommitAcked):
                            self._levels.look(beside=copy)
                            ack = replace(  # noqa: PLW2901
                                ack,
                                cap_seconds=self._means.pacer.seconds - capped,
                                target_seconds=self._means.clock.monotonic() - self._ended,
                            )
                        self.put(ack)
                    for task in beside:
                        task.cancel()
            finally:
                sending.cancel()
        except* TwinsiteError as errors:
            self.put(StreamLost(order.stream, typed(errors)))

    async def _write(self, sending: Sending, outgoing: _Outgoing, *, copy: bool) -> None:
        while True:
            sequence, message = await outgoing.get()
            if message is None:
                if self._spool is None:
                    return  # the stream is about to be closed
                message = await self._reader.run(self._spool.get, sequence)
            started = self._means.clock.monotonic()
            await self._means.pacer.through(len(message))
            await sending.write(message, sequence)
            self._turn.moved(len(message))
            self._ended = self._means.clock.monotonic()
            if self._reader.compression:
                self._levels.held_up(self._ended - started, beside=copy)


def typed(group: BaseExceptionGroup[TwinsiteError]) -> TwinsiteError:
    error = first(group)
    return error if isinstance(error, TwinsiteError) else Internal()
