"""A source's fingerprint index made anew from what its target says it has."""

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Final

from hyperv_host_agent.changes.fingerprints import FingerprintIndex, Staging
from hyperv_host_agent.reading import Reader
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry
from hyperv_host_agent.replication.frames import MAX_DISKS
from hyperv_host_agent.wire import BadMessage
from twinsite.api.host.v1.replication_pb2 import FingerprintsChunk
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import clusters

Chunks = AsyncGenerator[FingerprintsChunk, None]
_CHUNK_BYTES: Final = 64 << 10
_DISK_BYTES: Final = 64 << 40  # what an index file may be asked to describe
_SHRUNK: Final = 2  # times what the source has now: the disks were larger in the target's cycle
_LEAST: Final = 1 << 18  # clusters, 16 GiB: 4 MiB of fingerprints


async def fetch(
    chunks: Chunks, cycle: Committed, reader: Reader, present: Sequence[DiskGeometry]
) -> tuple[DiskGeometry, ...]:
    """The index describes `cycle` when it returns the disks of that cycle (without their names).

    `present`: the source's disks now. They may have shrunk since, but a target fills no more of this host's disk than
    twice what they need; of a disk beyond that nothing is kept, and it is not returned: so it is sent whole. Raises
    what `chunks` raises, and BadMessage; then the index is as it was.
    """
    told, first = await _disks(chunks)
    disks = _bounded(told, present)
    staging = await reader.run(reader.index.stage, cycle, disks, parent=None)
    try:
        at = (0, 0)  # disk, and the first cluster that may come next
        chunk: FingerprintsChunk | None = first
        while chunk is not None:
            at = await reader.run(_put, staging, told, {disk.id for disk in disks}, at, chunk)
            chunk = await anext(chunks, None)
        await reader.run(_apply, reader.index, staging, cycle)
    finally:
        await reader.run(staging.close)
    return tuple(disks)


async def _disks(
    chunks: Chunks,
) -> tuple[list[DiskGeometry], FingerprintsChunk | None]:
    """The disks of the cycle, and the first chunk that has fingerprints."""
    disks: list[DiskGeometry] = []
    async for chunk in chunks:
        if chunk.fingerprints:
            return disks, chunk
        if not chunk.disk_id or not 0 < chunk.disk_bytes <= _DISK_BYTES or len(disks) == MAX_DISKS:
            raise BadMessage(f"fingerprints of a disk of {chunk.disk_bytes} bytes, disk {len(disks) + 1} of its VM")
        if any(chunk.disk_id == disk.id for disk in disks):
            raise BadMessage("fingerprints name a disk twice")
        disks.append(DiskGeometry(chunk.disk_id, chunk.disk_bytes))
    if not disks:
        raise BadMessage("fingerprints without a disk")
    return disks, None


def _bounded(told: list[DiskGeometry], present: Sequence[DiskGeometry]) -> list[DiskGeometry]:
    """Of the disks that are told those whose fingerprints are kept. Raises BadMessage when there is none."""
    room, kept = _SHRUNK * sum(clusters(disk.size) for disk in present) + _LEAST, []
    ours = {disk.id for disk in present}
    for disk in sorted(told, key=lambda one: one.id not in ours):
        if clusters(disk.size) <= room:
            room -= clusters(disk.size)
            kept.append(disk)
    if not kept:
        raise BadMessage(f"fingerprints of {sum(disk.size for disk in told)} bytes, far more than the VM has")
    return [disk for disk in told if disk in kept]


def _put(
    staging: Staging, disks: list[DiskGeometry], kept: Collection[str], at: tuple[int, int], chunk: FingerprintsChunk
) -> tuple[int, int]:
    number = next((number for number, disk in enumerate(disks) if disk.id == chunk.disk_id), -1)
    count, rest = divmod(len(chunk.fingerprints), FINGERPRINT_BYTES)
    if rest or not count or len(chunk.fingerprints) > _CHUNK_BYTES:
        raise BadMessage(f"{len(chunk.fingerprints)} bytes of fingerprints")
    if (number, chunk.start) < at or number < 0 or chunk.start + count > clusters(disks[number].size):
        raise BadMessage(f"fingerprints of clusters {chunk.start}+{count} are out of order or beyond the disk")
    if chunk.disk_id in kept:
        staging.put(chunk.disk_id, range(chunk.start, chunk.start + count), chunk.fingerprints)
    return number, chunk.start + count


def _apply(index: FingerprintIndex, staging: Staging, cycle: Committed) -> None:
    staging.seal()
    index.apply(cycle)
