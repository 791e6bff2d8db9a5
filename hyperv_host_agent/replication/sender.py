"""The source's half of a replication: one per protected VM. Events and actions are in `sending`."""

import enum
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from hyperv_host_agent.replication import progress, resync
from hyperv_host_agent.replication.claim import Claim
from hyperv_host_agent.replication.cycle import CycleHeader, Kind, TargetState
from hyperv_host_agent.replication.fetch import Fetch
from hyperv_host_agent.replication.lacking import Lacking
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.replication.pace import Pace
from hyperv_host_agent.replication.progress import Progress, View
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
    FetchIndex,
    IndexFetched,
    OpenPoint,
    PartRead,
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
    TurnGiven,
    Wake,
    Woke,
)
from hyperv_host_agent.replication.state import Checkpoint, Flight, Position, SenderState
from hyperv_host_agent.replication.stream import Stream, UnexpectedAck
from twinsite.errors import TwinsiteError

_INSTANT_STEP: Final = 0.001  # seconds between two points when the clock was set back
_NEVER: Final = float("-inf")
_EVER: Final = float("inf")
WINDOW_BYTES: Final = 64 << 20  # sent and not durable at the target; what a cut link may cost
LOOK_SECONDS: Final = 20.0  # the target's answer is as old as this at most when a cycle starts: it may want clusters


