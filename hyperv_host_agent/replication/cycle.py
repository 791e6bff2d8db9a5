"""What the two ends of a replication say about cycles; values only."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import Run

PROTOCOL: Final = 1
ID_BYTES: Final = 16


class Kind(enum.Enum):
    INITIAL = "initial"  # fuzzy copy; complete only with the delta that follows; not a recovery point
    DELTA = "delta"
    RESYNC = "resync"  # fuzzy copy over what the target has; like INITIAL complete only with the delta that follows


@dataclass(frozen=True, slots=True)
class DiskGeometry:
    id: str
    size: int  # bytes
    name: str = ""


@dataclass(frozen=True, slots=True)
class CycleHeader:
    """One cycle of one VM: one instant over all its disks (for INITIAL: the instant it was started)."""

    vm_id: str
    id: bytes  # ID_BYTES, drawn by the source: tells two attempts at one number apart
    number: int  # 1, 2, 3 …; rises by one with every committed cycle of the VM, whatever the term
    parent: int  # number of the cycle it stands on, 0: none
    term: int
    kind: Kind
    instant: float  # seconds since 1970, UTC, by the source's clock
    consistency: str  # "none" (INITIAL) | "crash" | "application"
    disks: tuple[DiskGeometry, ...]
    machine: bytes = b""  # serialized types.v1.Machine at that instant
    parent_id: bytes = b""  # id of the parent cycle: the same number may have been committed by another attempt
    placeholder: bool = False  # an INITIAL cycle without content: that comes on media
    compared: bool = False  # what the source believes its target has is left out of it


@dataclass(frozen=True, slots=True)
class Batch:
    """Clusters of one disk, as they travel: parallel arrays, and the frames of the data clusters back to back."""

    sequence: int  # 1, 2, 3 … inside its cycle
    disk: int  # index into CycleHeader.disks
    clusters: Sequence[int]  # of data clusters, ascending
    lengths: Sequence[int]  # of their frames
    fingerprints: bytes  # FINGERPRINT_BYTES each
    zero_runs: tuple[Run, ...]
    payload: bytes | memoryview

    def fingerprint(self, position: int) -> bytes:
        return self.fingerprints[position * FINGERPRINT_BYTES : (position + 1) * FINGERPRINT_BYTES]


@dataclass(frozen=True, slots=True)
class Committed:
    """A cycle a target holds durably, named so that two attempts at one number differ."""

    number: int
    id: bytes


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What a target durably holds of a cycle that was not committed."""

    number: int
    id: bytes
    durable: int  # batches 1..durable
    digest: bytes  # chain digest after batch `durable`


@dataclass(frozen=True, slots=True)
class Wanted:
    """Clusters of a disk the target lacks: damage, or a bad part of a seed."""

    disk: str
    run: Run


@dataclass(frozen=True, slots=True)
class TargetState:
    """What a target says of one VM in answer to Open."""

    term: int
    committed: Committed | None
    unfinished: Unfinished | None
    wanted: tuple[Wanted, ...] = ()  # to be sent with the next cycles, whatever the index says
    awaiting_seed: bool = False  # its base comes on media; the fingerprints of it are not known yet
    seed: bytes = b""  # which one: the id of its placeholder's cycle
    seed_after: int = 0  # cycles up to this number are older than the seed that came: no recovery points
