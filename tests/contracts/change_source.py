"""What every change source promises; each adapter runs this suite."""

import random
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Final

import pytest

from hyperv_host_agent.changes.base import Anchor, ChangeSource, SourceFailed, SourcePoint, SourceUnavailable, Tracking
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.extents import CLUSTER, Run, clusters, runs

A: Final = DiskGeometry("disk-a", 40 * CLUSTER, "vda")
B: Final = DiskGeometry("../disk b", 9 * CLUSTER + 1536, "vdb")  # partial last cluster, an id that is no path
DISKS: Final = (A, B)


def name_of(cycle: int) -> bytes:
    return bytes([cycle]) * 16


class Rig(ABC):
    """A VM whose guest is the test."""

    source: ChangeSource

    @abstractmethod
    def write(self, disk: str, offset: int, data: bytes) -> None: ...

    @abstractmethod
    def content(self, disk: str) -> bytes: ...

    @abstractmethod
    def reshape(self, *disks: DiskGeometry) -> None:
        """The VM has these disks now: they grew, shrank, came or went."""

    @abstractmethod
    def lose_tracking(self) -> None: ...

    @abstractmethod
    def restart_agent(self) -> None:
        """As after a kill of the agent: `source` is a new one."""

    def anchored(self) -> None:
        """Cycle 1 is at the target."""
        self.source.start()
        self.source.open_point(1, name_of(1), consistency="crash").close()
        self.source.ack(1, name_of(1))


def dirty(point: SourcePoint, disk: DiskGeometry) -> set[int]:
    found = list(point.dirty(disk.id))
    flat = [cluster for run in found for cluster in range(run.start, run.end)]
    assert list(runs(flat)) == found, "ascending, maximal, without overlap"
    assert not flat or flat[-1] < clusters(disk.size)
    return set(flat)


def whole(point: SourcePoint, disk: DiskGeometry) -> bytes:
    return b"".join(point.read(disk.id, Run(at, 1)) for at in range(clusters(disk.size)))


