"""A source that writes the parts of a seed and is killed: run as a program, `export_workload.py export FOLDER`."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.seeds import exporting
from hyperv_host_agent.seeds.parts import HEADER_BYTES, RECORD_BYTES
from twinsite.extents import CLUSTER

SEED = b"seed of a parcel"
DISKS = (DiskGeometry("disk-a", 130 * CLUSTER, "a"), DiskGeometry("disk-b", 2 * CLUSTER + 512, "b"))


def content(disk: int) -> bytes:
    """Of each disk; the same in every process."""
    return random.Random(disk).randbytes(DISKS[disk].size)


def progress_file(folder: Path) -> Path:
    return folder / "progress.json"


def seed_folder(folder: Path) -> Path:
    return folder / "seed"


def export(folder: Path) -> exporting.Progress:
    """From wherever an attempt before ended."""
    seed_folder(folder).mkdir(exist_ok=True)
    progress = exporting.begin(progress_file(folder), SEED, DISKS, 1.0)
    writer = exporting.SeedWriter(seed_folder(folder), progress_file(folder), progress, HEADER_BYTES + RECORD_BYTES)
    writer.keep_finished()
    packer = Packer()
    for unit in exporting.units(DISKS, progress.place):
        packed = Packed(unit.disk)
        data = content(unit.disk)[unit.run.start * CLUSTER : unit.run.end * CLUSTER]
        packer.pack(packed, unit.run, data, None)
        writer.put(unit, packed)
    writer.finish()
    return progress


if __name__ == "__main__":
    export(Path(sys.argv[2]))
    print("done", flush=True)
