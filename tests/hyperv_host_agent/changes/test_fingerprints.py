"""The fingerprint index: what it says after any crash is right, or nothing."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperv_host_agent.changes.fingerprints import FingerprintIndex, IndexDamaged
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry
from twinsite.digest import FINGERPRINT_BYTES, ZERO_FINGERPRINT
from twinsite.extents import CLUSTER, Run

VDA = DiskGeometry("a", 100 * CLUSTER)
VDB = DiskGeometry("../b\n", 7 * CLUSTER + 512)  # an id is never a path


def cycle(number: int) -> Committed:
    return Committed(number, bytes([number]) * 16)


def prints(*values: int) -> bytes:
    return b"".join(value.to_bytes(FINGERPRINT_BYTES, "big") for value in values)


def filled(folder: Path) -> FingerprintIndex:
    """Cycle 1: clusters 0-3 of the first disk, the partial last one of the second."""
    index = FingerprintIndex(folder)
    staging = index.stage(cycle(1), [VDA, VDB], parent=None)
    staging.put("a", [0, 1, 2, 3], prints(10, 11, 12, 13))
    staging.put(VDB.id, [7], prints(77))
    staging.seal()
    index.apply(cycle(1))
    return index


def test_an_applied_cycle_is_described_after_a_restart(tmp_path: Path):
    filled(tmp_path).close()
    with FingerprintIndex(tmp_path) as index:
        assert index.base == cycle(1)
        assert index.get("a", Run(2, 3)) == prints(12, 13) + ZERO_FINGERPRINT
        assert index.get(VDB.id, Run(6, 2)) == ZERO_FINGERPRINT + prints(77)
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_a_sealed_cycle_survives_a_restart_and_changes_nothing_until_it_is_applied(tmp_path: Path):
    index = filled(tmp_path)
    staging = index.stage(cycle(2), [VDA, VDB], parent=cycle(1))
    staging.put("a", [1, 3, 90], prints(21, 23, 290))
    staging.zero("a", Run(2, 1))
    staging.seal()
    index.close()
    with FingerprintIndex(tmp_path) as index:
        assert (index.base, index.staged) == (cycle(1), cycle(2))
        assert index.get("a", Run(0, 4)) == prints(10, 11, 12, 13)
        index.apply(cycle(2))
        index.apply(cycle(2))
        assert (index.base, index.staged) == (cycle(2), None)
        assert index.get("a", Run(0, 4)) == prints(10, 21, 0, 23)
        assert index.get("a", Run(90, 1)) == prints(290)


def test_a_dropped_or_unsealed_cycle_leaves_no_trace(tmp_path: Path):
    index = filled(tmp_path)
    index.stage(cycle(2), [VDA, VDB], parent=cycle(1)).put("a", [1], prints(21))
    index.close()
    with FingerprintIndex(tmp_path) as index:
        assert index.staged is None
        staging = index.stage(cycle(2), [VDA, VDB], parent=cycle(1))
        staging.put("a", [1], prints(21))
        staging.seal()
        index.drop()
        index.drop()
        assert index.staged is None
        assert index.get("a", Run(0, 4)) == prints(10, 11, 12, 13)


def test_only_differing_clusters_are_named(tmp_path: Path):
    with filled(tmp_path) as index:
        assert index.differing("a", Run(0, 4), prints(10, 11, 12, 13)) == []
        assert index.differing("a", Run(1, 4), prints(11, 99, 13, 98)) == [2, 4]
        assert index.differing("unknown", Run(5, 2), prints(0, 1)) == [6]


def test_a_cycle_on_another_parent_is_refused(tmp_path: Path):
    with filled(tmp_path) as index:
        with pytest.raises(ValueError, match="does not describe cycle 5"):
            index.stage(cycle(6), [VDA], parent=cycle(5))
        index.stage(cycle(2), [VDA, VDB], parent=cycle(1)).seal()
        with pytest.raises(ValueError, match="not the staged one"):
            index.apply(cycle(3))


def test_a_whole_content_replaces_what_was_there(tmp_path: Path):
    with filled(tmp_path) as index:
        staging = index.stage(cycle(9), [VDA], parent=None)
        staging.put("a", [3], prints(5))
        staging.seal()
        index.apply(cycle(9))
        assert index.get("a", Run(0, 4)) == prints(0, 0, 0, 5)
        assert index.get(VDB.id, Run(7, 1)) == ZERO_FINGERPRINT
    with FingerprintIndex(tmp_path) as index:
        assert index.base == cycle(9)


def test_what_a_shrunk_disk_lost_is_zero_when_it_grows_again(tmp_path: Path):
    with filled(tmp_path) as index:
        for number, size in ((2, 2 * CLUSTER), (3, 50 * CLUSTER)):
            index.stage(cycle(number), [DiskGeometry("a", size), VDB], parent=cycle(number - 1)).seal()
            index.apply(cycle(number))
        assert index.get("a", Run(0, 4)) == prints(10, 11, 0, 0)


def test_a_thin_disk_has_a_thin_index(tmp_path: Path):
    with FingerprintIndex(tmp_path) as index:
        big = DiskGeometry("big", 1 << 42)  # 4 TiB: 1 GiB of fingerprints, if they were written
        staging = index.stage(cycle(1), [big], parent=None)
        staging.zero("big", Run(0, 10_000_000))
        staging.put("big", [1 << 25], prints(1))
        staging.seal()
        index.apply(cycle(1))
        assert index.get("big", Run(1 << 25, 1)) == prints(1)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1 << 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.json").write_bytes(b"{"),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "index.json").write_text('{"format": 2}'),
        lambda folder: next(folder.glob("*.fp")).unlink(),
        lambda folder: os.truncate(next(folder.glob("*.fp")), 32),
    ],
)
def test_a_damaged_index_describes_nothing(tmp_path: Path, damage: Callable[[Path], object]):
    filled(tmp_path).close()
    damage(tmp_path)
    with FingerprintIndex(tmp_path) as index:
        assert index.base is None
        assert index.get("a", Run(0, 4)) == 4 * ZERO_FINGERPRINT
    with FingerprintIndex(tmp_path) as index:
        assert index.base is None


def test_a_damaged_staged_cycle_empties_the_index_instead_of_half_filling_it(tmp_path: Path):
    index = filled(tmp_path)
    staging = index.stage(cycle(2), [VDA, VDB], parent=cycle(1))
    staging.put("a", [1], prints(21))
    staging.seal()
    content = bytearray((tmp_path / "staged").read_bytes())
    content[-60] ^= 1
    (tmp_path / "staged").write_bytes(content)
    with pytest.raises(IndexDamaged):
        index.apply(cycle(2))
    assert index.base is None
    index.close()
    with FingerprintIndex(tmp_path) as index:
        assert index.base is None


def test_an_application_cut_at_any_write_is_finished_by_the_next_open(tmp_path: Path):
    index = filled(tmp_path / "before")
    staging = index.stage(cycle(2), [VDA, VDB], parent=cycle(1))
    for cluster in range(20):
        staging.put("a", [cluster * 2], prints(1000 + cluster))
    staging.seal()
    index.close()
    seed = random.Random(2)
    # What a kill leaves: the decision, and any part of the writes.
    for attempt in range(10):
        folder = tmp_path / f"crash{attempt}"
        shutil.copytree(tmp_path / "before", folder)
        (folder / "staged").rename(folder / "applying")
        with FingerprintIndex(folder / "probe") as probe:
            path = folder / probe._path("a").name
        with path.open("r+b") as file:
            for cluster in range(20):
                if seed.random() < 0.5:
                    file.seek(cluster * 2 * FINGERPRINT_BYTES)
                    file.write(prints(1000 + cluster))
        with FingerprintIndex(folder) as index:
            assert index.base == cycle(2)
            expected = [
                1000 + cluster // 2 if cluster % 2 == 0 else {1: 11, 3: 13}.get(cluster, 0) for cluster in range(40)
            ]
            assert index.get("a", Run(0, 40)) == prints(*expected)
