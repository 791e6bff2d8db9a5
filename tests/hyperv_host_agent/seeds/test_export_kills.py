"""An export that is killed at any call goes on, and what it leaves behind is never taken for a part."""

import os
import shutil
from pathlib import Path

import pytest

from hyperv_host_agent.seeds.exporting import Progress
from hyperv_host_agent.seeds.parts import PartReader, part_name
from hyperv_host_agent.store.formats import zstd_frame
from tests.fakes import export_workload, strace
from tests.fakes.export_workload import DISKS, SEED, content, export, progress_file, seed_folder
from twinsite.extents import CLUSTER, clusters

pytestmark = pytest.mark.system  # some dozen processes
SCRIPT = Path(export_workload.__file__)


def assert_whole(folder: Path, progress: Progress) -> None:
    """All clusters of both disks, once, in order."""
    sizes = [clusters(disk.size) for disk in DISKS]
    place = (0, 0)
    for number in range(1, len(progress.parts) + 1):
        reader = PartReader(folder / part_name(number), SEED, number, progress.key)
        record = reader.read(1, sizes)
        reader.close()
        if place[1] == sizes[place[0]]:
            place = (place[0] + 1, 0)
        assert (record.disk, record.start) == place
        place = (record.disk, record.end)
        at = 0
        data = content(record.disk)
        for cluster, length in zip(record.batch.clusters, record.batch.lengths, strict=True):
            found = zstd_frame.content(bytes(record.batch.payload[at : at + length]))
            assert found == data[cluster * CLUSTER : (cluster + 1) * CLUSTER].ljust(CLUSTER, b"\0")
            at += length
    assert place == (len(DISKS) - 1, sizes[-1])
    assert sorted(path.name for path in folder.iterdir()) == [part_name(n) for n in range(1, len(progress.parts) + 1)]


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "openat", "unlink"])
def test_a_kill_at_any_call_costs_one_part_at_most(tmp_path: Path, call: str):
    strace.require_strace()
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    folder = base / f"twinsite-export-{os.getpid()}"
    try:
        folder.mkdir()
        seed = seed_folder(folder)
        names = [part_name(number) for number in range(1, 5)]
        paths = [folder, seed, *(seed / f"{name}{end}" for name in names for end in ("", ".tmp"))]
        for _ in strace.kill_points(SCRIPT, ["export", str(folder)], call=call, paths=paths):
            kept = {path.name: path.stat().st_mtime_ns for path in seed.glob("part-*") if path.suffix != ".tmp"}
            known = Progress.load(progress_file(folder))
            finished = {part_name(number) for number in range(1, len(known.parts) + 1)} if known else set()
            assert finished <= set(kept)
            progress = export(folder)
            assert_whole(seed, progress)
            assert all((seed / name).stat().st_mtime_ns == kept[name] for name in finished)
            shutil.rmtree(seed)
            progress_file(folder).unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
