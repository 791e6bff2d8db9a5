"""The port every replica store implements. Synchronous: callers run it in threads, one call at a time per replica."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, TargetState, Wanted
from twinsite.errors import Aborted, Conflict, Exhausted, Failed, InvalidInput, NotFound


class NoSpace(Exhausted):
    public = "the replica store has no room: {error.free} bytes free, {error.needed} needed"
    still_works = "points that exist are untouched; other VMs go on"
    next_step = "free space at the target, or move the store; replication goes on by itself"

    def __init__(self, free: int, needed: int) -> None:
        self.free, self.needed = free, needed


class BadBatch(InvalidInput):
    public = "batch {error.sequence} breaks the rules: {error.problem}"
    still_works = "nothing of it was written"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, sequence: int, problem: str) -> None:
        self.sequence, self.problem = sequence, problem


class StoreDamaged(Failed):
    public = "replica {error.vm_id}: {error.problem}"
    still_works = "nothing was changed or deleted"
    next_step = "twinsite vm show; points older than the damage may still be used"

    def __init__(self, vm_id: str, problem: str) -> None:
        self.vm_id, self.problem = vm_id, problem


class ReplicaUnreadable(StoreDamaged):
    """A document or a layer that all else hangs on is lost in every copy, and nothing says what it said."""

    public = "the replica of VM {error.vm_id} cannot be opened: {error.problem}"
    still_works = "nothing was changed or deleted; its layers are qcow2 files, which qemu-img reads"
    next_step = "twinsite vm unprotect --delete-replica, then twinsite vm protect; the first copy begins anew"


class TermLost(StoreDamaged):
    """Which host owns the VM is never guessed: a term that is too low would let an earlier owner write."""

    public = "the replica of VM {error.vm_id} does not know its term any more: {error.problem}"
    still_works = "its recovery points are untouched; nothing is received until it has a term"
    next_step = "twinsite vm unprotect --keep-replica, then twinsite vm protect: that gives it a newer term"


class PointMissing(NotFound):
    public = "there is no recovery point {error.cycle}"
    next_step = "twinsite point list"

    def __init__(self, cycle: int) -> None:
        self.cycle = cycle


class ReplicaMissing(NotFound):
    public = "there is no replica of VM {error.vm_id} in this store"
    next_step = "twinsite vm list"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class WriteFailed(Failed):
    """A write or fsync failed, and not for want of space. The unfinished cycle is dropped, never retried in place."""

    public = "replica {error.vm_id} cannot be written: {error.reason}"
    cause = "the file system or the disk under the replica store reported an error"
    still_works = "committed points are untouched"
    next_step = "look at the target host's kernel log and disks"

    def __init__(self, vm_id: str, reason: str) -> None:
        self.vm_id, self.reason = vm_id, reason


class BadName(InvalidInput):
    public = "{error.name!r} cannot name a {error.kind}"
    still_works = "nothing was written"

    def __init__(self, kind: str, name: str) -> None:
        self.kind, self.name = kind, name[:80]


class StoreInUse(Conflict):
    public = "the replica store {error.root} is in use by {error.holder}"
    still_works = "nothing was touched"
    next_step = "stop the other host agent, or give this one a store of its own"

    def __init__(self, root: Path, holder: str) -> None:
        self.root, self.holder = root, holder


class PointPinned(Conflict):
    public = "recovery point {error.cycle} is in use by {error.owner}"
    next_step = "end its use first (twinsite vm test-cleanup)"

    def __init__(self, cycle: int, owner: str) -> None:
        self.cycle, self.owner = cycle, owner


class PointLocked(Conflict):
    public = "recovery point {error.cycle} is locked until {error.when}"
    cause = "somebody locked it so that nobody can delete it before, not by a changed clock either"
    still_works = "nothing was changed"
    next_step = "try again after that time"

    def __init__(self, cycle: int, until: float) -> None:
        self.cycle, self.until = cycle, until  # seconds since 1970, by the wall clock as it is now

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.until, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class BadLock(InvalidInput):
    public = "a lock of {error.seconds} seconds is not possible"
    still_works = "nothing was changed"
    next_step = "lock for at most 100 years"

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds


class SeedNotAwaited(Conflict):
    public = "the replica of VM {error.vm_id} waits for no seed"
    cause = "it was imported already, or the initial copy went over the network"
    still_works = "nothing was changed"
    next_step = "twinsite vm show"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class SeedStopped(Aborted):
    public = "the replica of VM {error.vm_id} was closed while its seed was read in"
    still_works = "its recovery points are as they were, and it waits for the seed still"
    next_step = "run twinsite seed import again"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


@dataclass(frozen=True, slots=True)
class AwaitedSeed:
    """The base that a replica waits for: what its placeholder said."""

    id: bytes  # of the placeholder's cycle, and of the seed
    cycle: int
    instant: float
    disks: tuple[DiskGeometry, ...]


@dataclass(frozen=True, slots=True)
class PointInfo:
    """One committed cycle."""

    cycle: int
    id: bytes
    parent: int
    instant: float
    consistency: str  # "none": an initial copy, not a recovery point until the next cycle
    term: int
    machine: bytes  # serialized types.v1.Machine
    disks: tuple[DiskGeometry, ...]
    clusters: int  # data and zero clusters this cycle brought
    stored_bytes: int
    pinned_by: tuple[str, ...] = ()
    name: str = ""  # given by a person
    kept: bool = False  # retention leaves it until somebody lets it go
    locked_until: float | None = None  # seconds since 1970, by the wall clock as it is now; nobody deletes it before
    damaged: int = 0  # clusters, found and not repaired; a file that is damaged as a whole counts one
    complete: bool = True  # False: it stands on a base that came on media too late for it, or not at all
    lost: bool = False  # what describes it is damaged: it cannot be used, and `instant` lies between its neighbours'

    @property
    def recoverable(self) -> bool:
        return self.complete and self.consistency != "none"


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk of a pinned point, ready to be overlaid: chain, newest layer last."""

    id: str
    name: str
    size: int
    layers: tuple[Path, ...]  # qcow2 files, oldest first; the last one is the disk at the point


