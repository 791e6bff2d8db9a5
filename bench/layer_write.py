"""How fast the target stores what arrives: validate, write, journal, sync, finish the layer, commit.

The peer is the limit: the same stored bytes written to a file from front to back and synced once. Runs alternate;
the medians are compared. MB/s of disk content (64 KiB a cluster), of which `stored` is what reached the disk.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import zstandard

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store.chain import ChainStore
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER

VM = "bench"
BATCH = 32  # clusters: 2 MiB of the disk in a message
SYNC_EVERY = 64  # batches between durable watermarks


def content() -> list[bytes]:
    """Frames of real file content, which compresses about as disks do."""
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    data = b"".join(path.read_bytes() for path in sorted(Path("/usr/lib").rglob("*.so*"))[:60] if path.is_file())
    return [compressor.compress(data[at : at + CLUSTER]) for at in range(0, len(data) - CLUSTER, CLUSTER)][:2048]


def batches(frames: list[bytes], clusters: int) -> list[Batch]:
    made: list[Batch] = []
    for start in range(0, clusters, BATCH):
        indexes = list(range(start, min(start + BATCH, clusters)))
        part = [frames[index % len(frames)] for index in indexes]
        made.append(
            Batch(
                sequence=len(made) + 1,
                disk=0,
                clusters=indexes,
                lengths=list(map(len, part)),
                fingerprints=b"".join(fingerprint(index.to_bytes(8)) for index in indexes),
                zero_runs=(),
                payload=b"".join(part),
            )
        )
    return made


def ours(root: Path, made: list[Batch], clusters: int) -> float:
    store = ChainStore(root)
    replica = store.create(VM, term=1)
    header = CycleHeader(
        vm_id=VM,
        id=bytes(16),
        number=1,
        parent=0,
        term=1,
        kind=Kind.INITIAL,
        instant=0,
        consistency="none",
        disks=(DiskGeometry("disk", clusters * CLUSTER),),
    )
    started = time.perf_counter()
    replica.begin(header, resume_after=0)
    for batch in made:
        replica.put(batch, bytes(16))
        if batch.sequence % SYNC_EVERY == 0:
            replica.sync()
    replica.commit()
    seconds = time.perf_counter() - started
    replica.close()
    store.remove(VM)
    return seconds


def peer(root: Path, made: list[Batch]) -> float:
    path = root / "limit"
    started = time.perf_counter()
    fd, at = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), 0
    for batch in made:
        os.pwrite(fd, batch.payload, at)
        at += len(batch.payload)
    os.fsync(fd)
    os.close(fd)
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="disk content per run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at", type=Path, help="a directory on the file system to measure")
    options = parser.parse_args()
    clusters = int(options.gib * (1 << 30)) // CLUSTER
    made = batches(content(), clusters)
    stored = sum(len(batch.payload) for batch in made)
    with tempfile.TemporaryDirectory(dir=options.at) as folder:
        root = Path(folder)
        rounds = [(ours(root, made, clusters), peer(root, made)) for _ in range(options.rounds)]
    mb = clusters * CLUSTER / 1e6
    result, limit = (mb / statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{mb:.0f} MB of disk in {stored / 1e6:.0f} MB of frames")
    line = {
        "name": "layer-write",
        "ours": round(result),
        "peer": round(limit),
        "peer_name": "sequential pwrite + fsync of the same bytes",
        "ratio": round(result / limit, 2),
        "unit": "MB/s",
    }
    print("BENCH " + json.dumps(line, separators=(",", ":")))


if __name__ == "__main__":
    main()
