"""The target's half of a replication: one per replica. Events and actions are in `receiving`."""

from dataclasses import dataclass, replace
from typing import Final

from hyperv_host_agent.replication import frames, ownership
from hyperv_host_agent.replication.cycle import Committed, CycleHeader, TargetState, Unfinished
from hyperv_host_agent.replication.receiving import (
    Abandon,
    AckCommitted,
    AckDurable,
    Action,
    Answer,
    Asked,
    BatchReceived,
    Began,
    Begin,
    Begun,
    Commit,
    EndReceived,
    Event,
    Put,
    Refuse,
    SetTerm,
    Stored,
    StoreFailed,
    StreamClosed,
    Sync,
    TermRaised,
    Ticked,
)
from twinsite.digest import CHAIN_START, chain
from twinsite.errors import Internal, TwinsiteError

SYNC_BYTES: Final = 16 << 20  # staged bytes that are made durable and acked; a cut link re-sends at most a few of these
SYNC_SECONDS: Final = 0.25  # the end of a copy waits for its last batches to be durable


@dataclass(slots=True)
class _Stream:
    number: int
    header: CycleHeader
    resume_after: int
    begun: bool = False
    staged: int = 0  # sequence of the last batch put
    digest: bytes = CHAIN_START  # of the chain after it
    unsynced: int = 0  # bytes put and not yet durable
    since: float = 0.0  # when the first of them came


class Receiver:
    """Decides what a target does with frames. `handle` raises nothing but OlderTerm for a TermRaised that falls."""

    def __init__(self, vm_id: str, state: TargetState, *, sync_bytes: int = SYNC_BYTES) -> None:
        self._sync_bytes = sync_bytes
        self._vm_id = vm_id
        self._state = state
        self._stream: _Stream | None = None
        self._ending = 0  # number of the stream whose commit was ordered last: if that fails, it is told

    @property
    def state(self) -> TargetState:
        return self._state

    def handle(self, event: Event, now: float) -> list[Action]:
        ending, self._ending = self._ending, 0
        match event:
            case Asked(call, state):
                # The answer is a promise: no frame of an older stream may change what it says.
                self._state = state
                return [*self._end(frames.TakenOver()), Answer(call, state)]
            case Began():
                return self._began(event)
            case Begun(stream, state):
                return self._begun(stream, state)
            case Stored(state):
                self._state = state
                return []
            case TermRaised(term):
                if not ownership.admit(self._state.term, term):
                    return []
                refusals = self._end(ownership.OlderTerm(self._state.term, term))
                self._state = replace(self._state, term=term)
                return [*refusals, SetTerm(term)]
            case StoreFailed(error, state):
                self._state = state
                return [Refuse(ending, error)] if ending else self._end(error)
            case BatchReceived() | EndReceived() | StreamClosed() | Ticked():
                return self._in_stream(event, now)

    def _in_stream(self, event: BatchReceived | EndReceived | StreamClosed | Ticked, now: float) -> list[Action]:
        stream = self._stream
        if stream is None or (not isinstance(event, Ticked) and event.stream != stream.number):
            return []  # frames of a stream that was refused may still come
        match event:
            case StreamClosed():
                self._stream = None
                return []
            case Ticked():
                due = stream.unsynced and now - stream.since >= SYNC_SECONDS
                return self._sync(stream) if due else []
            case BatchReceived():
                return self._batch(stream, event, now)
            case EndReceived():
                return self._ended(stream, event)

    def _began(self, event: Began) -> list[Action]:
        header, state = event.header, self._state
        try:
            newer = ownership.admit(state.term, header.term)
            if header.vm_id != self._vm_id:
                raise frames.NotGranted("it names another VM")
            if header.term != event.granted.term:
                raise frames.NotGranted(f"the cycle is of term {header.term}, the grant of {event.granted.term}")
            frames.check_header(header, state, event.granted.disks)
            frames.check_resume(header, state, event.resume_after)
        except TwinsiteError as error:
            return [Refuse(event.stream, error)]  # a stream that is not entitled takes nothing over
        actions = self._end(frames.TakenOver())
        if newer:
            # Before the first byte: whoever was owner must be refused from here on, also after a crash.
            self._state = replace(state, term=header.term)
            actions.append(SetTerm(header.term))
        self._stream = _Stream(event.stream, header, event.resume_after)
        return [*actions, Begin(event.stream, header, event.resume_after)]

    def _begun(self, number: int, state: TargetState) -> list[Action]:
        self._state = state
        stream = self._stream
        if stream is None or stream.number != number:
            return []
        kept = state.unfinished
        if stream.resume_after:
            if kept is None or kept.durable != stream.resume_after:
                return self._end(Internal())
            stream.digest = kept.digest
        stream.staged = stream.resume_after
        stream.begun = True
        return []

    def _batch(self, stream: _Stream, event: BatchReceived, now: float) -> list[Action]:
        if not stream.begun:
            return self._end(frames.InvalidFrame("a batch before the cycle was begun"))
        try:
            frames.check_batch(stream.header, event.batch, stream.staged + 1)
        except frames.InvalidFrame as error:
            return self._end(error)
        stream.staged = event.batch.sequence
        stream.digest = chain(stream.digest, *event.body)
        if not stream.unsynced:
            stream.since = now
        stream.unsynced += sum(len(part) for part in event.body)
        put = Put(event.batch, stream.digest)
        return [put, *self._sync(stream)] if stream.unsynced >= self._sync_bytes else [put]

    def _sync(self, stream: _Stream) -> list[Action]:
        stream.unsynced = 0
        self._state = replace(
            self._state, unfinished=Unfinished(stream.header.number, stream.header.id, stream.staged, stream.digest)
        )
        return [Sync(), AckDurable(stream.number, stream.staged)]

    def _ended(self, stream: _Stream, event: EndReceived) -> list[Action]:
        if not stream.begun or event.batches != stream.staged:
            return self._end(frames.InvalidFrame(f"it ends after {event.batches} batches, {stream.staged} came"))
        if event.digest != stream.digest:
            # Which batch is bad is not known, and going on from here would end like this again: all of it goes.
            self._state = replace(self._state, unfinished=None)
            return [Abandon(), *self._end(frames.Damaged(stream.header.number))]
        committed = Committed(stream.header.number, stream.header.id)
        self._state = replace(self._state, committed=committed, unfinished=None)
        self._stream = None
        self._ending = stream.number
        return [Sync(), Commit(), AckCommitted(stream.number, committed)]

    def _end(self, error: TwinsiteError) -> list[Action]:
        if self._stream is None:
            return []
        number, self._stream = self._stream.number, None
        return [Refuse(number, error)]
