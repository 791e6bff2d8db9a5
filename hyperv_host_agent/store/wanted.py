"""Clusters the newest point lacks until a cycle brings them: damage that nothing here mends, bad parts of a seed."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.replication.cycle import Wanted
from hyperv_host_agent.store import copies, files, rules
from twinsite.extents import Run

FILE: Final = "wanted.json"
TOLD: Final = 4096  # runs in one answer; the rest is told when these came
_MOST: Final = 65536  # runs that are kept apart; beyond it runs near each other become one, which costs some sending


class WantedRuns:
    """Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path) -> None:
        """Read them. When both copies are damaged none are wanted: the scrub comes to the same clusters again."""
        self._path = directory / FILE
        documents, self._problems = copies.read(self._path, _decode)
        self._runs: dict[str, list[Run]] = documents[0] if documents else {}
        if self._problems or len(documents) == 1:
            self.restore()

    def told(self) -> tuple[Wanted, ...]:
        """The first TOLD of them."""
        found: list[Wanted] = []
        for disk, runs in sorted(self._runs.items()):
            found += [Wanted(disk, run) for run in runs[: TOLD - len(found)]]
        return tuple(found)

    def add(self, wanted: Iterable[Wanted]) -> bool:
        """Durable before it returns; whether any was new. Raises OSError."""
        before = {disk: list(runs) for disk, runs in self._runs.items()}
        by_disk: dict[str, list[Run]] = {}
        for one in wanted:
            by_disk.setdefault(one.disk, []).append(one.run)
        for disk, runs in by_disk.items():
            self._runs[disk] = _bounded(list(_union([*self._runs.get(disk, []), *runs])))
        if self._runs == before:
            return False
        self.restore()
        return True

    def carried(self, brought: Mapping[str, Iterable[Run]], sizes: Mapping[str, int]) -> None:
        """A cycle was committed with these clusters of each disk; `sizes` in clusters of the disks it has.

        Raises OSError; then they are wanted once more after a restart, which costs no more than sending them again.
        """
        if not self._runs:
            return
        left = {}
        for disk, runs in self._runs.items():
            inside = (Run(run.start, min(run.end, sizes[disk]) - run.start) for run in runs if run.start < sizes[disk])
            rest = list(minus(inside, _union(brought.get(disk, ())))) if disk in sizes else []
            if rest:
                left[disk] = rest
        if left != self._runs:
            self._runs = left
            self.restore()

    def of(self, disk: str) -> list[Run]:
        """What is wanted of a disk, ascending."""
        return self._runs.get(disk, [])

    def documents(self) -> list[copies.Document]:
        return [copies.Document(self._path, files.seal(_document(self._runs)))] if self._runs else []

    def restore(self) -> None:
        """Write both copies from what is known. Raises OSError."""
        if self._runs:
            copies.write(self._path, _document(self._runs))
        else:
            files.remove_durably(copies.copy_path(self._path), self._path)


def _decode(document: dict[str, Any]) -> dict[str, list[Run]]:
    disks = {
        rules.check_id("disk", disk): [Run(int(start), int(count)) for start, count in runs]
        for disk, runs in document["disks"].items()
    }
    for disk, runs in disks.items():
        if runs != list(_union(runs)) or runs[0].start < 0:
            raise ValueError(f"names clusters of disk {disk} out of order")
    copies.as_written(document, _document(disks))
    return disks


def _document(disks: Mapping[str, list[Run]]) -> dict[str, object]:
    return {"disks": {disk: [[run.start, run.count] for run in runs] for disk, runs in disks.items()}}


def _union(runs: Iterable[Run]) -> Iterator[Run]:
    """As few runs as cover the same, ascending."""
    start = end = 0
    for run in sorted(runs):
        if run.start <= end and end:
            end = max(end, run.end)
            continue
        if end > start:
            yield Run(start, end - start)
        start, end = run.start, run.end
    if end > start:
        yield Run(start, end - start)


def minus(runs: Iterable[Run], taken: Iterable[Run]) -> Iterator[Run]:
    """What of ascending runs is not in the ascending `taken`."""
    cut = iter(taken)
    hole = next(cut, None)
    for run in runs:
        start = run.start
        while hole is not None and hole.end <= start:
            hole = next(cut, None)
        while hole is not None and hole.start < run.end:
            if hole.start > start:
                yield Run(start, hole.start - start)
            start = max(start, hole.end)
            if hole.end > run.end:
                break
            hole = next(cut, None)
        if start < run.end:
            yield Run(start, run.end - start)


def _bounded(runs: list[Run]) -> list[Run]:
    """At most _MOST runs: the smallest gaps are closed."""
    excess = len(runs) - _MOST
    if excess <= 0:
        return runs
    gaps = sorted(range(1, len(runs)), key=lambda at: runs[at].start - runs[at - 1].end)
    closed = set(gaps[:excess])
    joined: list[Run] = []
    for at, run in enumerate(runs):
        if at in closed:
            joined[-1] = Run(joined[-1].start, run.end - joined[-1].start)
        else:
            joined.append(run)
    return joined
