"""The source's half of a replication: one per protected VM. Events and actions are in `sending`."""

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from hyperv_host_agent.replication import resync, schedule
from hyperv_host_agent.replication.cycle import Committed, CycleHeader, Kind, TargetState
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.replication.sending import (
    AckPoint,
    Action,
    Applied,
    ApplyPending,
    AskSource,
    AskTarget,
    Assigned,
    BeginStream,
    ClosePoint,
    CloseStream,
    CommitAcked,
    DiscardPoint,
    DropPending,
    DropSpool,
    Durable,
    Event,
    OpenPoint,
    Persist,
    PointOpened,
    PointRead,
    ReadPoint,
    ReadSlice,
    Ready,
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
    Wake,
    Woke,
)
from hyperv_host_agent.replication.state import Checkpoint, Flight, Position, SenderState
from twinsite.errors import Failed, TwinsiteError
from twinsite.extents import CLUSTER

_NEVER: Final = float("-inf")
WINDOW_BYTES: Final = 64 << 20  # sent and not durable at the target; what a cut link may cost


class UnexpectedAck(Failed):
    public = "the target acked cycle {error.number}, which it was not sent"
    still_works = "nothing is taken for committed; the target is asked again"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, number: int) -> None:
        self.number = number


class Phase(enum.Enum):
    """For people; the rules do not ask it."""

    WAITING = "waiting"  # for the first assignment or the first answer of the target
    INITIAL = "initial"
    REPLICATING = "replicating"
    RESYNCHRONIZING = "resynchronizing"
    PAUSED = "paused"
    BLOCKED = "blocked"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class View:
    """How the replication does. Sums are over this process's life."""

    phase: Phase
    reason: TwinsiteError | None  # why it is blocked or fenced
    term: int
    committed: Committed | None
    instant: float  # of the newest consistent cycle at the target, seconds since 1970; 0: none
    copied_bytes: int  # of a copy that runs
    copy_bytes: int
    cycles: int
    changed_bytes: int
    wire_bytes: int
    last_seconds: float  # of the last cycle, from its instant to its commit
    late: str  # which part made the last cycle late: source, compress, network, target; empty: it was not


class _Waiting(enum.Enum):
    """For the one reply everything else waits for."""

    TARGET = enum.auto()
    SOURCE = enum.auto()
    POINT = enum.auto()
    READ = enum.auto()
    APPLIED = enum.auto()


@dataclass(slots=True)
class _Stream:
    """A stream that runs: what was handed to it, and what came back."""

    number: int
    sent: int  # sequence of the last batch handed over
    sent_digest: bytes
    in_flight: deque[tuple[Ready, Position]] = field(default_factory=deque)
    bytes: int = 0  # of in_flight
    position: Position = field(default_factory=Position)  # of a copy: where the next slice starts
    reading: bool = False  # of a copy: a slice is being read
    ended: bool = False


