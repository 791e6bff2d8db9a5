"""Memory of both agents while a sparse disk of 64 GiB is copied and a cycle follows."""

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import changes, report
from bench.rig import Rig
from twinsite.units import GiB, MiB


def main(size: int, data: int) -> None:
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name:
        root = Path(name)
        image = root / "disk.raw"
        changes.sparse(image, size, data)
        rig = Rig(root / "rig")
        rig.lay_out({"vda": image}, compression=True, frequency=2)
        try:
            target = rig.start("b")
            source = rig.start("a")
            rig.wait_for(2)
            before = rig.newest()
            changes.write(rig, changes.scattered(size, 2000, 1))
            changes.cycle_seconds(rig, before, 2000)
            for side, agent in (("source", source), ("target", target)):
                report.line(f"memory-64gib-{side}", agent.peak / MiB, 150 + 64, "150 MiB + 64 MiB a transfer", "MiB")
        finally:
            rig.stop()
            shutil.rmtree(root / "rig")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=int, default=64, help="size of the disk")
    parser.add_argument("--data-mib", type=int, default=2048, help="of it not empty")
    given = parser.parse_args()
    main(given.gib * GiB, given.data_mib * MiB)