class _Waiting(enum.Enum):
    """For the one reply everything else waits for."""

    TARGET = enum.auto()
    INDEX = enum.auto()
    SOURCE = enum.auto()
    POINT = enum.auto()
    READ = enum.auto()
    APPLIED = enum.auto()


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
        self._said: TargetState | None = None  # the newest answer all the same
        self._answered = _NEVER  # when the target said so
        self._source: SourceKnown | None = None  # None: ask
        self._confirmed = False  # the source was told once what is committed
        self._clean = False  # no point of an earlier process waits in the source
        self._fetch = Fetch()
        self._turn = Claim()
        self._flight = state.flight
        self._spool: list[Ready] | None = None
        self._durable = 0  # batches of the spool that were acked and may be gone from it
        self._lacking = Lacking()
        self._point: tuple[int, bytes] | None = None  # number and id of the point being opened
        self._stream: Stream | None = None
        self._streams = 0
        self._reading = False  # a slice was ordered and did not come yet, of a stream that may be over
        self._pace = Pace()
        self._progress = Progress(state.totals)
        self._note = ""
        self._reason: TwinsiteError | None = None
        self._fenced = False

    @property
    def state(self) -> SenderState:
        """As last ordered to be stored."""
        return self._state

    @property
    def view(self) -> View:
        copied, total = progress.copied(self._flight, self._stream.position if self._stream else None)
        frequency = self._assigned.frequency if self._assigned else 0.0
        done = self._progress
        return View(
            phase=progress.phase(self._assigned, self._state, self._flight, self._reason, fenced=self._fenced),
            reason=self._reason,
            term=self._state.term,
            committed=self._state.committed,
            instant=self._state.instant,
            copied_bytes=copied,
            copy_bytes=total,
            cycles=done.cycles,
            missed=self._pace.missed(self._assigned, self._now),
            failures=done.failures,
            changed_bytes=done.changed,
            content_bytes=done.content,
            wire_bytes=done.wire,
            last_seconds=done.timing.total,
            causes=done.timing,
            late=done.timing.late(frequency),
            note=self._note,
            last=done.last,
            totals=done.totals,
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
                self._pace.want()
                return []
            case TargetKnown(state):
                self._waiting = None
                self._target = self._said = state
                self._answered = self._now
                return []
            case TargetFailed(error):
                return self._take_target_failure(error)
            case IndexFetched():
                return self._take_index(event)
            case TurnGiven(number):
                self._turn.given(number, self._now)
                return []
            case SourceKnown():
                self._waiting = None
                self._source = event
                return []
            case SourceFailed():
                return self._take_source_failure(event)
            case PointOpened():
                return self._take_point(event)
            case PartRead(batches):
                return self._take_part(batches)
            case PointRead():
                return self._take_spool(event)
            case Applied(sound):
                return self._take_applied(sound=sound)
            case SliceRead() | Durable() | CommitAcked() | StreamLost():
                if isinstance(event, SliceRead):
                    self._reading = False
                stream = self._stream
                # Anything of a stream that is over says nothing about the one that runs.
                return self._take_in_stream(stream, event) if stream and event.stream == stream.number else []

    # ------------------------------------------------------------------------------------- what comes next

    def _next(self) -> list[Action]:
        assigned, flight = self._assigned, self._flight
        if assigned is None or self._fenced:
            return []
        if self._stream is not None:  # beside reading a point too
            return self._pump(self._stream)
        if self._waiting is not None:
            return []
        if assigned.paused and (flight is None or self._spool is None):
            return self._turn.end()
        first = self._state.committed is None
        if until := self._pace.wait(assigned, self._now, flying=flight is not None, first=first):
            return [*self._turn.end(), Wake(until)]  # a cycle that was given up may have had it
        if self._reading:
            return []  # two slices would be one another's end: batch and fingerprints have the same numbers
        if self._target is None or (flight is None and self._now > self._answered + LOOK_SECONDS):
            self._waiting = _Waiting.TARGET
            return [AskTarget()]
        if self._target.term > self._state.term:
            return self._fence(self._state.term, self._target.term)
        if flight is not None and (actions := self._settle(flight, self._target, assigned)) is not None:
            return actions
        return self._ask_source() or self._open(assigned, self._target)

    def _settle(self, flight: Flight, target: TargetState, assigned: Assigned) -> list[Action] | None:
        """Of a cycle on its way, without a stream. None: there is none any more, the next one may start."""
        fate = resync.fate(flight, target, None if self._spool is None else self._durable)
        if fate is resync.Fate.ARRIVED:
            return self._arrived(flight)
        if fate is resync.Fate.GIVEN_UP:
            return [*self._give_up(), *self._next()]
        copy = flight.checkpoint is not None
        refused = resync.refused(self._reason)
        if (copy or refused) and self._source is None:
            return self._ask_source()
        if self._source and not resync.lasts(flight, self._source.index, self._source.disks if refused else None):
            return [*self._give_up(), *self._next()]
        alone = copy and not flight.header.placeholder
        if (actions := self._turn.need(self._pace, assigned, self._now, copy=alone)) is not None:
            return actions
        held = Checkpoint(min(resync.held(flight, target), len(self._spool or ())))
        return self._begin(flight, flight.checkpoint or held)

    def _ask_source(self) -> list[Action]:
        if self._source is not None:
            return []
        self._waiting = _Waiting.SOURCE
        return [AskSource()]

    def _open(self, assigned: Assigned, target: TargetState) -> list[Action]:
        """Start the next cycle; target and source are known, nothing is on its way."""
        source = self._source
        if source is None:
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
        if state.committed and not state.trusted and not target.awaiting_seed and self._fetch.due(self._now):
            self._waiting = _Waiting.INDEX
            self._note = "the fingerprints of the replica are not known here: the target sends them"
            return [*actions, FetchIndex(state.committed)]
        if (turn := self._turn.need(self._pace, assigned, self._now, copy=False)) is not None:
            return [*actions, *turn]
        self._point = state.committed.number + 1 if state.committed else 1, self._new_id()
        self._waiting = _Waiting.POINT
        ago = state.instant - state.application if state.application else _EVER
        consistency = self._pace.open(assigned, self._now, ago=ago)
        self._progress.opened(self._now, self._turn.waited)
        return [*actions, OpenPoint(*self._point, consistency)]

    # ------------------------------------------------------------------------------------ target and source

    def _take_target_failure(self, error: TwinsiteError) -> list[Action]:
        waiting, self._waiting = self._waiting, None
        if waiting is _Waiting.INDEX:
            self._fetch.failed(self._now)
        return self._fail(error)

    def _take_index(self, event: IndexFetched) -> list[Action]:
        self._waiting = None
        self._source = None  # its index is another now
        if not event.sound:
            self._fetch.impossible(self._now)
            return []
        self._fetch = Fetch()
        return self._persist(replace(self._state, trusted=True, disks=event.disks))

    def _take_point(self, event: PointOpened) -> list[Action]:
        self._waiting = None
        source, target, assigned = self._source, self._target, self._assigned
        if not self._point or not source or not target or not assigned or assigned.paused or self._fenced:
            return [ClosePoint(), DiscardPoint()]
        plan = resync.plan(
            self._state, source.anchor, whole=event.whole, offline=assigned.offline, awaiting=target.awaiting_seed
        )
        if plan is None:
            self._note = "changes were not known while the seed is on its way: the disks are compared once it is there"
            self._target = None
            self._pace.postpone(assigned, self._now)
            return [ClosePoint(), DiscardPoint(), *self._turn.end()]
        if plan.kind is not Kind.DELTA or self._state.recoverable:
            self._note = resync.note(plan, whole=event.whole, doubt=event.doubt)
        if event.instant <= self._state.instant:
            self._note = self._note or "the clock of this host was set back: the point is dated right after the last"
        self._progress.dated(event.instant)
        header = self._header(event, plan)
        added = resync.added(self._state, event.disks)
        if plan.kind is Kind.DELTA:
            self._flight = Flight(header, None, plan.suppress)
            self._waiting = _Waiting.READ
            return [ReadPoint(header, plan.suppress, added, self._lacking.slice(target.wanted, event.disks))]
        # A copy is not read from the point, which would stay open for hours. The point is its anchor: whatever is
        # written from here on, and read torn or too early by the copy, is in the cycle that follows it.
        start = Position(len(event.disks)) if plan.placeholder else Position()
        flight = Flight(
            header, Checkpoint(position=start), plan.suppress, whole=added if plan.suppress else frozenset()
        )
        self._flight = flight
        self._progress.copying(self._now)
        return [ClosePoint(), DropPending(), *self._persist(replace(self._state, flight=flight))]

    def _header(self, event: PointOpened, plan: resync.Plan) -> CycleHeader:
        number, id_ = self._point or (0, b"")
        parent = self._state.committed
        return CycleHeader(
            vm_id=self._vm_id,
            id=id_,
            number=number,
            parent=parent.number if parent else 0,
            term=self._state.term,
            kind=plan.kind,
            instant=max(event.instant, self._state.instant + _INSTANT_STEP),  # points stay in order, whatever the clock
            consistency=event.consistency if plan.kind is Kind.DELTA else "none",
            disks=event.disks,
            machine=event.machine,
            parent_id=parent.id if parent else b"",
            placeholder=plan.placeholder,
            compared=plan.suppress,
        )

    def _take_part(self, batches: tuple[Ready, ...]) -> list[Action]:
        flight, spool = self._flight, self._spool
        if flight is None:
            return []
        self._progress.brought(batches)
        if spool is not None:  # they go out with what runs, or after its loss once all is read
            spool += batches
            return []
        self._spool = list(batches)
        self._durable = 0
        return self._begin(flight, Checkpoint())

    def _take_spool(self, event: PointRead) -> list[Action]:
        self._waiting = None
        if self._flight is None:
            return [ClosePoint(), DropSpool()]
        self._progress.point_read(event, self._now)
        return [ClosePoint(), *self._take_part(event.batches)]

    def _take_source_failure(self, event: SourceFailed) -> list[Action]:
        waiting = self._waiting
        if event.stream:
            self._reading = False
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
        self._stream = Stream(self._streams, after.sequence, digest, after.position)
        return [BeginStream(self._streams, flight.header, after.sequence), *self._pump(self._stream)]

    def _pump(self, stream: Stream) -> list[Action]:
        """Hand over what the window takes, then the end."""
        flight = self._flight
        if flight is None or stream.ended:
            return []
        if self._spool is None:
            return self._pump_copy(stream, flight)
        actions: list[Action] = []
        while stream.sent < len(self._spool) and stream.bytes < self._window:
            actions += self._send(stream, self._spool[stream.sent], Position())
        if stream.sent == len(self._spool) and self._waiting is not _Waiting.READ:
            actions += self._finish(stream, flight)
        return actions

    def _pump_copy(self, stream: Stream, flight: Flight) -> list[Action]:
        if self._reading:
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
        self._reading = True
        return [
            ReadSlice(
                stream.number,
                flight.header,
                stream.sent + 1,
                stream.sent_digest,
                stream.position,
                flight.suppressed,
                flight.whole,
            )
        ]

    def _send(self, stream: Stream, batch: Ready, position: Position) -> list[Action]:
        stream.took(batch, position)
        self._progress.sent(batch)
        return [SendBatch(stream.number, batch.sequence)]

    def _finish(self, stream: Stream, flight: Flight) -> list[Action]:
        """Everything was handed over: from `end` on the target may commit, so its fingerprints are durable first."""
        stream.ended = True
        self._progress.ended(self._now)
        actions: list[Action] = [StorePending(flight.header.id, stream.sent)]
        if not flight.ended:
            flight = self._flight = replace(flight, ended=True)
            actions += self._persist(replace(self._state, flight=flight))
        return [*actions, SendEnd(stream.number, stream.sent, stream.sent_digest)]

    def _take_in_stream(self, stream: Stream, event: SliceRead | Durable | CommitAcked | StreamLost) -> list[Action]:
        match event:
            case SliceRead(_, batch, position):
                self._progress.slice_read(event)
                stream.position = position
                return self._send(stream, batch, position) if batch else self._pass_over(stream, position)
            case Durable(_, sequence):
                return self._take_durable(stream, sequence)
            case CommitAcked(committed=committed):
                flight = self._flight
                if flight is None or committed != flight.named or not stream.ended:
                    return [*self._close(), *self._fail(UnexpectedAck(f"cycle {committed.number}"))]
                self._stream = None
                self._progress.acked(event)
                return self._arrived(flight)
            case StreamLost(_, error):
                self._stream = None
                return self._fail(error)

    def _pass_over(self, stream: Stream, position: Position) -> list[Action]:
        """Nothing up to there had to go: a cut does not make a copy look at it again, however long that took."""
        flight = self._flight
        if flight is None or flight.checkpoint is None or stream.in_flight:
            return []
        self._flight = replace(flight, checkpoint=replace(flight.checkpoint, position=position))
        stored = self._state.flight.checkpoint if self._state.flight else None
        if stored and not stored.position.behind(position):
            return []
        return self._persist(replace(self._state, flight=self._flight))

    def _take_durable(self, stream: Stream, sequence: int) -> list[Action]:
        flight = self._flight
        batches, checkpoint = stream.durable(sequence)
        if checkpoint is None or flight is None:
            return []
        self._pace.failures = 0
        self._reason = None
        if flight.checkpoint is None:
            self._durable = checkpoint.sequence
            return []
        self._progress.brought(batches)
        # Fingerprints before the checkpoint that relies on them. It never passes what the target has made durable, so
        # going on from here needs nothing of either end that a crash could have taken.
        self._flight = replace(flight, checkpoint=checkpoint)
        return [
            StorePending(flight.header.id, checkpoint.sequence),
            *self._persist(replace(self._state, flight=self._flight)),
        ]

    # ------------------------------------------------------------------------------------------ how it ends

    def _arrived(self, flight: Flight) -> list[Action]:
        if not flight.ended or flight.header.placeholder:
            # Only a state folder that was restored from an older copy says so: not all fingerprints are in it.
            return [*self._take_applied(sound=False), *self._next()]
        self._waiting = _Waiting.APPLIED
        return [ApplyPending(flight.header, flight.complete)]

    def _take_applied(self, *, sound: bool) -> list[Action]:
        self._waiting = None
        flight, target = self._flight, self._said
        if flight is None:
            return []
        header = flight.header
        copy = header.kind is not Kind.DELTA
        awaiting = header.placeholder or (not copy and target is not None and target.awaiting_seed)
        early, cut = target is not None and self._lacking.early(header, target), self._lacking.cut
        consistent = not copy and not awaiting and not early
        self._flight = self._spool = None
        self._reason = None
        self._confirmed = True
        self._source = None  # ask before the next one: the anchor has moved
        # What it wants after this one, and whether its seed has come, it has to say itself.
        open_questions = target is None or target.awaiting_seed or target.wanted or awaiting or early
        self._target = None if open_questions else TargetState(self._state.term, flight.named, None)
        self._said = self._target or target
        seconds = self._progress.done(header, self._now, copy=copy)
        self._lacking.arrived(seconds, self._assigned.frequency if self._assigned else 0.0)
        at_once = copy or cut or (early and not awaiting)  # it is worth nothing, or little, before a later one
        self._pace.committed(self._assigned, self._now, copy=at_once, consistency=header.consistency, seconds=seconds)
        application = header.instant if header.consistency == "application" else self._state.application
        state = replace(
            self._state,
            committed=flight.named,
            disks=header.disks,
            recoverable=consistent,
            instant=header.instant if consistent else self._state.instant,
            application=application,
            trusted=sound and not awaiting and (flight.complete or self._state.trusted),
            flight=None,
        )
        # The source lets go of the changes last: until the state says committed, they may be needed again.
        return [*self._persist(state), AckPoint(flight.named), DropPending(), DropSpool(), *self._turn.end()]

    def _give_up(self) -> list[Action]:
        """The cycle on its way will not arrive; its changes go back to where the next one finds them."""
        self._flight = self._spool = None
        self._source = None
        self._clean = True
        stored: list[Action] = []
        if self._state.flight:
            state = replace(self._state, flight=None)
            stored = self._persist(resync.adopt(state, self._target) if self._target else state)
        return [*self._close(), *stored, DropSpool(), DropPending(), DiscardPoint()]

    def _close(self) -> list[Action]:
        if self._stream is None:
            return []
        self._stream = None
        return [CloseStream()]

    def _fail(self, error: TwinsiteError) -> list[Action]:
        """Try again later; what both ends hold is asked anew, which also finds a newer term."""
        self._reason = error
        self._progress.failures += 1
        self._target = self._source = None
        self._pace.failed(self._assigned, self._now)
        return self._turn.end()

    def _fence(self, ours: int, newer: int) -> list[Action]:
        self._fenced = True
        self._reason = OlderTerm(ours, newer)
        self._spool = None
        if self._waiting is _Waiting.READ:  # what was read is dropped, so the rest is of no use
            self._flight = None
            self._clean = False
        return [*self._close(), DropSpool(), *self._turn.end()]

    def _take_assignment(self, event: Assigned) -> list[Action]:
        before = self._assigned
        if event.term < self._state.term:  # an old word of the coordinator's, or a restored coordinator
            return self._fence(event.term, self._state.term)
        self._assigned = event
        self._pace.assigned(before, event, self._now, idle=not self._waiting and not self._flight)
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
        self._state = replace(state, totals=self._progress.totals)
        return [Persist(self._state)]