@dataclass(frozen=True, slots=True)
class Finding:
    """Damage that a check found."""

    disk: str  # empty: the file belongs to no disk
    file: str  # its path in the replica's directory
    cluster: int | None  # None: the file as a whole, its header or its tables
    problem: str
    points: tuple[int, ...] = ()  # cycles of the points that stand on it
    repaired: bool = False
    wanted: bool = False  # not mended here: the source sends it with its next cycle
    tried: bool = False  # a repair, now or before, found nothing here to mend it from


@dataclass(frozen=True, slots=True)
class Checked:
    """A check came so far."""

    done_bytes: int
    total_bytes: int
    findings: tuple[Finding, ...] = ()  # since the step before


@dataclass(frozen=True, slots=True)
class ScrubState:
    """How far the continuous check of a replica is, and what it knows."""

    completed: float | None = None  # seconds since 1970, end of the last whole round; None: none yet
    checked_bytes: int = 0  # in the present round
    total_bytes: int = 0
    damaged: int = 0  # clusters and files, found and not repaired
    tried: int = 0  # of them, for which a repair found nothing
    repaired: int = 0  # since the replica was made
    retry: bool = False  # there is reason to `scrub` now: damage was met, or a cycle may have brought content back


class Budget:
    """How much one round of background work may write; shared by all that work in it. Thread-safe enough: a hint."""

    def __init__(self, limit: float = math.inf) -> None:
        """`limit` bytes."""
        self.limit = limit
        self.spent = 0

    def spend(self, count: int) -> None:
        self.spent += count

    @property
    def exhausted(self) -> bool:
        return self.spent >= self.limit


@dataclass(slots=True)
class MaintainReport:
    merged: list[tuple[int, ...]] = field(default_factory=list)  # newest cycles of the layers that became one
    removed: list[int] = field(default_factory=list)  # points that are gone
    left_bytes: int = 0  # about how much is still to be written; it goes on with the next call
    no_room: NoSpace | None = None  # what of it cannot be done before there is room

    @property
    def finished(self) -> bool:
        return not self.left_bytes and self.no_room is None


