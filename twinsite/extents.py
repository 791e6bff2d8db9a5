"""Extent and cluster arithmetic; pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

CLUSTER: Final = 65536  # bytes; also what QEMU picks for dirty bitmaps, so nothing is over-read


@dataclass(frozen=True, slots=True, order=True)
class Run:
    """Consecutive clusters: `count` of them from cluster `start`."""

    start: int
    count: int

    @property
    def end(self) -> int:
        return self.start + self.count


def clusters(size_bytes: int) -> int:
    """How many clusters a disk has; the last one may be partial."""
    return -(-size_bytes // CLUSTER)


def cluster_length(cluster: int, size_bytes: int) -> int:
    """Bytes of the disk that lie in the cluster: CLUSTER, or less for the last one."""
    return min(CLUSTER, size_bytes - cluster * CLUSTER)


def runs(indexes: Iterable[int]) -> Iterator[Run]:
    """Ascending cluster indexes as maximal runs."""
    start = count = 0
    for index in indexes:
        if count and index == start + count:
            count += 1
            continue
        if count:
            yield Run(start, count)
        start, count = index, 1
    if count:
        yield Run(start, count)
