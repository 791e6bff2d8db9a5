"""Which clusters a cycle reads, and in what pieces."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.changes.base import SourcePoint
from hyperv_host_agent.replication.sending import ReadPoint, ReadSlice
from twinsite.extents import Run, clusters

HOLE_CLUSTERS: Final = 4096  # handled at once: 256 MiB; what of it is sent as zeros fits a batch in any pattern


@dataclass(frozen=True, slots=True)
class Unit:
    """Ascending runs of one disk that are handled as one; what `read` gives None for is a hole."""

    disk: int
    runs: tuple[Run, ...]
    read: Callable[[str, Run], bytes | None]
    compare: bool  # what the index has is left out

    @property
    def end(self) -> int:
        return self.runs[-1].end

    @property
    def count(self) -> int:
        return sum(run.count for run in self.runs)


def everything(
    order: ReadSlice,
    read: Callable[[str, Run], bytes | None],
    most: Callable[[], int],
    holes: Callable[[str, Run], Iterator[Run]],
) -> Iterator[Unit]:
    """What is left of a copy, in units of `most()` clusters. What is written to a hole later, a later cycle brings."""
    start = order.position.cluster
    for number in range(order.position.disk, len(order.header.disks)):
        disk = order.header.disks[number]
        left, compare = Run(start, clusters(disk.size) - start), order.suppress and disk.id not in order.whole
        for run, _, hole in _split([(left, False)] if left.count > 0 else [], holes(disk.id, left)):
            at = run.start
            while at < run.end:
                piece = Run(at, min(HOLE_CLUSTERS if hole else most(), run.end - at))
                at = piece.end
                yield Unit(number, (piece,), _nothing if hole else read, compare)
        start = 0


def changes(point: SourcePoint, order: ReadPoint, most: int) -> Iterator[Unit]:
    """What a point may have changed and what the target lacks, scattered clusters gathered to `most` in a unit."""
    for number, disk in enumerate(order.header.disks):
        end = clusters(disk.size)
        lacking = _joined([wanted.run for wanted in order.forced if wanted.disk == disk.id], end)
        dirty: Iterable[Run] = point.dirty(disk.id)
        if disk.id in order.whole:
            dirty, lacking = (), [Run(0, end)]
        gathered: list[Run] = []
        count = 0
        kind = False, False
        for run, forced, hole in _split(_marked(dirty, lacking), point.holes(disk.id)):
            limit = HOLE_CLUSTERS if hole else most
            for piece in _pieces(run, limit):
                if gathered and (kind != (forced, hole) or count + piece.count > limit):
                    yield _unit(number, gathered, kind, point, order)
                    gathered, count = [], 0
                gathered.append(piece)
                count += piece.count
                kind = forced, hole
        if gathered:
            yield _unit(number, gathered, kind, point, order)


def _unit(disk: int, runs: list[Run], kind: tuple[bool, bool], point: SourcePoint, order: ReadPoint) -> Unit:
    forced, hole = kind
    return Unit(disk, tuple(runs), _nothing if hole else point.read, order.suppress and not forced)


def _nothing(_disk: str, _run: Run) -> None:
    """A hole is not read."""


def _joined(runs: Iterable[Run], end: int) -> list[Run]:
    """Ascending, without overlaps, below `end`."""
    made: list[Run] = []
    for run in sorted(runs):
        start, stop = run.start, min(run.end, end)
        if made and start <= made[-1].end:
            last = made.pop()
            start, stop = last.start, max(last.end, stop)
        if start < stop:
            made.append(Run(start, stop - start))
    return made


def _marked(runs: Iterable[Run], forced: Iterable[Run]) -> Iterator[tuple[Run, bool]]:
    """Both, ascending and each cluster once, and whether it is forced. Both ascending."""
    left = deque(forced)
    reached = 0
    for run in runs:
        at = max(run.start, reached)
        while left and left[0].start < run.end:
            first = left.popleft()
            if first.start > at:
                yield Run(at, first.start - at), False
            yield first, True
            at = max(at, first.end)
        if at < run.end:
            yield Run(at, run.end - at), False
        reached = max(at, run.end)
    for run in left:
        yield run, True


def _pieces(run: Run, most: int) -> Iterator[Run]:
    for start in range(run.start, run.end, most):
        yield Run(start, min(most, run.end - start))


def _split(runs: Iterable[tuple[Run, bool]], holes: Iterable[Run]) -> Iterator[tuple[Run, bool, bool]]:
    """Every run cut at the holes' edges, its mark, and whether the piece is a hole. Both ascending."""
    rest = iter(holes)
    hole = next(rest, None)
    for run, mark in runs:
        at = run.start
        while at < run.end:
            while hole is not None and hole.end <= at:
                hole = next(rest, None)
            if hole is None or hole.start >= run.end:
                yield Run(at, run.end - at), mark, False
                break
            if hole.start > at:
                yield Run(at, hole.start - at), mark, False
                at = hole.start
            end = min(hole.end, run.end)
            yield Run(at, end - at), mark, True
            at = end