class Replica(Protocol):
    """What the store keeps of one VM. At most one cycle is being received at a time."""

    def state(self) -> TargetState:
        """Term, newest committed cycle and the durable part of an unfinished one, as a crash now would leave them."""
        ...

    def set_term(self, term: int) -> None:
        """Durable before it returns. Raises ValueError when it would fall."""
        ...

    def begin(self, header: CycleHeader, *, resume_after: int) -> None:
        """Start receiving a cycle, or go on with the unfinished one of the same id, cut back to batch `resume_after`.

        A different unfinished cycle is dropped. Raises NoSpace, BadName for a disk id; ValueError when `resume_after`
        exceeds what is durable, or the header does not follow the newest committed cycle.
        Afterwards `state` names this cycle as unfinished with `durable` == `resume_after` and the chain digest there.
        """
        ...

    def put(self, batch: Batch, digest: bytes) -> None:
        """Stage one batch (already validated against the header); `digest` is the chain digest after it.

        A cluster comes once in a cycle. Not durable until `sync`. Raises NoSpace (staged ones stay), BadBatch for a
        malformed frame or a rule broken (nothing of it is written), WriteFailed (the cycle is dropped).
        """
        ...

    def sync(self) -> int:
        """Make everything staged durable; the sequence of the last durable batch. Raises NoSpace, WriteFailed."""
        ...

    def commit(self) -> PointInfo:
        """Finish the layers of all disks and publish them with one manifest rename; durable before it returns.

        Syncs what is staged. Raises NoSpace (the cycle goes on once there is room: commit again) and WriteFailed.
        """
        ...

    def abandon(self) -> None:
        """Drop the unfinished cycle, if any."""
        ...

    def points(self) -> list[PointInfo]:
        """Committed cycles that still exist as points, oldest first."""
        ...

    def attach(self, cycle: int, owner: str) -> tuple[AttachedDisk, ...]:
        """Pin a point durably for `owner` (a test or a failover) and say where its disks are. Repeatable.

        Raises PointMissing, BadName, NoSpace, WriteFailed, StoreDamaged; then the point is pinned no more than before.
        """
        ...

    def detach(self, owner: str) -> None:
        """Remove the pins of `owner`. Repeatable."""
        ...

    def lost(self) -> list[PointInfo]:
        """Points older than the newest whose description is lost, oldest first.

        They are told so that nobody takes them for removed, until `maintain` is not told to keep them.
        """
        ...

    def mark(self, cycle: int, *, keep: bool | None, name: str | None, lock_seconds: int | None) -> PointInfo:
        """Keep a point or let it go, name it (empty: no name), lock it from now on; None leaves that as it is.

        Durable; repeatable, a lock is never shortened. Raises PointMissing, PointLocked when it is let go, BadName,
        BadLock, NoSpace, WriteFailed.
        """
        ...

    def wanted(self) -> tuple[Wanted, ...]:
        """Clusters the newest point lacks, told in `state` too; at most 4096 runs at a time, the rest after them."""
        ...

    def want(self, runs: Iterable[Wanted]) -> None:
        """These are lacking until a cycle was committed that brought them. Durable. Raises NoSpace, WriteFailed."""
        ...

    def maintain(
        self, *, keep: Sequence[int], up_to: int | None = None, budget: Budget | None = None
    ) -> MaintainReport:
        """Merge layers so that the chain stays short and gives back what no point needs any more.

        Points in `keep`, pinned, kept or locked ones and the newest stay, and those after cycle `up_to`, which came
        after it was decided what to keep. Safe to kill at any instant; work that the budget cut short goes on with the
        next call. Runs beside `put`; never touches a layer a pinned point stands on.
        """
        ...

    def awaited(self) -> AwaitedSeed | None:
        """The seed this replica waits for since the commit of a placeholder."""
        ...

    def seed_begin(self, id: bytes) -> None:  # noqa: A002  # the seed's id
        """Start reading the seed in; what an earlier attempt left is dropped. Runs beside `put` and `maintain`.

        Raises SeedNotAwaited, NoSpace, WriteFailed.
        """
        ...

    def seed_put(self, batch: Batch) -> None:
        """Stage clusters of the base: `disk` is an index into the awaited disks, clusters of a disk come ascending.

        What lies past the disk's end at the placeholder is left out; zeros need not come. Raises NoSpace (it may be
        called again), BadBatch (nothing of it is kept), WriteFailed (the attempt is dropped).
        """
        ...

    def seed_commit(self, *, after_cycle: int, lacking: Sequence[Wanted]) -> None:
        """Put the base in place, durably. Points up to `after_cycle` are older than the seed and never recoverable;
        later ones are once all of `lacking` came with ordinary cycles: it is wanted from now on.

        After a crash at any instant the replica waits for its seed still, or has it. Raises NoSpace, WriteFailed.
        """
        ...

    def seed_abandon(self) -> None:
        """Drop what was staged. Repeatable."""
        ...

    def fingerprints(self, disk: str, start: int, count: int, *, cycle: int = 0) -> Iterator[tuple[int, bytes]]:
        """(cluster, fingerprint) at a point, 0: the newest cycle; zero clusters left out; from the side files.

        Raises PointMissing, StoreDamaged.
        """
        ...

    def check(self, *, cycle: int = 0, repair: bool = False) -> Iterator[Checked]:
        """Read and check everything that is stored, at full speed, or only what one point stands on.

        With `repair`, what can be mended here is, and the rest of the newest point is wanted. May be left at any step;
        runs beside everything else. Raises PointMissing.
        """
        ...

    def scrub(self, count: int, now: float) -> ScrubState:
        """Check and mend about `count` bytes more of everything, where the last call left off, also before a restart.

        `now`: seconds since 1970. A round that ends begins again with the next call. Runs beside everything else.
        """
        ...

    def scrubbed(self) -> ScrubState: ...

    def verify(self, *, cycle: int = 0) -> Iterator[Finding]:
        """What a `check` without repair finds. Slow; empty: all is well. Raises PointMissing."""
        ...

    def close(self) -> None: ...


class ReplicaStore(Protocol):
    """All replicas of one target host."""

    def open(self, vm_id: str) -> Replica:
        """The VM's replica; garbage of crashes is collected.

        Raises ReplicaMissing, BadName, StoreDamaged, TermLost.
        """
        ...

    def create(self, vm_id: str, *, term: int) -> Replica:
        """An empty replica, or the existing one (its term unchanged).

        Raises NoSpace, BadName, StoreDamaged, TermLost.
        """
        ...

    def give_term(self, vm_id: str, term: int) -> None:
        """For a replica that lost its own, one that is newer than any before it; others stay as they are.

        Durable. Raises BadName, NoSpace, WriteFailed.
        """
        ...

    def remove(self, vm_id: str) -> None:
        """Delete a replica with all points; repeatable. Raises PointPinned while in use, PointLocked."""
        ...

    def replicas(self) -> list[str]: ...

    def free_bytes(self) -> int: ...

    def total_bytes(self) -> int: ...
