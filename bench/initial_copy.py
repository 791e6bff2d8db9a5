"""Initial copy of a 4 GiB disk between two host agents over TLS, against `nbdcopy` over TLS; same run, same disk.

What is timed ends when the copy is durable at the target: the layer committed here, the flush answered there. Once over
loopback, once with `--rate` through a link of that speed between two network namespaces.
"""

import argparse
import contextlib
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from bench import disk, link, nbd, report
from bench.rig import Rig
from twinsite.units import GiB, MiB


def ours(image: Path, folder: Path, *, compression: bool, at: str, inside: tuple[str, ...]) -> tuple[float, int, int]:
    """Seconds, and the peak memory of source and target in bytes."""
    rig = Rig(folder, target_at=at, inside={"b": inside})
    rig.lay_out({"vda": image}, compression=compression)
    try:
        target = rig.start("b")
        source = rig.start("a")
        seconds = rig.wait_for(1)
        return seconds, source.peak, target.peak
    finally:
        rig.stop()
        shutil.rmtree(folder)


def main(size: int, rounds: int, rate: str) -> None:
    if missing := nbd.missing() + (link.missing() if rate else []):
        sys.exit(f"initial copies are measured with {' and '.join(missing)}: see deploy/system-packages bench")
    seconds: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = defaultdict(int)
    with (
        tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name,
        link.shaped(rate) if rate else contextlib.nullcontext(("127.0.0.1", ())) as (at, inside),
    ):
        root = Path(name)
        image = root / "disk.raw"
        disk.make(image, size)
        # In turns: what else the machine does hits all.
        for number in range(rounds):
            for compression in (True,) if rate else (False, True):
                key = "zstd" if compression else "raw"
                taken, *memory = ours(image, root / f"{key}-{number}", compression=compression, at=at, inside=inside)
                seconds[key].append(taken)
                for side, peak in zip(("source", "target"), memory, strict=True):
                    peaks[side] = max(peaks[side], peak)
            seconds["nbd"].append(nbd.copy_seconds(image, root / f"nbd-{number}", at=at, inside=inside))
    median = {key: statistics.median(taken) for key, taken in seconds.items()}
    peer = "nbdcopy over TLS, flushed"
    if rate:
        report.line(f"initial-{rate}", median["zstd"], median["nbd"], peer, "s")
        return
    report.line("initial-loopback", median["raw"], median["nbd"], peer, "s")
    report.line("initial-loopback-zstd", median["zstd"], median["nbd"], peer, "s")
    for side, peak in peaks.items():
        report.line(f"peak-memory-{side}", peak / MiB, 150 + 64, "150 MiB + 64 MiB for the transfer", "MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", default="", help="of the link between the hosts, for example 1gbit; as root")
    given = parser.parse_args()
    main(int(given.gib * GiB) // disk.STRIPE * disk.STRIPE, given.rounds, given.rate)
