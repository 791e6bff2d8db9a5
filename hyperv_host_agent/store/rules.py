"""What every store checks before it keeps anything: ids that become paths, headers, batches. Pure."""

import re
from bisect import bisect_left
from typing import Final

from hyperv_host_agent.replication.cycle import ID_BYTES, Batch, CycleHeader, Kind, TargetState
from hyperv_host_agent.store.base import BadBatch, BadName
from hyperv_host_agent.store.formats import zstd_frame
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import clusters

MAX_DISK_BYTES: Final = 64 << 40  # what VHDX and the formats' tables are held to
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_TAKEN: Final = frozenset({"points", "pins", "keeps"})  # directories that stand beside those of disks
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


def check_id(kind: str, name: str) -> str:
    """The id of a VM or a disk, safe as one part of a path. Raises BadName."""
    if not _ID.fullmatch(name) or name.lower() in _TAKEN:
        raise BadName(kind, name)
    return name


def check_owner(name: str) -> str:
    """Who pins a point, safe as one part of a path. Raises BadName."""
    if not _OWNER.fullmatch(name) or name.endswith((".copy", ".tmp")):
        raise BadName("owner of a pin", name)
    return name


def check_header(header: CycleHeader, vm_id: str, state: TargetState) -> None:
    """That the cycle may come next on this replica. Raises BadName, and ValueError for what the caller must prevent."""
    for disk in header.disks:
        check_id("disk", disk.id)
        if not 0 < disk.size <= MAX_DISK_BYTES or disk.size % 512:
            raise ValueError(f"disk {disk.id} of {disk.size} bytes")
    committed = state.committed.number if state.committed else 0
    problem = (
        (header.vm_id != vm_id and f"it is of VM {header.vm_id}")
        or (header.number != committed + 1 and f"the newest committed one is {committed}")
        or (header.parent != committed and f"its parent is {header.parent}")
        or (header.term < state.term and f"its term {header.term} is below {state.term}")
        or (len(header.id) != ID_BYTES and "its id is malformed")
        or (len({disk.id for disk in header.disks}) != len(header.disks) and "it names a disk twice")
        or (header.placeholder and (header.kind is not Kind.INITIAL or committed) and "a placeholder comes first")
        or (header.parent_id and state.committed and header.parent_id != state.committed.id and "it has another parent")
    )
    if problem:
        raise ValueError(f"cycle {header.number} does not fit {vm_id}: {problem}")


def check_batch(header: CycleHeader, batch: Batch, *, sequence: int) -> None:
    """That a batch is the next one and agrees with itself and with its disk's geometry. Raises BadBatch."""
    problem = _problem(header, batch, sequence)
    if problem:
        raise BadBatch(batch.sequence, problem)
    try:
        zstd_frame.check(batch.payload, batch.lengths)
    except zstd_frame.BadFrame as error:
        where = f"cluster {batch.clusters[error.position]}: " if batch.clusters else ""
        raise BadBatch(batch.sequence, where + error.problem) from error


def _problem(header: CycleHeader, batch: Batch, sequence: int) -> str | None:
    if header.placeholder:
        return "a placeholder has no content"
    if batch.sequence != sequence:
        return f"batch {sequence} is due"
    if not 0 <= batch.disk < len(header.disks):
        return f"there is no disk {batch.disk}"
    end = clusters(header.disks[batch.disk].size)
    indexes = batch.clusters
    if len(batch.lengths) != len(indexes) or len(batch.fingerprints) != len(indexes) * FINGERPRINT_BYTES:
        return f"{len(indexes)} clusters, {len(batch.lengths)} lengths, {len(batch.fingerprints)} fingerprint bytes"
    previous = -1
    for index in indexes:
        if index <= previous:
            return f"cluster {index} after {previous}"
        previous = index
    if previous >= end:
        return f"cluster {previous} lies beyond the disk's {end}"
    reached = 0
    for run in batch.zero_runs:
        if run.start < reached or run.count < 1:
            return f"zero run {run.start}+{run.count} is out of order"
        if run.end > end:
            return f"zero run {run.start}+{run.count} reaches beyond the disk's {end} clusters"
        at = bisect_left(indexes, run.start)
        if at < len(indexes) and indexes[at] < run.end:
            return f"cluster {indexes[at]} is both data and zeros"
        reached = run.end
    return None
