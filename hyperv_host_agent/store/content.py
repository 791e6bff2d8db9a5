"""What one disk of a replica holds: fingerprints through a chain of side files, and whether the layers agree."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from hyperv_host_agent.store.formats.qcow2 import ChainReader
from hyperv_host_agent.store.formats.side_file import NEWEST, SideFile, side_path
from hyperv_host_agent.store.manifests import LayerRef
from hyperv_host_agent.store.packed_point import PackedPoint
from twinsite.digest import ZERO_FINGERPRINT, fingerprint, is_zero
from twinsite.extents import CLUSTER, clusters

_WINDOW: Final = 8192  # clusters: 512 MiB of the disk at a time


class DiskContent:
    """A disk as of one cycle, open for reading; files that are replaced meanwhile do not matter."""

    def __init__(self, directory: Path, stack: Sequence[LayerRef], at: int, size: int) -> None:
        """`stack`: the layers it stands on, oldest first; `at` may lie inside the newest. Raises LayerDamaged."""
        with ExitStack() as opened:
            self._refs, self._at = list(stack), at
            self._reader: ChainReader | PackedPoint
            if at == stack[-1].cycle:
                self._reader = ChainReader([directory / layer.file for layer in stack])
            else:
                self._reader = PackedPoint(directory, stack, at, size)
            opened.callback(self._reader.close)
            self._sides = [
                opened.enter_context(closing(SideFile(side_path(directory / layer.file)))) for layer in stack
            ]
            self._stack = opened.pop_all()

    def close(self) -> None:
        self._stack.close()

    def damaged_sides(self) -> Iterator[SideFile]:
        """The side files that differ from what was committed."""
        for ref, side in zip(self._refs, self._sides, strict=True):
            if side.digest() != ref.digest:
                yield side

    def fingerprints(self, start: int, count: int) -> Iterator[tuple[int, bytes]]:
        """(cluster, fingerprint) of the clusters `start` up to `start + count` that hold data, ascending."""
        end = min(start + count, clusters(self._reader.size))
        for first in range(start, end, _WINDOW):
            found = self._window(first, min(first + _WINDOW, end))
            for cluster in sorted(found):
                if found[cluster] != ZERO_FINGERPRINT:
                    yield cluster, found[cluster]

    def _window(self, start: int, end: int) -> dict[int, bytes]:
        """Fingerprints of data clusters, ZERO_FINGERPRINT for those that a layer says are zero."""
        found: dict[int, bytes] = {}
        smallest = self._reader.size  # of the point and the layers above the one that is looked at
        at = self._at
        for ref, side in zip(reversed(self._refs), reversed(self._sides), strict=True):
            size = smallest if at < ref.cycle else ref.size
            cut = smallest // CLUSTER if smallest % CLUSTER and size > smallest else -1
            smallest = min(smallest, size)
            end = min(end, clusters(smallest))
            told = side.fingerprints(at, start, end)
            if cut in told and cut not in found:
                told[cut] = self._of_cut(cut)
            found = told | found
            at = NEWEST
        return found

    def _of_cut(self, cluster: int) -> bytes:
        """Fingerprint of a cluster in which the disk ended after it shrank; what a layer says of it is of before."""
        data = self._reader.read_cluster(cluster)
        return ZERO_FINGERPRINT if is_zero(data) else fingerprint(data)
