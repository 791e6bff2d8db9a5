"""Initial copy of a 4 GiB disk between two host agents over TLS, against `nbdcopy` over TLS; same run, same disk.

What is timed ends when the copy is durable at the target: the layer committed here, the flush answered there.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from bench import disk, nbd, report
from bench.rig import Rig
from twinsite.units import GiB, MiB


def ours(image: Path, folder: Path, *, compression: bool) -> tuple[float, int, int]:
    """Seconds, and the peak memory of source and target in bytes."""
    rig = Rig(folder)
    rig.lay_out({"vda": image}, compression=compression)
    try:
        target = rig.start("b")
        source = rig.start("a")
        seconds = rig.wait_for(1)
        return seconds, source.peak, target.peak
    finally:
        rig.stop()
        shutil.rmtree(folder)


def main(size: int, rounds: int) -> None:
    if missing := nbd.missing():
        sys.exit(f"initial-loopback needs {' and '.join(missing)}: apt-get install libnbd-bin nbdkit")
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name:
        root = Path(name)
        image = root / "disk.raw"
        disk.make(image, size)
        # Best of the rounds, taken in turns: what else the machine does hits both.
        best: dict[str, float] = {}
        peaks = (0, 0)
        for number in range(rounds):
            for compression in (False, True):
                key = "zstd" if compression else "raw"
                seconds, *memory = ours(image, root / f"{key}-{number}", compression=compression)
                best[key] = min(seconds, best.get(key, seconds))
                peaks = max(peaks[0], memory[0]), max(peaks[1], memory[1])
            seconds = nbd.copy_seconds(image, root / f"nbd-{number}")
            best["nbd"] = min(seconds, best.get("nbd", seconds))
    report.line("initial-loopback", best["raw"], best["nbd"], "nbdcopy over TLS, flushed", "s")
    report.line("initial-loopback-zstd", best["zstd"], best["nbd"], "nbdcopy over TLS, flushed", "s")
    bound = 150 * MiB + 64 * MiB
    for side, peak in zip(("source", "target"), peaks, strict=True):
        report.line(f"peak-memory-{side}", peak / MiB, bound / MiB, "150 MiB + 64 MiB for the transfer", "MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the disk")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    main(int(given.gib * GiB) // disk.STRIPE * disk.STRIPE, given.rounds)
