"""A source's fingerprint index made anew from what its target says it has."""

from collections.abc import AsyncGenerator
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


async def fetch(chunks: Chunks, cycle: Committed, reader: Reader) -> tuple[DiskGeometry, ...]:
    """The index describes `cycle` when it returns the disks of that cycle (without their names).

    Raises what `chunks` raises, and BadMessage; then the index is as it was.
    """
    disks, first = await _disks(chunks)
    staging = await reader.run(reader.index.stage, cycle, disks, parent=None)
    try:
        at = (0, 0)  # disk, and the first cluster that may come next
        chunk: FingerprintsChunk | None = first
        while chunk is not None:
            at = await reader.run(_put, staging, disks, at, chunk)
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


def _put(staging: Staging, disks: list[DiskGeometry], at: tuple[int, int], chunk: FingerprintsChunk) -> tuple[int, int]:
    number = next((number for number, disk in enumerate(disks) if disk.id == chunk.disk_id), -1)
    count, rest = divmod(len(chunk.fingerprints), FINGERPRINT_BYTES)
    if rest or not count or len(chunk.fingerprints) > _CHUNK_BYTES:
        raise BadMessage(f"{len(chunk.fingerprints)} bytes of fingerprints")
    if (number, chunk.start) < at or number < 0 or chunk.start + count > clusters(disks[number].size):
        raise BadMessage(f"fingerprints of clusters {chunk.start}+{count} are out of order or beyond the disk")
    staging.put(chunk.disk_id, range(chunk.start, chunk.start + count), chunk.fingerprints)
    return number, chunk.start + count


def _apply(index: FingerprintIndex, staging: Staging, cycle: Committed) -> None:
    staging.seal()
    index.apply(cycle)
