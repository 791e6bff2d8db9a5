"""A disk at a cycle that lies inside a pack, read through the pack's side file: no table shows it as it was then."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from hyperv_host_agent.store.formats.qcow2 import ChainReader
from hyperv_host_agent.store.formats.side_file import NEWEST, Entry
from hyperv_host_agent.store.layer_content import LayerContent
from hyperv_host_agent.store.manifests import LayerRef
from twinsite.extents import CLUSTER, clusters

_ZEROS = bytes(CLUSTER)


class PackedPoint:
    """Open for reading, with the layers below the pack. Thread-safe."""

    def __init__(self, directory: Path, stack: Sequence[LayerRef], at: int, size: int) -> None:
        """The disk of `size` bytes as of cycle `at`, inside the newest layer of `stack`. Raises LayerDamaged."""
        self.size, self._at = size, at
        with ExitStack() as opened:
            self.pack = opened.enter_context(LayerContent(directory, stack[-1]))
            lower = [directory / layer.file for layer in stack[:-1]]
            self._lower = opened.enter_context(closing(ChainReader(lower))) if lower else None
            self._stack = opened.pop_all()

    def read_cluster(self, cluster: int) -> bytes:
        """CLUSTER bytes; zeros past the end of the disk. Raises LayerDamaged."""
        entry = self.held(cluster, cluster + 1).get(cluster)
        if entry:
            return self.pack.content(entry) if entry.length else _ZEROS
        if self._lower and cluster < clusters(self._lower.size):
            return self._lower.read_cluster(cluster)
        return _ZEROS

    def frame(self, cluster: int, entry: Entry | None) -> bytes:
        """A frame of the cluster whose entry in the pack is `entry`; empty: zeros. Raises LayerDamaged."""
        if entry:
            return self.pack.frame(entry) if entry.length else b""
        if self._lower and cluster < clusters(self._lower.size):
            return self._lower.frame(cluster)
        return b""

    def held(self, start: int, end: int) -> dict[int, Entry]:
        """What the pack says of the clusters `start` up to `end` at the point."""
        return self.pack.side.at(self._at, start, min(end, clusters(self.size)))

    def mapped(self, start: int, end: int) -> list[int]:
        """The clusters `start` up to `end` that hold data, ascending."""
        end = min(end, clusters(self.size))
        held = self.held(start, end)
        below = self._lower.mapped(start, end) if self._lower else []
        return sorted(
            [cluster for cluster, entry in held.items() if entry.length]
            + [cluster for cluster in below if cluster not in held]
        )

    def differing(self, start: int, end: int) -> dict[int, Entry | None]:
        """The clusters `start` up to `end` that the pack's tables show as something else, with their entry here."""
        end = min(end, clusters(self.size))
        held = self.held(start, end)
        changed = {
            cluster: held.get(cluster)
            for cluster, entry in self.pack.side.at(NEWEST, start, end).items()
            if entry.cycle > self._at
        }
        pack = self.pack.ref.size
        if self.size > pack:  # past its end the pack shows zeros, in the cluster where it ends as well
            beyond = max(start, pack // CLUSTER)
            below = self._lower.mapped(beyond, end) if self._lower and beyond < end else []
            changed.update((cluster, held.get(cluster)) for cluster in below)
            changed.update((cluster, entry) for cluster, entry in held.items() if cluster >= beyond)
        return changed

    def close(self) -> None:
        self._stack.close()
