"""The port every change source implements. Synchronous; one caller thread per VM.

Except for content: `SourcePoint.read`, `read_now` and `holes_now` may be called by several threads at once.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.errors import Failed, Unreachable
from twinsite.extents import Run

UNTRACKED: Final = "its changes were not tracked before"  # the doubt of a first point


class SourceUnavailable(Unreachable):
    public = "the VM {error.vm_id} cannot be read now: {error.problem}"
    still_works = "changes go on being tracked; the next cycle brings them"

    def __init__(self, vm_id: str, problem: str) -> None:
        self.vm_id, self.problem = vm_id, problem


class SourceFailed(Failed):
    public = "reading {error.disk} of VM {error.vm_id} failed: {error.problem}"
    next_step = "check the disk on its host"

    def __init__(self, vm_id: str, disk: str, problem: str) -> None:
        self.vm_id, self.disk, self.problem = vm_id, disk, problem


class Tracking(enum.Enum):
    OK = "ok"  # everything changed since the anchor is known
    LOST = "lost"  # unknown or doubtful: read the disk and compare fingerprints


@dataclass(frozen=True, slots=True)
class Anchor:
    """The cycle a source has confirmed (`ack`), or None at the beginning."""

    cycle: int
    id: bytes


class SourcePoint(Protocol):
    """One instant over all disks, open for milliseconds to seconds. Closing it neither acks nor discards."""

    instant: float
    consistency: str  # what was really achieved
    disks: tuple[DiskGeometry, ...]
    tracking: Tracking
    doubt: str  # why not all that changed since the anchor is known, a phrase for people; empty: it is
    machine: bytes  # serialized types.v1.Machine

    def dirty(self, disk: str) -> Iterator[Run]:
        """Clusters that may differ since the anchor, ascending; all when tracking is LOST or without an anchor."""
        ...

    def holes(self, disk: str) -> Iterator[Run]:
        """Clusters known to be zero without reading, ascending."""
        ...

    def read(self, disk: str, run: Run) -> bytes:
        """Content at the instant; shorter than run.count clusters only at the disk's end. Raises SourceFailed."""
        ...

    def close(self) -> None: ...


class ChangeSource(Protocol):
    """Change tracking of one VM. At most one point is open, and at most one is neither acked nor discarded."""

    def status(self) -> tuple[Anchor | None, Tracking]:
        """After a restart of the agent too: what the last `ack` named, and whether tracking is whole since then."""
        ...

    def start(self) -> None:
        """Begin tracking, if it does not run yet; from now on every write is remembered. Raises SourceUnavailable."""
        ...

    def open_point(self, cycle: int, id: bytes, *, consistency: str) -> SourcePoint:  # noqa: A002  # the cycle's id
        """Freeze the set of changes and one instant over all disks. Raises SourceUnavailable."""
        ...

    def ack(self, cycle: int, id: bytes) -> None:  # noqa: A002
        """The target holds this point durably: it becomes the anchor, durably. Repeatable, also after a restart.

        Naming neither the point that waits (open or closed) nor the anchor changes nothing. What was written since
        the point opened stays dirty; tracking that was lost before it opened is whole again from it on.
        """
        ...

    def discard(self) -> None:
        """The point will not arrive: its changes belong to the next one. Repeatable; also after a restart."""
        ...

    def read_now(self, disk: str, run: Run) -> bytes:
        """Content as it is now, torn under the guest's writes perhaps; for the fuzzy initial copy only."""
        ...

    def holes_now(self, disk: str, run: Run) -> Iterator[Run]:
        """Clusters of the run that are zero now, known without reading, ascending; for the fuzzy copy only."""
        ...

    def disks(self) -> tuple[DiskGeometry, ...]:
        """As they are now: a VM's disks grow, shrink, come and go while it is protected.

        The next point has what changed so; of the other disks nothing is forgotten, and nothing is dirty for it.
        """
        ...

    def dirty_bytes(self) -> int:
        """Known dirty and not acked; for statistics."""
        ...

    def rest(self) -> None:
        """Let go of what `read_now` and `holes_now` keep open between calls; they may be called again."""
        ...

    def stop(self) -> None:
        """End tracking for good and delete its state."""
        ...
