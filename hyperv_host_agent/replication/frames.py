"""What a target demands of a cycle's frames before a byte of them is kept; pure.

Everything here comes from a peer. A frame that breaks a rule is refused whole.
"""

from bisect import bisect_left
from typing import Final

from hyperv_host_agent.replication.cycle import ID_BYTES, Batch, CycleHeader, DiskGeometry, Kind, TargetState
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import Aborted, Denied, Failed, InvalidInput, Precondition
from twinsite.extents import CLUSTER, clusters

MAX_DISKS: Final = 64
MAX_MACHINE_BYTES: Final = 1 << 20
MAX_FRAME_BYTES: Final = CLUSTER + 256  # a frame of raw blocks is the cluster and a few bytes
MAX_BATCH_BYTES: Final = 4 << 20
MAX_CLUSTERS: Final = 4096  # data clusters of one batch; tiny frames fill it before bytes do
MAX_ZERO_RUNS: Final = 4096
MAX_BATCHES: Final = 1 << 40
_CONSISTENCY: Final = {"none", "crash", "application"}


class InvalidFrame(InvalidInput):
    public = "a replication frame breaks the rules: {error.problem}"
    still_works = "nothing of it was written"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class NotGranted(Denied):
    public = "the grant does not cover this cycle: {error.problem}"
    still_works = "nothing of it was written"
    next_step = "replication goes on by itself once the coordinator has renewed the grant"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class WrongPlace(Precondition):
    public = "the cycle does not follow what the target has: {error.problem}"
    still_works = "the target keeps what it has; the source asks again where to go on"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class TakenOver(Aborted):
    public = "a newer call of the source took over"
    still_works = "what was acked as durable stays"


class Damaged(Failed):
    public = "cycle {error.number} arrived damaged: the digest over its batches is another"
    still_works = "nothing of it was committed; it is sent again"
    next_step = "if it happens again, check memory and network of both hosts"

    def __init__(self, number: int) -> None:
        self.number = number


def check_header(header: CycleHeader, state: TargetState, granted: tuple[DiskGeometry, ...]) -> None:
    """That the cycle is well-formed, granted and next. Raises InvalidFrame, NotGranted, WrongPlace."""
    if problem := _malformed(header):
        raise InvalidFrame(problem)
    sizes = {disk.id: disk.size for disk in granted}
    for disk in header.disks:
        if disk.id not in sizes:
            raise NotGranted(f"disk {disk.id[:64]!r} is not in it")
        if disk.size > sizes[disk.id]:
            raise NotGranted(f"disk {disk.id} has {disk.size} bytes, {sizes[disk.id]} are granted")
    newest = state.committed
    number, id_ = (newest.number, newest.id) if newest else (0, b"")
    if header.number != number + 1:
        raise WrongPlace(f"cycle {header.number} came, {number + 1} is next")
    if header.parent != number or header.parent_id != id_:
        raise WrongPlace(f"it stands on another cycle than {number} here")
    if header.kind is Kind.INITIAL and number:
        raise WrongPlace(f"an initial copy came, but cycle {number} is here")
    if header.compared and state.awaiting_seed:
        # It had one when the source last asked, and was restored to before that; another may hold other things.
        raise WrongPlace("it relies on a seed that is awaited here")


def check_resume(header: CycleHeader, state: TargetState, resume_after: int) -> None:
    """That the source goes on within what is durable of just this cycle. Raises WrongPlace."""
    unfinished = state.unfinished
    if resume_after and (
        unfinished is None
        or (unfinished.number, unfinished.id) != (header.number, header.id)
        or resume_after > unfinished.durable
    ):
        raise WrongPlace(f"batch {resume_after} of it is not durable here")


def _malformed(header: CycleHeader) -> str | None:
    if len(header.id) != ID_BYTES:
        return f"a cycle id of {len(header.id)} bytes"
    if header.number < 1 or header.term < 0:
        return f"cycle {header.number} of term {header.term}"
    if header.consistency not in _CONSISTENCY:
        return "an unknown consistency"
    if (header.consistency == "none") != (header.kind is not Kind.DELTA):
        return f"consistency {header.consistency} of a cycle of kind {header.kind.value}"
    if header.placeholder and header.kind is not Kind.INITIAL:
        return f"a placeholder of kind {header.kind.value}"
    if (header.parent == 0) != (header.kind is Kind.INITIAL):
        return f"parent {header.parent} of a cycle of kind {header.kind.value}"
    if not 1 <= len(header.disks) <= MAX_DISKS:
        return f"{len(header.disks)} disks"
    if len({disk.id for disk in header.disks}) != len(header.disks):
        return "a disk is named twice"
    if any(disk.size < 1 or disk.size % 512 for disk in header.disks):
        return "a disk's size is not a positive number of sectors"
    if len(header.machine) > MAX_MACHINE_BYTES:
        return f"a VM description of {len(header.machine)} bytes"
    return None


def check_batch(header: CycleHeader, batch: Batch, expected: int) -> None:
    """That a batch is the next one, within its disk and what it says it is. Raises InvalidFrame."""
    if problem := _batch_problem(header, batch, expected):
        raise InvalidFrame(f"batch {batch.sequence}: {problem}")


def _batch_problem(header: CycleHeader, batch: Batch, expected: int) -> str | None:
    if header.placeholder:
        return "a placeholder has no content"
    if batch.sequence != expected or expected > MAX_BATCHES:
        return f"{expected} is next"
    if not 0 <= batch.disk < len(header.disks):
        return f"there is no disk {batch.disk}"
    count = len(batch.clusters)
    if count > MAX_CLUSTERS or len(batch.zero_runs) > MAX_ZERO_RUNS:
        return f"{count} clusters and {len(batch.zero_runs)} zero runs"
    if not count and not batch.zero_runs:
        return "it is empty"
    if len(batch.lengths) != count or len(batch.fingerprints) != count * FINGERPRINT_BYTES:
        return "its descriptors differ in number"
    if any(not 1 <= length <= MAX_FRAME_BYTES for length in batch.lengths):
        return "a frame's length is out of bounds"
    if sum(batch.lengths) != len(batch.payload) or len(batch.payload) > MAX_BATCH_BYTES:
        return f"frames of {sum(batch.lengths)} bytes in a payload of {len(batch.payload)}"
    end = clusters(header.disks[batch.disk].size)
    previous = -1
    for cluster in batch.clusters:
        if cluster <= previous:
            return f"cluster {cluster} after {previous}"
        previous = cluster
    if previous >= end:
        return f"cluster {previous} lies beyond the disk's {end}"
    reached = 0
    for run in batch.zero_runs:
        if run.count < 1 or run.start < reached or run.end > end:
            return f"zero run {run.start}+{run.count} is out of order or bounds"
        at = bisect_left(batch.clusters, run.start)
        if at < count and batch.clusters[at] < run.end:
            return f"cluster {batch.clusters[at]} is data and zeros"
        reached = run.end
    return None