class ChangeSourceContract:
    def test_before_it_is_started_it_knows_nothing_and_opens_nothing(self, rig: Rig):
        assert rig.source.status() == (None, Tracking.LOST)
        assert rig.source.dirty_bytes() == 0
        assert rig.source.disks() == DISKS
        with pytest.raises(SourceUnavailable, match="not tracked"):
            rig.source.open_point(1, name_of(1), consistency="crash")

    def test_the_first_point_is_everything(self, rig: Rig):
        rig.write(A.id, 5 * CLUSTER, b"old")
        rig.source.start()
        rig.source.start()
        assert rig.source.status() == (None, Tracking.OK)
        point = rig.source.open_point(1, name_of(1), consistency="crash")
        assert (point.tracking, point.consistency, point.disks) == (Tracking.OK, "crash", DISKS)
        assert "not tracked" in point.doubt
        assert dirty(point, A) == set(range(40))
        assert dirty(point, B) == set(range(10))
        assert whole(point, A) == rig.content(A.id)
        assert whole(point, B) == rig.content(B.id)
        point.close()
        rig.source.ack(1, name_of(1))
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.OK)

    def test_a_point_names_exactly_what_was_written_since_the_acked_one(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 3 * CLUSTER + 100, b"x" * CLUSTER)
        rig.write(B.id, B.size - 1, b"y")
        assert rig.source.dirty_bytes() == 3 * CLUSTER
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        assert dirty(point, A) == {3, 4}
        assert dirty(point, B) == {9}
        assert len(point.read(B.id, Run(8, 2))) == CLUSTER + 1536
        point.close()
        rig.source.ack(2, name_of(2))
        assert rig.source.dirty_bytes() == 0

    def test_a_point_stays_as_it_was_whatever_is_written_meanwhile(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"before")
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        before = {disk.id: rig.content(disk.id) for disk in DISKS}
        seed = random.Random(1)
        for _ in range(60):
            disk = seed.choice(DISKS)
            offset = seed.randrange(disk.size)
            rig.write(disk.id, offset, seed.randbytes(min(seed.randrange(1, 3 * CLUSTER), disk.size - offset)))
        assert before[A.id] != rig.content(A.id)
        for disk in DISKS:
            assert whole(point, disk) == before[disk.id]
            assert point.read(disk.id, Run(0, clusters(disk.size))) == before[disk.id]
            zeros = {cluster for run in point.holes(disk.id) for cluster in range(run.start, run.end)}
            for cluster in zeros:
                assert not any(before[disk.id][cluster * CLUSTER : (cluster + 1) * CLUSTER])
        assert dirty(point, A) == {0}
        point.close()
        rig.source.ack(2, name_of(2))
        later = rig.source.open_point(3, name_of(3), consistency="crash")
        for disk in DISKS:
            after = rig.content(disk.id)
            changed = {
                at
                for at in range(clusters(disk.size))
                if after[at * CLUSTER : (at + 1) * CLUSTER] != before[disk.id][at * CLUSTER : (at + 1) * CLUSTER]
            }
            assert changed <= dirty(later, disk)
            assert whole(later, disk) == after
        later.close()

    def test_a_discarded_point_is_part_of_the_next_one(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.write(A.id, 2 * CLUSTER, b"2")
        rig.source.discard()
        rig.source.discard()
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.OK)
        point = rig.source.open_point(2, name_of(9), consistency="crash")
        assert dirty(point, A) == {0, 2}
        point.close()

    def test_a_point_that_was_never_settled_is_part_of_the_next_one(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.write(A.id, 2 * CLUSTER, b"2")
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert dirty(point, A) == {0, 2}
        point.close()

    def test_an_ack_is_repeatable_and_says_which_point(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        rig.source.ack(1, name_of(1))
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.source.ack(2, name_of(7))  # of another point: changes nothing
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.OK)
        rig.source.ack(2, name_of(2))
        rig.write(A.id, CLUSTER, b"2")
        rig.source.ack(2, name_of(2))
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert dirty(point, A) == {1}
        point.close()

    def test_an_ack_of_what_was_never_opened_changes_nothing(self, rig: Rig):
        rig.source.start()
        rig.source.ack(7, name_of(7))
        assert rig.source.status() == (None, Tracking.OK)
        rig.anchored()
        rig.source.ack(7, name_of(7))
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.OK)

    def test_a_point_may_be_acked_while_it_is_open(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        rig.write(A.id, CLUSTER, b"2")
        rig.source.ack(2, name_of(2))
        assert dirty(point, A) == {0}
        point.close()
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert dirty(point, A) == {1}
        point.close()

    def test_only_one_point_is_open_at_a_time(self, rig: Rig):
        rig.anchored()
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        with pytest.raises(SourceUnavailable, match="open already"):
            rig.source.open_point(3, name_of(3), consistency="crash")
        point.close()
        point.close()
        with pytest.raises(SourceFailed, match="closed"):
            point.read(A.id, Run(0, 1))
        rig.source.open_point(3, name_of(3), consistency="crash").close()

    def test_an_agent_that_dies_with_an_open_point_loses_no_change(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        rig.source.open_point(2, name_of(2), consistency="crash")
        rig.write(A.id, CLUSTER, b"2")
        rig.restart_agent()
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.OK)
        rig.write(A.id, 2 * CLUSTER, b"3")
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert dirty(point, A) == {0, 1, 2}
        assert whole(point, A) == rig.content(A.id)
        point.close()

    def test_an_agent_that_dies_before_the_ack_may_ack_after_its_restart(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 0, b"1")
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.write(A.id, CLUSTER, b"2")
        rig.restart_agent()
        rig.source.ack(2, name_of(2))
        assert rig.source.status() == (Anchor(2, name_of(2)), Tracking.OK)
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert dirty(point, A) == {1}
        point.close()

    def test_lost_tracking_means_everything_until_a_later_point_is_acked(self, rig: Rig):
        rig.anchored()
        rig.lose_tracking()
        assert rig.source.status() == (Anchor(1, name_of(1)), Tracking.LOST)
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        assert point.tracking is Tracking.LOST
        assert point.doubt
        assert dirty(point, A) == set(range(40))
        rig.write(A.id, 7 * CLUSTER, b"during")
        point.close()
        rig.source.discard()
        point = rig.source.open_point(2, name_of(3), consistency="crash")
        assert point.tracking is Tracking.LOST
        point.close()
        rig.write(A.id, 8 * CLUSTER, b"after")
        rig.source.ack(2, name_of(3))
        assert rig.source.status() == (Anchor(2, name_of(3)), Tracking.OK)
        point = rig.source.open_point(3, name_of(4), consistency="crash")
        assert point.doubt == ""
        assert dirty(point, A) == {8}
        point.close()

    def test_what_is_lost_while_a_point_is_on_its_way_stays_lost_after_its_ack(self, rig: Rig):
        rig.anchored()
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.lose_tracking()
        rig.source.ack(2, name_of(2))
        assert rig.source.status() == (Anchor(2, name_of(2)), Tracking.LOST)

    def test_content_can_be_read_without_a_point(self, rig: Rig):
        rig.write(B.id, 9 * CLUSTER, b"now")
        assert rig.source.read_now(B.id, Run(9, 1)) == rig.content(B.id)[9 * CLUSTER :]

    def test_a_disk_that_grew_costs_only_its_end_and_nothing_of_other_disks(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 3 * CLUSTER, b"x")
        rig.write(B.id, 2 * CLUSTER, b"y")
        grown = replace(B, size=30 * CLUSTER)
        rig.reshape(A, grown)
        assert rig.source.disks() == (A, grown)
        rig.write(B.id, 25 * CLUSTER, b"z")
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        assert (point.tracking, point.doubt, point.disks) == (Tracking.OK, "", (A, grown))
        assert dirty(point, A) == {3}
        assert {2, 25} <= dirty(point, grown) <= {2, *range(9, 30)}
        assert whole(point, grown) == rig.content(B.id)
        point.close()
        rig.source.ack(2, name_of(2))
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert (dirty(point, A), dirty(point, grown)) == (set(), set())
        point.close()

    def test_a_disk_that_shrank_and_grew_brings_the_zeros_that_are_there_now(self, rig: Rig):
        rig.write(B.id, 0, b"\xff" * B.size)
        rig.anchored()
        rig.write(B.id, 7 * CLUSTER, b"cut off")
        rig.reshape(A, replace(B, size=3 * CLUSTER + 512))
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        assert dirty(point, point.disks[1]) == {3}
        point.close()
        rig.source.discard()
        rig.reshape(A, B)
        assert rig.content(B.id)[3 * CLUSTER + 512 :] == bytes(6 * CLUSTER + 1024)
        point = rig.source.open_point(2, name_of(3), consistency="crash")
        assert dirty(point, B) == set(range(3, 10))
        assert whole(point, B) == rig.content(B.id)
        point.close()

    def test_an_added_disk_is_whole_in_the_next_point_and_a_removed_one_is_gone(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 3 * CLUSTER, b"x")
        added = DiskGeometry("disk-c", 5 * CLUSTER, "vdc")
        rig.reshape(A, B, added)
        point = rig.source.open_point(2, name_of(2), consistency="crash")
        assert (point.tracking, point.disks) == (Tracking.OK, (A, B, added))
        assert (dirty(point, A), dirty(point, B), dirty(point, added)) == ({3}, set(), set(range(5)))
        assert whole(point, added) == bytes(added.size)
        point.close()
        rig.reshape(A, added)
        rig.source.ack(2, name_of(2))
        rig.write(added.id, CLUSTER, b"y")
        point = rig.source.open_point(3, name_of(3), consistency="crash")
        assert (point.tracking, point.disks) == (Tracking.OK, (A, added))
        assert (dirty(point, A), dirty(point, added)) == (set(), {1})
        point.close()
        with pytest.raises((SourceUnavailable, SourceFailed)):
            rig.source.read_now(B.id, Run(0, 1))

    def test_disks_may_change_while_a_point_is_on_its_way(self, rig: Rig):
        rig.anchored()
        rig.write(A.id, 3 * CLUSTER, b"x")
        rig.source.open_point(2, name_of(2), consistency="crash").close()
        rig.write(A.id, 4 * CLUSTER, b"y")
        rig.reshape(replace(A, size=80 * CLUSTER), B)
        rig.source.discard()
        point = rig.source.open_point(2, name_of(3), consistency="crash")
        assert {3, 4} <= dirty(point, point.disks[0]) <= {3, 4, *range(40, 80)}
        point.close()

    def test_stopped_tracking_starts_again_from_nothing(self, rig: Rig):
        rig.anchored()
        rig.source.stop()
        rig.source.stop()
        assert rig.source.status() == (None, Tracking.LOST)
        rig.write(A.id, 0, b"untracked")
        rig.source.start()
        point = rig.source.open_point(1, name_of(1), consistency="crash")
        assert dirty(point, A) == set(range(40))
        point.close()
