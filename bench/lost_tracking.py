"""What lost tracking costs: a disk of which nothing is known any more, and nothing changed, is read and compared.

The agent of the source is stopped, what was known of the changes is deleted, the agent is started. What is timed is
the cycle that looks at everything, from its instant to its commit; bytes are counted until the cycle of changes that
follows it is committed too, a recovery point again.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from bench import disk, link, report
from bench.rig import Rig
from hyperv_host_agent.changes.tracked_disks import TRACKING
from hyperv_host_agent.hypervisors.embedded.machine_folder import folder_name
from twinsite.units import GiB, MiB

GOAL_GB = 1.0  # a second
GOAL_MIB = 2.0


def lose(rig: Rig) -> tuple[float, float, int]:
    """Seconds of the cycle that compares, processor seconds of the source agent, bytes it sent."""
    rig.running["a"].stop()
    shutil.rmtree(rig.folder("a") / "vms" / folder_name(rig.vm_id) / TRACKING)
    before = rig.newest()
    source = rig.start("a")
    seconds = rig.wait_for(before + 1)
    rig.wait_for(before + 2)
    return seconds, source.cpu_seconds, link.sent_bytes(rig.ports["b"])


def main(size: int, rounds: int) -> None:
    if missing := link.missing():
        sys.exit(f"bytes are counted with {' and '.join(missing)}: see deploy/system-packages bench")
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name:
        root = Path(name)
        image = root / "disk.raw"
        disk.make(image, size)
        data = image.stat().st_blocks * 512
        rig = Rig(root / "rig")
        rig.lay_out({"vda": image}, compression=True)
        try:
            rig.start("b")
            rig.start("a")
            rig.wait_for(2)
            taken = [lose(rig) for _ in range(rounds)]
        finally:
            rig.stop()
        seconds, processor, sent = (statistics.median(column) for column in zip(*taken, strict=True))
        print(
            f"{data / 1e9:.2f} GB of data on {size / 1e9:.2f} GB of disk, {processor:.2f} s of the source's processors"
        )
        report.line(
            "lost-tracking", data / 1e9 / seconds, GOAL_GB, "goal; bytes of data read, holes not counted", "GB/s"
        )
        report.line("lost-tracking-wire", sent / MiB, GOAL_MIB, "goal; two cycles, TLS and all", "MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="size of the disk")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(int(given.gib * GiB) // disk.STRIPE * disk.STRIPE, given.rounds)
