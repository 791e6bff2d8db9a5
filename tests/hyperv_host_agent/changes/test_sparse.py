"""A sparse disk costs what it holds, whatever its size."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent import reading_plan
from hyperv_host_agent.changes.base import Tracking
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.sending import ReadPoint, ReadSlice
from hyperv_host_agent.replication.state import Position
from tests.fakes.tracked_machine import TrackedMachine
from twinsite.extents import CLUSTER, Run, clusters
from twinsite.units import GiB

LARGE = DiskGeometry("large", 64 * GiB)
WRITTEN = (0, 7, 8, 500_000, clusters(LARGE.size) - 1)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[TrackedMachine]:
    machine = TrackedMachine(tmp_path, (LARGE,))
    for cluster in WRITTEN:
        machine.write(LARGE.id, cluster * CLUSTER, b"x" * CLUSTER)
    machine.source.start()
    machine.start()
    machine.source.open_point(1, b"1" * 16, consistency="crash").close()
    machine.source.ack(1, b"1" * 16)
    yield machine
    machine.close()


HEADER = CycleHeader("vm", bytes(16), 2, 1, 1, Kind.DELTA, 0.0, "crash", (LARGE,))


def data(units: Iterator[reading_plan.Unit]) -> tuple[set[int], int]:
    """The clusters that are read, and how many units the whole came in; none is left out."""
    read: set[int] = set()
    count = reached = 0
    for unit in units:
        count += 1
        for run in unit.runs:
            assert run.start == reached
            reached = run.end
            if unit.read(LARGE.id, run) is not None:
                read |= set(range(run.start, run.end))
    assert reached == clusters(LARGE.size)
    return read, count


def test_a_large_sparse_disk_is_read_only_where_it_holds_data_when_tracking_is_lost(machine: TrackedMachine):
    machine.stop()
    machine.edit_behind_its_back(LARGE.id)
    point = machine.source.open_point(2, b"2" * 16, consistency="crash")
    assert point.tracking is Tracking.LOST
    read, count = data(reading_plan.changes(point, ReadPoint(HEADER, True, frozenset()), 32))
    assert read == set(WRITTEN)
    assert count < 300
    point.close()


def test_a_copy_of_a_large_sparse_disk_reads_only_data(machine: TrackedMachine):
    source = machine.source
    order = ReadSlice(1, HEADER, 1, bytes(16), Position(), True)
    units = reading_plan.everything(order, source.read_now, lambda: 32, source.holes_now)
    read, count = data(units)
    assert read == set(WRITTEN)
    assert count < 300
    source.rest()


def test_what_was_written_to_a_hole_of_an_open_point_does_not_hide_the_holes_beside_it(machine: TrackedMachine):
    point = machine.source.open_point(2, b"2" * 16, consistency="crash")
    machine.write(LARGE.id, 100_000 * CLUSTER, b"after the instant")
    holes = list(point.holes(LARGE.id))
    assert Run(9, 100_000 - 9) in holes
    assert len(holes) < 12
    assert point.read(LARGE.id, Run(100_000, 1)) == bytes(CLUSTER)
    point.close()


def test_a_cluster_beside_a_hole_is_data_though_the_one_behind_it_is_written_while_the_point_is_open(
    machine: TrackedMachine,
):
    machine.write(LARGE.id, 804 * CLUSTER, b"before the instant")
    point = machine.source.open_point(2, b"2" * 16, consistency="crash")
    machine.write(LARGE.id, 806 * CLUSTER, b"after the instant")
    assert not [hole for hole in point.holes(LARGE.id) if hole.start <= 804 < hole.end]
    point.close()
