"""What a sender has done: for status, statistics and people. The rules do not ask it."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from hyperv_host_agent.replication.cycle import Committed, CycleHeader, Kind
from hyperv_host_agent.replication.schedule import Timing
from hyperv_host_agent.replication.sending import Assigned, CommitAcked, PointRead, Ready, SliceRead
from hyperv_host_agent.replication.state import Flight, Position, SenderState, Totals
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER


class Phase(enum.Enum):
    """For people; the rules do not ask it."""

    WAITING = "waiting"  # for the first assignment, the first answer of the target, or the time of the first copy
    INITIAL = "initial"
    REPLICATING = "replicating"
    RESYNCHRONIZING = "resynchronizing"
    PAUSED = "paused"
    BLOCKED = "blocked"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class CycleDone:
    """A committed cycle. A new value, not an equal one, with each commit."""

    number: int
    copy: bool  # its bytes are no measure of what the guest changes
    consistency: str
    seconds: float  # from the wish for a turn to the commit; 0: most of it was in an earlier life of the agent
    timing: Timing
    changed_bytes: int
    content_bytes: int
    wire_bytes: int
    disks: tuple[tuple[str, int], ...]  # changed bytes by disk id


@dataclass(frozen=True, slots=True)
class View:
    """How the replication does. Sums are over this process's life, but for `totals`."""

    phase: Phase
    reason: TwinsiteError | None  # why it is blocked or fenced
    term: int
    committed: Committed | None
    instant: float  # of the newest consistent cycle at the target, seconds since 1970; 0: none
    copied_bytes: int  # of a copy that runs
    copy_bytes: int
    cycles: int
    missed: int  # periods that passed without a commit
    failures: int  # attempts that ended in an error
    changed_bytes: int
    content_bytes: int  # of these not zero: what the compressor was given
    wire_bytes: int
    last_seconds: float  # of the last cycle
    causes: Timing  # where they went
    late: str  # which part made the last cycle late, a field of Timing; empty: it was not
    note: str  # why the last or the present cycle is slower than usual, a sentence; empty: it is not
    last: CycleDone | None
    totals: Totals


