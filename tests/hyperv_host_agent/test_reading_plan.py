"""What a cycle reads: every cluster that has to be looked at, once, in order, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hyperv_host_agent import reading_plan
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind, Wanted
from hyperv_host_agent.replication.sending import ReadPoint
from twinsite.extents import CLUSTER, Run, runs

END = 200
DISKS = (DiskGeometry("d1", END * CLUSTER), DiskGeometry("d2", END * CLUSTER))
HEADER = CycleHeader("vm", bytes(16), 2, 1, 1, Kind.DELTA, 1.0, "crash", DISKS)

places = st.sets(st.integers(0, END - 1), max_size=80)
wanted = st.lists(st.tuples(st.sampled_from(["d1", "d2"]), st.integers(0, END + 20), st.integers(1, 40)), max_size=8)


@dataclass
class Point:
    """Knows what is dirty and what are holes, on both disks alike."""

    dirt: set[int]
    empty: set[int]
    disks: tuple[DiskGeometry, ...] = DISKS
    instant: float = 1.0
    consistency: str = "crash"
    machine: bytes = b""
    doubt: str = ""

    def dirty(self, _disk: str) -> Iterator[Run]:
        return runs(sorted(self.dirt))

    def holes(self, _disk: str) -> Iterator[Run]:
        return runs(sorted(self.empty))

    def read(self, _disk: str, run: Run) -> bytes:
        return bytes(run.count * CLUSTER)


@given(places, places, wanted, st.sets(st.sampled_from(["d1", "d2"])), st.integers(1, 40))
def test_each_cluster_once_and_those_the_target_lacks_without_comparison(
    dirt: set[int], empty: set[int], lacking: list[tuple[str, int, int]], whole: set[str], most: int
) -> None:
    forced = tuple(Wanted(disk, Run(start, count)) for disk, start, count in lacking)
    order = ReadPoint(HEADER, suppress=True, whole=frozenset(whole), forced=forced)
    units = list(reading_plan.changes(Point(dirt, empty), order, most))  # type: ignore[arg-type]
    for number, disk in enumerate(DISKS):
        mine = [unit for unit in units if unit.disk == number]
        looked = [place for unit in mine for run in unit.runs for place in range(run.start, run.end)]
        must = {place for name, start, count in lacking if name == disk.id for place in range(start, start + count)}
        must = set(range(END)) if disk.id in whole else must & set(range(END))
        assert looked == sorted(dirt | must)
        for unit in mine:
            clusters = {place for run in unit.runs for place in range(run.start, run.end)}
            assert unit.compare == (not clusters & must)
            assert unit.compare or clusters <= must
            hole = unit.read(disk.id, unit.runs[0]) is None
            assert clusters <= empty if hole else not clusters & empty
