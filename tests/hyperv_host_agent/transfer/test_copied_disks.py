"""What a copy reads of disks that change while it runs."""

from pathlib import Path

from hyperv_host_agent import wire
from hyperv_host_agent.changes.fingerprints import FingerprintIndex
from hyperv_host_agent.changes.memory import MemoryChangeSource
from hyperv_host_agent.pending import Pending
from hyperv_host_agent.reading import Compressors, Reader
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.sending import ReadSlice
from hyperv_host_agent.replication.state import Position
from hyperv_host_agent.store.formats import zstd_frame
from twinsite.digest import CHAIN_START
from twinsite.extents import CLUSTER

HALF = CLUSTER // 2
ANNOUNCED = tuple(
    DiskGeometry(name, size) for name, size in (("grown", CLUSTER + HALF), ("cut", 3 * CLUSTER), ("gone", CLUSTER))
)


async def copied(reader: Reader, header: CycleHeader) -> dict[str, bytes]:
    """The disks as the whole copy brings them."""
    content = {disk.id: bytearray(b"?" * (-(-disk.size // CLUSTER) * CLUSTER)) for disk in header.disks}
    position, sequence, digest = Position(), 1, CHAIN_START
    while position.disk < len(header.disks):
        built, position, _ = await reader.slice(ReadSlice(1, header, sequence, digest, position, suppress=False))
        if built is None:
            continue
        sequence, digest = sequence + 1, built.ready.digest
        batch = wire.batch_of(wire.decode(bytes(built.message)))
        held = content[header.disks[batch.disk].id]
        for run in batch.zero_runs:
            held[run.start * CLUSTER : run.end * CLUSTER] = bytes(run.count * CLUSTER)
        at = 0
        for cluster, length in zip(batch.clusters, batch.lengths, strict=True):
            frame = bytes(batch.payload[at : at + length])
            held[cluster * CLUSTER : (cluster + 1) * CLUSTER] = zstd_frame.content(frame)
            at += length
    return {disk: bytes(held) for disk, held in content.items()}


async def test_a_copy_brings_its_disks_in_the_sizes_it_announced(tmp_path: Path) -> None:
    source = MemoryChangeSource("vm", ANNOUNCED, contents={disk.id: b"a" * disk.size for disk in ANNOUNCED})
    source.resize("grown", 3 * CLUSTER)
    source.write("grown", 0, b"g" * 3 * CLUSTER)
    source.resize("cut", CLUSTER + HALF)
    source.remove_disk("gone")
    compressors = Compressors(2)
    reader = Reader(source, FingerprintIndex(tmp_path), Pending(tmp_path), compressors, compression=True)
    header = CycleHeader("vm", b"i" * 16, 1, 0, 1, Kind.INITIAL, 0.0, "none", ANNOUNCED)
    try:
        content = await copied(reader, header)
    finally:
        await reader.close()
        compressors.close()
    assert content == {
        "grown": (b"g" * (CLUSTER + HALF)).ljust(
            2 * CLUSTER, b"\0"
        ),  # what lies past the old end comes with the next cycle
        "cut": (b"a" * (CLUSTER + HALF)).ljust(3 * CLUSTER, b"\0"),
        "gone": bytes(CLUSTER),
    }
