"""What a cycle costs: against `rsync`, against itself on a disk 64 times as large, and its bytes against zstd."""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from bench import changes, disk, link, report, rsync
from bench.rig import Rig
from twinsite.extents import CLUSTER
from twinsite.units import GiB, MiB

FREQUENCY = 2  # seconds; changes are made between two cycles
SCALE = 64
SETTLING = 3  # cycles, in which the compression finds what suits this way
RATE = "1gbit"  # of the link whose bytes are counted: on a fast one it is right not to compress


@contextmanager
def replicated(image: Path, folder: Path, *, at: str = "127.0.0.1", inside: tuple[str, ...] = ()) -> Iterator[Rig]:
    """Two agents with one VM whose disk is at the target already."""
    rig = Rig(folder, target_at=at, inside={"b": inside})
    rig.lay_out({"vda": image}, compression=True, frequency=FREQUENCY)
    try:
        rig.start("b")
        rig.start("a")
        rig.wait_for(2)
        yield rig
    finally:
        rig.stop()
        shutil.rmtree(folder)


def cycle(rig: Rig, size: int, count: int, seed: int) -> tuple[float, int]:
    """Seconds from instant to commit of `count` changed clusters, and the bytes that were sent."""
    made = changes.scattered(size, count, seed)
    before, sent = rig.newest(), link.sent_bytes(rig.ports["b"])
    changes.write(rig, made)
    seconds = changes.cycle_seconds(rig, before, count)
    return seconds, link.sent_bytes(rig.ports["b"]) - sent


def against_rsync(root: Path, size: int, rounds: int) -> None:
    image, copy = root / "disk.raw", root / "copy.raw"
    disk.make(image, size)
    count = size // 100 // CLUSTER
    ours, peer = [], []
    shutil.copy(image, copy)
    with rsync.server(root / "ssh") as server, replicated(image, root / "rig") as rig:
        for number in range(SETTLING + rounds):
            ours.append(cycle(rig, size, count, number)[0])
            peer.append(server.copy_seconds(image, copy))
    ours, peer = ours[SETTLING:], peer[SETTLING:]
    report.line("delta-1pct", statistics.median(ours), statistics.median(peer), "rsync --inplace over ssh", "s")
    image.unlink()
    copy.unlink()


def on_the_wire(root: Path, size: int, rounds: int) -> None:
    image = root / "disk.raw"
    disk.make(image, size)
    count = size // 100 // CLUSTER
    sent, least = [], []
    with link.shaped(RATE) as (at, inside), replicated(image, root / "wire", at=at, inside=inside) as rig:
        for number in range(rounds):
            sent.append(cycle(rig, size, count, number)[1])
            least.append(compressed(changes.scattered(size, count, number).values()))
    report.line(
        "wire-bytes",
        statistics.median(sent) / MiB,
        statistics.median(least) / MiB,
        f"zstd of the changed clusters, one by one; ours with TLS and framing through {RATE}",
        "MiB",
    )
    image.unlink()


def compressed(contents: Iterable[bytes]) -> int:
    """What the best of our levels or no compression makes of the clusters, one by one."""
    compressor = zstandard.ZstdCompressor(level=3)
    return sum(min(len(compressor.compress(content)), CLUSTER) for content in contents)


def scale(root: Path, size: int, rounds: int) -> None:
    count = 256
    taken = []
    for factor in (1, SCALE):
        image = root / f"sparse-{factor}.raw"
        changes.sparse(image, size * factor, 64 * MiB)
        with replicated(image, root / f"rig-{factor}") as rig:
            taken.append(statistics.median(cycle(rig, size, count, number)[0] for number in range(rounds)))
        image.unlink()
    small, large = taken
    report.line("delta-scale", large, small, f"the same changes on a disk 1/{SCALE} the size", "s")


def main(size: int, rounds: int) -> None:
    if missing := rsync.missing() + link.missing():
        sys.exit(f"changes are measured with {' and '.join(missing)}: see deploy/system-packages bench")
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name:
        against_rsync(Path(name), size, rounds)
        on_the_wire(Path(name), size, rounds)
        scale(Path(name), size, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the disk")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(int(given.gib * GiB) // disk.STRIPE * disk.STRIPE, given.rounds)