class Sender:
    """Decides what a source does. One outstanding question at a time; the stream's acks come beside it."""

    def __init__(
        self, vm_id: str, state: SenderState, new_id: Callable[[], bytes], *, window: int = WINDOW_BYTES
    ) -> None:
        self._window = window
        self._vm_id = vm_id
        self._state = state
        self._new_id = new_id
        self._now = 0.0
        self._assigned: Assigned | None = None
        self._waiting: _Waiting | None = None
        self._target: TargetState | None = None  # None: ask
        self._source: SourceKnown | None = None  # None: ask
        self._confirmed = False  # the source was told once what is committed
        self._clean = False  # no point of an earlier process waits in the source
        self._flight = state.flight
        self._spool: tuple[Ready, ...] | None = None
        self._durable = 0  # batches of the spool that were acked and may be gone from it
        self._plan: resync.Plan | None = None
        self._point: tuple[int, bytes] | None = None  # number and id of the point being opened
        self._stream: _Stream | None = None
        self._streams = 0
        self._due = 0.0
        self._wanted = False
        self._not_before = 0.0
        self._failures = 0
        self._reason: TwinsiteError | None = None
        self._fenced = False
        self._opened = _NEVER  # when the cycle's point was ordered
        self._read = self._ended = 0.0  # and its later phases ended, for its timing
        self._source_seconds = self._compress_seconds = 0.0
        self._timing = schedule.Timing()
        self._cycles = self._changed = self._wire = 0

    @property
    def state(self) -> SenderState:
        """As last ordered to be stored."""
        return self._state

    @property
    def view(self) -> View:
        copied, total = self._copied()
        frequency = self._assigned.frequency if self._assigned else 0.0
        return View(
            phase=self._phase(),
            reason=self._reason,
            term=self._state.term,
            committed=self._state.committed,
            instant=self._state.instant,
            copied_bytes=copied,
            copy_bytes=total,
            cycles=self._cycles,
            changed_bytes=self._changed,
            wire_bytes=self._wire,
            last_seconds=self._timing.total,
            late=self._timing.late(frequency),
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        self._now = now
        return [*self._take(event), *self._next()]

    def _take(self, event: Event) -> list[Action]:
        match event:
            case Assigned():
                return self._take_assignment(event)
            case Woke():
                return []
            case SyncRequested():
                self._wanted = True
                self._not_before = 0.0
                return []
            case TargetKnown(state):
                self._waiting = None
                self._target = state
                return []
            case TargetFailed(error):
                self._waiting = None
                return self._fail(error)
            case SourceKnown():
                self._waiting = None
                self._source = event
                return []
            case SourceFailed():
                return self._take_source_failure(event)
            case PointOpened():
                return self._take_point(event)
            case PointRead():
                return self._take_spool(event)
            case Applied(sound):
                return self._take_applied(sound=sound)
            case SliceRead() | Durable() | CommitAcked() | StreamLost():
                stream = self._stream
                # Anything of a stream that is over says nothing about the one that runs.
                return self._take_in_stream(stream, event) if stream and event.stream == stream.number else []

    # ------------------------------------------------------------------------------------- what comes next

    def _next(self) -> list[Action]:
        assigned, flight = self._assigned, self._flight
        if assigned is None or self._fenced or self._waiting is not None:
            return []
        if self._stream is not None:
            return self._pump(self._stream)
        if assigned.paused and (flight is None or self._spool is None):
            return []
        if self._now < self._not_before:
            return [Wake(self._not_before)]
        if flight is None and not self._wanted and self._now < self._due:
            return [Wake(self._due)]
        if self._target is None:
            self._waiting = _Waiting.TARGET
            return [AskTarget()]
        if self._target.term > self._state.term:
            return self._fence(self._target.term)
        if flight is not None and (actions := self._settle(flight, self._target)) is not None:
            return actions
        return self._ask_source() or self._open(self._target)

    def _settle(self, flight: Flight, target: TargetState) -> list[Action] | None:
        """Of a cycle on its way, without a stream. None: there is none any more, the next one may start."""
        fate = resync.fate(flight, target, None if self._spool is None else self._durable)
        if fate is resync.Fate.ARRIVED:
            return self._arrived(flight)
        if fate is resync.Fate.GIVEN_UP:
            return [*self._give_up(), *self._next()]
        if flight.checkpoint is not None:
            if actions := self._ask_source():
                return actions
            if self._source and not resync.copyable(flight, self._source.disks, self._source.index):
                return [*self._give_up(), *self._next()]
            return self._begin(flight, flight.checkpoint)
        return self._begin(flight, Checkpoint(min(resync.held(flight, target), len(self._spool or ()))))

    def _ask_source(self) -> list[Action]:
        if self._source is not None:
            return []
        self._waiting = _Waiting.SOURCE
        return [AskSource()]

    def _open(self, target: TargetState) -> list[Action]:
        """Start the next cycle; target and source are known, nothing is on its way."""
        source, assigned = self._source, self._assigned
        if source is None or assigned is None:
            return []
        state = resync.adopt(self._state, target)
        if state.trusted and source.index != state.committed:
            # Lost; or moved on by a crash before that was stored, at a target that then fell back.
            state = replace(state, trusted=False)
        actions = self._persist(state) if state != self._state else []
        if state.committed and source.anchor != state.committed and not self._confirmed:
            # The process may have ended between storing the commit and telling the source.
            self._confirmed = True
            self._source = None
            return [*actions, AckPoint(state.committed), *self._ask_source()]
        if not self._clean:
            self._clean = True
            actions += [DropPending(), DiscardPoint()]
        number = state.committed.number + 1 if state.committed else 1
        self._point = number, self._new_id()
        self._waiting = _Waiting.POINT
        self._opened = self._now
        self._wanted = False  # now, not when it is open: a wish that comes in between is for a later instant
        consistency = "application" if assigned.application_consistent else "crash"
        return [*actions, OpenPoint(*self._point, consistency)]

    # ---------------------------------------------------------------------------------------------- source

    def _take_point(self, event: PointOpened) -> list[Action]:
        self._waiting = None
        source, parent = self._source, self._state.committed
        if self._point is None or source is None or self._fenced or (self._assigned and self._assigned.paused):
            return [ClosePoint(), DiscardPoint()]
        plan = resync.plan(self._state, source.anchor, whole=event.whole)
        header = CycleHeader(
            vm_id=self._vm_id,
            id=self._point[1],
            number=self._point[0],
            parent=parent.number if parent else 0,
            term=self._state.term,
            kind=plan.kind,
            instant=event.instant,
            consistency=event.consistency if plan.kind is Kind.DELTA else "none",
            disks=event.disks,
            machine=event.machine,
            parent_id=parent.id if parent else b"",
        )
        if plan.kind is Kind.DELTA:
            self._flight = Flight(header, None, plan.suppress)
            self._waiting = _Waiting.READ
            return [ReadPoint(header, plan.suppress, resync.added(self._state, event.disks))]
        # A copy is not read from the point, which would stay open for hours. The point is its anchor: whatever is
        # written from here on, and read torn or too early by the copy, is in the cycle that follows it.
        flight = Flight(header, Checkpoint(), plan.suppress)
        self._flight = flight
        self._source_seconds = self._now - self._opened
        self._compress_seconds = 0.0
        self._read = self._now
        return [
            ClosePoint(),
            DropPending(),
            *self._persist(replace(self._state, flight=flight)),
            *self._begin(flight, Checkpoint()),
        ]

    def _take_spool(self, event: PointRead) -> list[Action]:
        self._waiting = None
        flight = self._flight
        if flight is None or self._fenced:
            return [ClosePoint(), DropSpool()]
        self._spool = event.batches
        self._durable = 0
        self._read = self._now
        self._compress_seconds = event.compress_seconds
        self._source_seconds = max(0.0, self._now - self._opened - event.compress_seconds)
        return [ClosePoint(), *self._begin(flight, Checkpoint())]

    def _take_source_failure(self, event: SourceFailed) -> list[Action]:
        waiting = self._waiting
        if event.stream:
            stream = self._stream
            if stream is None or event.stream != stream.number:
                return []
            return [*self._close(), *self._fail(event.error)]
        self._waiting = None
        actions = self._fail(event.error)
        if waiting is _Waiting.POINT:
            actions.append(DiscardPoint())
        elif waiting is _Waiting.READ:
            actions += self._give_up()
        return actions

    # ---------------------------------------------------------------------------------------------- stream

    def _begin(self, flight: Flight, after: Checkpoint) -> list[Action]:
        term = self._state.term
        if flight.header.term != term:  # it rose while the cycle waited; this side stayed the owner
            flight = self._flight = replace(flight, header=replace(flight.header, term=term))
        digest = after.digest
        if self._spool is not None and after.sequence:
            digest = self._spool[after.sequence - 1].digest
        self._streams += 1
        self._stream = _Stream(self._streams, after.sequence, digest, position=after.position)
        return [BeginStream(self._streams, flight.header, after.sequence), *self._pump(self._stream)]

    def _pump(self, stream: _Stream) -> list[Action]:
        """Hand over what the window takes, then the end."""
        flight = self._flight
        if flight is None or stream.ended:
            return []
        if self._spool is None:
            return self._pump_copy(stream, flight)
        actions: list[Action] = []
        while stream.sent < len(self._spool) and stream.bytes < self._window:
            actions += self._send(stream, self._spool[stream.sent], Position())
        if stream.sent == len(self._spool):
            actions += self._finish(stream, flight)
        return actions

    def _pump_copy(self, stream: _Stream, flight: Flight) -> list[Action]:
        if stream.reading:
            return []
        if stream.position.disk >= len(flight.header.disks):
            # Its end is sent once all of it is durable at both ends. From then on a copy is what it is: going on after
            # a cut reads nothing again, and no two attempts at its end can differ.
            if stream.in_flight:
                return []
            return self._finish(
                stream, replace(flight, checkpoint=Checkpoint(stream.sent, stream.sent_digest, stream.position))
            )
        if stream.bytes >= self._window:
            return []
        stream.reading = True
        return [
            ReadSlice(
                stream.number, flight.header, stream.sent + 1, stream.sent_digest, stream.position, flight.suppressed
            )
        ]

    def _send(self, stream: _Stream, batch: Ready, position: Position) -> list[Action]:
        stream.sent, stream.sent_digest = batch.sequence, batch.digest
        stream.in_flight.append((batch, position))
        stream.bytes += batch.wire_bytes
        self._wire += batch.wire_bytes
        self._changed += batch.changed_bytes
        return [SendBatch(stream.number, batch.sequence)]

    def _finish(self, stream: _Stream, flight: Flight) -> list[Action]:
        """Everything was handed over: from `end` on the target may commit, so its fingerprints are durable first."""
        stream.ended = True
        self._ended = self._now
        actions: list[Action] = [StorePending(flight.header.id, stream.sent)]
        if not flight.ended:
            flight = self._flight = replace(flight, ended=True)
            actions += self._persist(replace(self._state, flight=flight))
        return [*actions, SendEnd(stream.number, stream.sent, stream.sent_digest)]

    def _take_in_stream(self, stream: _Stream, event: SliceRead | Durable | CommitAcked | StreamLost) -> list[Action]:
        match event:
            case SliceRead(_, batch, position):
                stream.reading = False
                stream.position = position
                return self._send(stream, batch, position) if batch else []
            case Durable(_, sequence):
                return self._take_durable(stream, sequence)
            case CommitAcked(_, committed):
                flight = self._flight
                if flight is None or committed != flight.named or not stream.ended:
                    return [*self._close(), *self._fail(UnexpectedAck(committed.number))]
                self._stream = None
                return self._arrived(flight)
            case StreamLost(_, error):
                self._stream = None
                return self._fail(error)

    def _take_durable(self, stream: _Stream, sequence: int) -> list[Action]:
        flight = self._flight
        checkpoint = None
        while stream.in_flight and stream.in_flight[0][0].sequence <= sequence:
            batch, position = stream.in_flight.popleft()
            stream.bytes -= batch.wire_bytes
            checkpoint = Checkpoint(batch.sequence, batch.digest, position)
        if checkpoint is None or flight is None:
            return []
        self._failures = 0
        self._reason = None
        if flight.checkpoint is None:
            self._durable = checkpoint.sequence
            return []
        # Fingerprints before the checkpoint that relies on them. It never passes what the target has made durable, so
        # going on from here needs nothing of either end that a crash could have taken.
        self._flight = replace(flight, checkpoint=checkpoint)
        return [
            StorePending(flight.header.id, checkpoint.sequence),
            *self._persist(replace(self._state, flight=self._flight)),
        ]

    # ------------------------------------------------------------------------------------------ how it ends

    def _arrived(self, flight: Flight) -> list[Action]:
        if not flight.ended:
            # Only a state folder that was restored from an older copy says so: not all fingerprints are in it.
            return [*self._take_applied(sound=False), *self._next()]
        self._waiting = _Waiting.APPLIED
        return [ApplyPending(flight.header, flight.complete)]

    def _take_applied(self, *, sound: bool) -> list[Action]:
        self._waiting = None
        flight = self._flight
        if flight is None:
            return []
        header = flight.header
        consistent = header.kind is Kind.DELTA
        self._flight = self._spool = None
        self._cycles += 1
        self._failures = 0
        self._reason = None
        self._confirmed = True
        self._source = None  # ask before the next one: the anchor has moved
        self._target = TargetState(self._state.term, flight.named, None)
        if self._opened != _NEVER:  # not a cycle of an earlier life
            ended = max(self._ended, self._read)
            self._timing = schedule.Timing(
                self._source_seconds, self._compress_seconds, ended - self._read, self._now - ended
            )
        if not consistent or self._assigned is None:
            self._due = self._now  # a copy is worth nothing before its delta
        else:
            self._due = schedule.due(self._opened, self._assigned.frequency, self._now)
        state = replace(
            self._state,
            committed=flight.named,
            disks=header.disks,
            recoverable=consistent,
            instant=header.instant if consistent else self._state.instant,
            trusted=sound and (flight.complete or self._state.trusted),
            flight=None,
        )
        # The source lets go of the changes last: until the state says committed, they may be needed again.
        return [*self._persist(state), AckPoint(flight.named), DropPending(), DropSpool()]

    def _give_up(self) -> list[Action]:
        """The cycle on its way will not arrive; its changes go back to where the next one finds them."""
        self._flight = self._spool = None
        self._source = None
        self._clean = True
        stored = self._persist(replace(self._state, flight=None)) if self._state.flight else []
        return [*self._close(), *stored, DropSpool(), DropPending(), DiscardPoint()]

    def _close(self) -> list[Action]:
        if self._stream is None:
            return []
        self._stream = None
        return [CloseStream()]

    def _fail(self, error: TwinsiteError) -> list[Action]:
        """Try again later; what both ends hold is asked anew, which also finds a newer term."""
        self._reason = error
        self._failures += 1
        self._target = self._source = None
        self._not_before = self._now + schedule.backoff(
            self._failures, self._assigned.frequency if self._assigned else 1
        )
        return []

    def _fence(self, term: int) -> list[Action]:
        self._fenced = True
        self._reason = OlderTerm(self._state.term, term)
        self._spool = None
        return [*self._close(), DropSpool()]

    def _take_assignment(self, event: Assigned) -> list[Action]:
        before = self._assigned
        if event.term < self._state.term:  # an old word of the coordinator's, or a restored coordinator
            self._reason = OlderTerm(event.term, self._state.term)
            self._fenced = True
            self._spool = None
            return [*self._close(), DropSpool()]
        self._assigned = event
        if before and not self._waiting and not self._flight:
            self._due = min(self._due, schedule.due(self._opened, event.frequency, self._now))
        actions: list[Action] = []
        if event.term > self._state.term:
            actions = self._persist(replace(self._state, term=event.term))
            self._fenced = False
            self._reason = None
            self._target = self._source = None
            actions += self._close()
        if event.paused and self._flight and self._flight.checkpoint:
            actions += self._close()  # a copy may take hours; it goes on from its checkpoint
            self._target = None
        return actions

    def _persist(self, state: SenderState) -> list[Action]:
        self._state = state
        return [Persist(state)]

    # ------------------------------------------------------------------------------------------- for people

    def _phase(self) -> Phase:
        if self._fenced:
            return Phase.FENCED
        if self._assigned is None:
            return Phase.WAITING
        if self._assigned.paused:
            return Phase.PAUSED
        if self._reason is not None:
            return Phase.BLOCKED
        kind = self._flight.header.kind if self._flight else None
        if kind is Kind.INITIAL or (self._state.committed and not self._state.instant):
            return Phase.INITIAL
        if kind is Kind.RESYNC or (self._state.committed and not self._state.recoverable):
            return Phase.RESYNCHRONIZING
        return Phase.REPLICATING if self._state.committed else Phase.WAITING

    def _copied(self) -> tuple[int, int]:
        flight = self._flight
        if flight is None or flight.checkpoint is None:
            return 0, 0
        position = self._stream.position if self._stream else flight.checkpoint.position
        disks = flight.header.disks
        before = sum(disk.size for disk in disks[: position.disk])
        here = min(position.cluster * CLUSTER, disks[position.disk].size) if position.disk < len(disks) else 0
        return before + here, sum(disk.size for disk in disks)
