"""What a `Sender` is told (events) and what it orders (actions). Values only; `transfer.py` acts.

`Sender(vm_id, state, new_id)`: the stored state (or `SenderState()`) and a source of fresh cycle ids of ID_BYTES;
`handle(event, now) -> list[Action]` with monotonic seconds, the first event being Assigned; `view` for the status.
How to act on what `handle` returns:

* In order. An action without a reply is complete, durable where it says so, before the next one is acted on.
* An action that names a reply is started; its reply is handed over as an event later, exactly once, unless the
  process dies. Replies to things of an older stream may still come; they carry its number and are ignored.
* If an action without a reply fails (state folder full, source gone), drop the Sender, release spool, stream and
  point, wait, and build a new Sender from the stored state: the same path as after a crash, which has to work anyway.
* One event at a time per VM.
"""

from dataclasses import dataclass

from hyperv_host_agent.replication.cycle import Committed, CycleHeader, DiskGeometry, TargetState, Wanted
from hyperv_host_agent.replication.state import Position, SenderState
from twinsite.errors import TwinsiteError

# ---------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Assigned:
    """First event of a Sender, and again whenever the assignment changes (policy, pause, term)."""

    term: int
    frequency: float  # seconds from instant to instant
    paused: bool = False
    application_every: float = 0.0  # an application-consistent point is tried every so many seconds; 0: never
    offline: bool = False  # the first copy comes on media: its cycle is a placeholder
    not_before: float = 0.0  # a first copy does not start before it, by the clock of `now`


@dataclass(frozen=True, slots=True)
class Woke:
    """The time of the last `Wake` has come."""


@dataclass(frozen=True, slots=True)
class SyncRequested:
    """A cycle is wanted now, whatever the schedule says (final cycle of a planned failover, an administrator)."""


@dataclass(frozen=True, slots=True)
class TargetKnown:
    """Reply to AskTarget."""

    state: TargetState


@dataclass(frozen=True, slots=True)
class TargetFailed:
    """Reply to AskTarget or FetchIndex that could not be had: unreachable, refused …"""

    error: TwinsiteError


@dataclass(frozen=True, slots=True)
class SourceKnown:
    """Reply to AskSource."""

    anchor: Committed | None  # of `ChangeSource.status()`
    disks: tuple[DiskGeometry, ...]  # `ChangeSource.disks()`
    index: Committed | None  # the cycle the fingerprint index describes; None: there is none, or it is damaged


@dataclass(frozen=True, slots=True)
class IndexFetched:
    """Reply to FetchIndex."""

    sound: bool  # False: the target cannot say it (its own fingerprints are damaged, it has another cycle by now)
    disks: tuple[DiskGeometry, ...] = ()  # of that cycle, when it is sound


@dataclass(frozen=True, slots=True)
class TurnGiven:
    """Reply to AskTurn. One that a newer AskTurn or an EndTurn crossed may still come, or never; it is ignored."""

    turn: int


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """Reply to AskSource, OpenPoint, ReadPoint or ReadSlice that the source could not answer.

    A point that was open is closed already.
    """

    error: TwinsiteError
    stream: int = 0  # of the ReadSlice, 0 for the others


@dataclass(frozen=True, slots=True)
class PointOpened:
    """Reply to OpenPoint."""

    instant: float  # seconds since 1970, UTC
    consistency: str
    disks: tuple[DiskGeometry, ...]
    whole: bool  # Tracking.OK: `dirty` names what changed; otherwise it names everything
    machine: bytes = b""
    doubt: str = ""  # why it is not whole, a part of a sentence: "the agent was killed while the VM ran"


@dataclass(frozen=True, slots=True)
class Ready:
    """A batch that can be sent, without its content."""

    sequence: int
    wire_bytes: int  # of the whole message
    digest: bytes  # chain digest after it
    changed_bytes: int = 0  # logical bytes it brings, zeros included
    content_bytes: int = 0  # of these not zero: what the compressor was given
    disk: int = 0  # index into the cycle's disks


@dataclass(frozen=True, slots=True)
class PartRead:
    """Of a ReadPoint: these batches are in the spool, and more may follow."""

    batches: tuple[Ready, ...]


@dataclass(frozen=True, slots=True)
class PointRead:
    """Reply to ReadPoint: the spool is complete with these batches, which no PartRead has told of."""

    batches: tuple[Ready, ...]
    read_seconds: float = 0.0  # of the whole time, in the source
    compress_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SliceRead:
    """Reply to ReadSlice. Without a batch nothing up to `position` had to be sent."""

    stream: int
    batch: Ready | None
    position: Position  # disk == number of disks: the copy is complete
    read_seconds: float = 0.0
    compress_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Applied:
    """Reply to ApplyPending."""

    sound: bool  # False: pending fingerprints of that cycle were missing or damaged, the index cannot be trusted


@dataclass(frozen=True, slots=True)
class Durable:
    """Ack of the target: batches 1..sequence survive its crash; the spool may release them."""

    stream: int
    sequence: int