@dataclass(slots=True)
class Progress:
    """Counts and times the cycles of one sender; `before`: what earlier processes counted."""

    before: Totals = field(default_factory=Totals)
    began: float = 0.0  # instant of the first point of this process, seconds since 1970; 0: none yet
    cycles: int = 0
    failures: int = 0
    changed: int = 0
    content: int = 0
    wire: int = 0
    last: CycleDone | None = None
    timing: Timing = field(default_factory=Timing)
    _timed: bool = False  # the cycle on its way was begun in this process
    _opened: float = 0.0
    _read: float = 0.0  # when the point was read, or the copy began
    _ended: float = 0.0
    _turn: float = 0.0
    _source: float = 0.0
    _compress: float = 0.0
    _cap: float = 0.0
    _target: float | None = None  # as measured where the end was sent, which may be long after it was ordered
    _cycle: tuple[int, int, int] = (0, 0, 0)  # changed, content, wire of the cycle on its way
    _disks: dict[int, int] = field(default_factory=dict)

    def opened(self, now: float, turn: float) -> None:
        """A point was ordered, `turn` seconds after the wish for it."""
        self._timed = True
        self._opened, self._turn, self._cap = now, turn, 0.0
        self._read = self._ended = now
        self._source = self._compress = 0.0
        self._target = None
        self._cycle, self._disks = (0, 0, 0), {}

    @property
    def totals(self) -> Totals:
        return Totals(
            self.before.since or self.began,
            self.before.cycles + self.cycles,
            self.before.changed_bytes + self.changed,
            self.before.wire_bytes + self.wire,
        )

    def dated(self, instant: float) -> None:
        """The point that was ordered is of then, seconds since 1970."""
        self.began = self.began or instant

    def waited(self, seconds: float) -> None:
        """For another turn of the same cycle."""
        self._turn += seconds
        self._read += seconds

    def copying(self, now: float) -> None:
        self._source = now - self._opened
        self._read = now

    def point_read(self, event: PointRead, now: float) -> None:
        self._compress = event.compress_seconds
        self._source = max(0.0, now - self._opened - event.compress_seconds)
        self._read = now

    def slice_read(self, event: SliceRead) -> None:
        self._source += event.read_seconds
        self._compress += event.compress_seconds

    def brought(self, batches: Iterable[Ready]) -> None:
        """Of a point all its batches, of a copy those that are durable."""
        changed, content, wire = self._cycle
        for batch in batches:
            changed += batch.changed_bytes
            content += batch.content_bytes
            self.changed += batch.changed_bytes
            self.content += batch.content_bytes
            self._disks[batch.disk] = self._disks.get(batch.disk, 0) + batch.changed_bytes
        self._cycle = changed, content, wire

    def sent(self, batch: Ready) -> None:
        changed, content, wire = self._cycle
        self._cycle = changed, content, wire + batch.wire_bytes
        self.wire += batch.wire_bytes

    def ended(self, now: float) -> None:
        """Everything was handed to the stream."""
        self._ended = now

    def acked(self, event: CommitAcked) -> None:
        self._cap += event.cap_seconds
        self._target = event.target_seconds

    def done(self, header: CycleHeader, now: float, *, copy: bool) -> float:
        """Seconds the cycle took without its turn, 0: not known."""
        self.cycles += 1
        timing = self._measured(now, copy=copy) if self._timed else Timing()
        if self._timed:
            self.timing = timing
        changed, content, wire = self._cycle
        self.last = CycleDone(
            header.number,
            copy,
            header.consistency,
            timing.total,
            timing,
            changed,
            content,
            wire,
            tuple((header.disks[disk].id, count) for disk, count in sorted(self._disks.items())),
        )
        self._timed = False
        self._cycle, self._disks = (0, 0, 0), {}
        return timing.total - timing.turn

    def _measured(self, now: float, *, copy: bool) -> Timing:
        ended = max(self._ended, self._read)
        if self._target is not None:
            ended = max(self._read, now - self._target)
        way, source, compress = ended - self._read, self._source, self._compress
        if copy:
            # Reading and compressing run beside sending; what they take of the way is not the network's.
            beside = source + compress
            share = min(1.0, (ended - self._opened) / beside) if beside > 0 else 1.0
            source, compress = source * share, compress * share
            way = max(0.0, ended - self._opened - source - compress)
        cap = min(self._cap, way)
        return Timing(source, compress, way - cap, now - ended, cap, self._turn)


def phase(
    assigned: Assigned | None, state: SenderState, flight: Flight | None, reason: TwinsiteError | None, *, fenced: bool
) -> Phase:
    if fenced:
        return Phase.FENCED
    if assigned is None:
        return Phase.WAITING
    if assigned.paused:
        return Phase.PAUSED
    if reason is not None:
        return Phase.BLOCKED
    kind = flight.header.kind if flight else None
    if kind is Kind.INITIAL or (state.committed and not state.instant):
        return Phase.INITIAL
    if kind is Kind.RESYNC or (state.committed and not state.recoverable):
        return Phase.RESYNCHRONIZING
    return Phase.REPLICATING if state.committed else Phase.WAITING


def copied(flight: Flight | None, reached: Position | None) -> tuple[int, int]:
    """Bytes a copy has been through, and has to go through; `reached`: by its stream."""
    if flight is None or flight.checkpoint is None:
        return 0, 0
    position = reached or flight.checkpoint.position
    disks = flight.header.disks
    before = sum(disk.size for disk in disks[: position.disk])
    here = min(position.cluster * CLUSTER, disks[position.disk].size) if position.disk < len(disks) else 0
    return before + here, sum(disk.size for disk in disks)
