"""`points-1000`: a thousand retained points on a 4 GiB disk. How fast one opens, and what space they take.

A quarter of the disk holds content first; then every cycle writes 1 MiB in clusters, most of them in a hot tenth, and
all cycles stay points. Space is what the replica's files occupy (`st_blocks`), against the frames that came, each
counted once: what no store could leave out. Opening is `attach`, an overlay on it, and the first MiB read through it
by qemu-img; and the same with the reader of the embedded hypervisor. The oldest point lies inside a pack, so its view
is built first.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench import report
from bench.layer_write import content
from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store.base import Replica
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.formats.qcow2 import ChainReader
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER
from twinsite.units import GiB, MiB

VM = "bench"
SIZE = 4 * GiB
CHANGED = 16  # clusters a cycle
OPENS_WITHIN = 3.0  # seconds
BATCH = 32  # clusters


def fill(replica: Replica, points: int, frames: list[bytes]) -> tuple[int, float, float]:
    """Bytes of frames that came, seconds of receiving, seconds of maintaining."""
    dice, parent = random.Random(1), b""
    total = SIZE // CLUSTER
    hot = total // 10
    came, receiving, maintaining = 0, 0.0, 0.0
    for number in range(1, points + 1):
        if number == 1:
            indexes = list(range(0, total, 4))
        else:
            cold = dice.sample(range(total), CHANGED // 4)
            indexes = sorted({*cold, *dice.sample(range(hot), CHANGED - len(cold))})
        header = CycleHeader(
            vm_id=VM,
            id=number.to_bytes(16),
            number=number,
            parent=number - 1,
            parent_id=parent,
            term=1,
            kind=Kind.DELTA,
            instant=float(number),
            consistency="crash",
            disks=(DiskGeometry("disk", SIZE),),
        )
        started = time.perf_counter()
        replica.begin(header, resume_after=0)
        for sequence, start in enumerate(range(0, len(indexes), BATCH), 1):
            part = indexes[start : start + BATCH]
            chosen = [frames[dice.randrange(len(frames))] for _ in part]
            batch = Batch(
                sequence=sequence,
                disk=0,
                clusters=part,
                lengths=list(map(len, chosen)),
                fingerprints=b"".join(fingerprint(b"%d %d" % (number, index)) for index in part),
                zero_runs=(),
                payload=b"".join(chosen),
            )
            came += len(batch.payload)
            replica.put(batch, bytes(16))
        replica.commit()
        committed = time.perf_counter()
        replica.maintain(keep=range(number + 1))
        receiving += committed - started
        maintaining += time.perf_counter() - committed
        parent = header.id
    return came, receiving, maintaining


def occupied(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def through_qemu(replica: Replica, cycle: int, folder: Path) -> tuple[float, float, int, int]:
    """Seconds until a point's first MiB was read, seconds of that in `attach`, layers, bytes of its view."""
    overlay = folder / "overlay.qcow2"
    started = time.perf_counter()
    disk = replica.attach(cycle, "bench")[0]
    attached = time.perf_counter()
    top = str(disk.layers[-1].absolute())
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", top, str(overlay))
    run("qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1", f"if={overlay}", f"of={folder / 'first'}")
    read = time.perf_counter()
    view = disk.layers[-1] if ".view." in disk.layers[-1].name else None
    size = view.stat().st_blocks * 512 if view else 0
    replica.detach("bench")
    overlay.unlink()
    return read - started, attached - started, len(disk.layers), size


def through_ours(replica: Replica, cycle: int, _folder: Path) -> tuple[float, float, int, int]:
    """As `through_qemu`."""
    started = time.perf_counter()
    disk = replica.attach(cycle, "bench")[0]
    attached = time.perf_counter()
    with closing(ChainReader(disk.layers)) as reader:
        reader.read(0, MiB)
    read = time.perf_counter()
    replica.detach("bench")
    return read - started, attached - started, len(disk.layers), 0


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def measured(
    how: Callable[[Replica, int, Path], tuple[float, float, int, int]], replica: Replica, cycle: int, folder: Path
) -> tuple[float, float, float, float]:
    """Medians of five."""
    rounds = [how(replica, cycle, folder) for _ in range(5)]
    seconds, attach, layers, view = (statistics.median(column) for column in zip(*rounds, strict=True))
    return seconds, attach, layers, view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--at", type=Path, help="a directory on the file system to measure")
    options = parser.parse_args()
    frames = content()
    with tempfile.TemporaryDirectory(dir=options.at) as place:
        folder = Path(place)
        store = ChainStore(folder / "store")
        replica = store.create(VM, term=1)
        came, receiving, maintaining = fill(replica, options.points, frames)
        started = time.perf_counter()
        replica.close()
        replica = store.open(VM)
        reopening = time.perf_counter() - started
        os.sync()
        space, points = occupied(folder / "store" / VM), len(replica.points())
        print(
            f"{points} points, {came / 1e6:.0f} MB of frames; received in {receiving:.0f} s, maintained in"
            f" {maintaining:.0f} s, opened again in {reopening:.2f} s"
        )
        newest, oldest = options.points, 2  # the first is the base, and needs no view
        if shutil.which("qemu-img"):
            seconds, _, layers, _ = measured(through_qemu, replica, newest, folder)
            report.line(f"points-{points} newest opens", seconds, OPENS_WITHIN, "goal", "s")
            before, attach, _, view = measured(through_qemu, replica, oldest, folder)
            print(f"newest stands on {layers:.0f} files; oldest attached in {attach:.2f} s, view {view / 1e6:.0f} MB")
            report.line(f"points-{points} oldest opens", before, OPENS_WITHIN, "goal", "s")
        seconds, *_ = measured(through_ours, replica, newest, folder)
        report.line(f"points-{points} newest opens, embedded", seconds, OPENS_WITHIN, "goal", "s")
        report.line(f"points-{points} space", space / 1e6, came / 1e6, "frames that came, once each", "MB")
        replica.close()


if __name__ == "__main__":
    main()