@dataclass(frozen=True, slots=True)
class CommitAcked:
    """Ack of the target: it holds the cycle."""

    stream: int
    committed: Committed
    cap_seconds: float = 0.0  # for which rate caps held the stream back
    target_seconds: float | None = None  # from the end that was really sent to this ack; None: not measured


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The stream ended without that: cut, refused, idle too long."""

    stream: int
    error: TwinsiteError


Event = (
    Assigned
    | Woke
    | SyncRequested
    | TargetKnown
    | TargetFailed
    | IndexFetched
    | TurnGiven
    | SourceKnown
    | SourceFailed
    | PointOpened
    | PartRead
    | PointRead
    | SliceRead
    | Applied
    | Durable
    | CommitAcked
    | StreamLost
)

# --------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Wake:
    """Arm the only timer: hand over Woke at `at` (by the clock of `now`), at once if that is past."""

    at: float


@dataclass(frozen=True, slots=True)
class Persist:
    """Store the state atomically and durably (`state.dump`)."""

    state: SenderState


@dataclass(frozen=True, slots=True)
class AskTarget:
    """`Replication.Open` with a deadline. Replies TargetKnown or TargetFailed."""


@dataclass(frozen=True, slots=True)
class AskTurn:
    """Wait until this VM may run among the others of the host. Replies TurnGiven; replaces an AskTurn that waits."""

    turn: int  # 1, 2, 3 … in this process
    deadline: float  # by the clock of `now`: when the cycle should be committed; earliest first
    expected: float  # seconds the turn will probably last
    copy: bool  # a whole copy: limited separately, and never in the way of cycles
    urgent: bool = False  # asked for now by a person or a planned failover: before all others


@dataclass(frozen=True, slots=True)
class EndTurn:
    """Give the turn back, or take back what was asked. Repeatable; also due when the sender is dropped."""


@dataclass(frozen=True, slots=True)
class FetchIndex:
    """Build the fingerprint index from the target's fingerprints of this cycle, whole and durable.

    Replies IndexFetched, or TargetFailed when the target could not be reached.

    Repeatable: a crash in the middle leaves the old index, or none, or the new one; SourceKnown says which.
    """

    committed: Committed


@dataclass(frozen=True, slots=True)
class AskSource:
    """`ChangeSource.start()`, then `status()` and `disks()`. Replies SourceKnown or SourceFailed."""


@dataclass(frozen=True, slots=True)
class AckPoint:
    """`ChangeSource.ack`. It may name what the source does not know; then nothing happens."""

    committed: Committed


@dataclass(frozen=True, slots=True)
class DiscardPoint:
    """Close the open point, if any, and `ChangeSource.discard()`."""


@dataclass(frozen=True, slots=True)
class OpenPoint:
    """`ChangeSource.open_point` for the next cycle. Replies PointOpened or SourceFailed."""

    number: int
    id: bytes
    consistency: str


@dataclass(frozen=True, slots=True)
class ClosePoint:
    """Close the open point, neither acked nor discarded: a copy starts, or the reading is over."""


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """Read the open point into the spool as batches 1, 2, 3 …; their fingerprints are pending. Replies PartRead any
    number of times, then PointRead or SourceFailed. The network never holds it up.

    Of every disk: the clusters `dirty` names, or all when the disk is in `whole`. A cluster is left out when `suppress`
    and the index has its fingerprint (zero for a hole) for a disk not in `whole`. Clusters in `forced` go in any case,
    zeros too, and like all others once.
    """

    header: CycleHeader
    suppress: bool
    whole: frozenset[str]  # ids of disks the target does not have yet: every cluster goes, zeros too
    forced: tuple[Wanted, ...] = ()  # clusters the target lacks; within the header's disks


@dataclass(frozen=True, slots=True)
class ReadSlice:
    """Read on from `position` with `read_now`, until a batch is full or a few hundred clusters were looked at. Replies
    SliceRead or SourceFailed.

    Everything is sent, zeros too, but what the index has when `suppress` and the disk is not in `whole`. What a disk no
    longer has, because it shrank or went since the copy began, is zeros: the cycle after the copy brings the new
    geometry. Pending fingerprints of batches from `sequence` on, left by an older stream, are forgotten first. The
    batch is kept until its SendBatch was acted on.
    """

    stream: int
    header: CycleHeader
    sequence: int  # number of the batch to make
    digest: bytes  # chain digest before it
    position: Position
    suppress: bool
    whole: frozenset[str] = frozenset()  # ids of disks of which everything goes, also what the index has


@dataclass(frozen=True, slots=True)
class StorePending:
    """Make the pending fingerprints of batches 1..through of this cycle durable, zeros as ZERO_FINGERPRINT.

    `through` only rises within a stream.
    """

    id: bytes
    through: int


@dataclass(frozen=True, slots=True)
class ApplyPending:
    """Put the stored pending fingerprints of this cycle into the index, durably. Replies Applied.

    Repeatable: they stay until DropPending, so a crash in the middle repeats it. `complete`: the cycle brought every
    cluster, the index starts empty. Disks that are not in the header leave the index, sizes become the header's.
    """

    header: CycleHeader
    complete: bool


@dataclass(frozen=True, slots=True)
class DropPending:
    """Forget pending fingerprints: they are applied, or their cycle will not arrive. Repeatable."""


@dataclass(frozen=True, slots=True)
class DropSpool:
    """Release the spool. Repeatable."""


@dataclass(frozen=True, slots=True)
class BeginStream:
    """Open `Replication.Send` and send the begin frame. Replies: Durable…, CommitAcked or StreamLost.

    There is at most one stream; an older one is closed first.
    """

    stream: int  # 1, 2, 3 … in this process
    header: CycleHeader
    resume_after: int


@dataclass(frozen=True, slots=True)
class SendBatch:
    """Send a batch of the spool or the slice just read, in order; may wait for flow control without blocking events."""

    stream: int
    sequence: int


@dataclass(frozen=True, slots=True)
class SendEnd:
    stream: int
    batches: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class CloseStream:
    """Cancel the stream, if any. No reply is expected of it any more."""


Action = (
    Wake
    | Persist
    | AskTarget
    | AskTurn
    | EndTurn
    | FetchIndex
    | AskSource
    | AckPoint
    | DiscardPoint
    | OpenPoint
    | ClosePoint
    | ReadPoint
    | ReadSlice
    | StorePending
    | ApplyPending
    | DropPending
    | DropSpool
    | BeginStream
    | SendBatch
    | SendEnd
    | CloseStream
)
