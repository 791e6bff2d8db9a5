"""Layers become one: the newest entry of every cluster wins, frames are copied as they are.

The new layer takes the name of the newest one it replaces, so nothing above it changes. Layer, side file and the
manifests of all points that stand on it cannot be replaced by one rename; an intent, durable before the first of
them, lets a start after a crash do the rest.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hyperv_host_agent.store import files
from hyperv_host_agent.store.formats import side_file, zstd_frame
from hyperv_host_agent.store.formats.qcow2 import TABLE_ENTRIES, ZERO, ChainReader, Layer, LayerDamaged
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.manifests import LayerRef, Manifest, point_path
from twinsite.digest import fingerprint, is_zero
from twinsite.extents import CLUSTER, Run, clusters, runs

MERGED: Final = ".merged"
INTENT: Final = "merge.json"
_BUFFER: Final = 1 << 20


class Cancelled(Exception):  # a signal inside the store, never shown
    """The replica is being closed."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A merge whose files are complete and durable, and only have to take their places."""

    disk: str
    group: tuple[str, ...]
    into: LayerRef

    def encode(self) -> bytes:
        return files.seal({"disk": self.disk, "group": list(self.group), "into": self.into.to_json()})

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError."""
        document = files.unseal(data)
        try:
            return cls(document["disk"], tuple(document["group"]), LayerRef.from_json(document["into"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"is malformed: {error}") from error


def publish(directory: Path, intent: Intent, manifests: Mapping[int, Manifest]) -> dict[int, Manifest]:
    """Put a merged layer in place: the manifests that changed. Repeatable after a crash at any instant."""
    path = directory / INTENT
    if not path.exists():
        files.replace_file(path, intent.encode())
    layer = directory / intent.disk / intent.into.file
    for final in (side_file.side_path(layer), layer):
        with suppress(FileNotFoundError):
            final.with_name(final.name + MERGED).rename(final)
    files.sync_directory(layer.parent)
    changed = {}
    for cycle, manifest in manifests.items():
        rewritten = manifest.merged(intent.disk, intent.group, intent.into)
        if rewritten != manifest:
            files.replace_file(point_path(directory, cycle), rewritten.encode())
            changed[cycle] = rewritten
    path.unlink()
    files.sync_directory(directory)
    return changed


def merge(directory: Path, chain: Sequence[LayerRef], group: tuple[str, ...], go_on: Callable[[], bool]) -> LayerRef:
    """Write the merge of `group`, the last layers of `chain`, durably under a temporary name in its disk's directory.

    Raises OSError, LayerDamaged, Cancelled once `go_on` is false; the temporary files are gone then.
    """
    layer = directory / group[-1]
    out = layer.with_name(layer.name + MERGED)
    side_out = side_file.side_path(layer).with_name(side_file.side_path(layer).name + MERGED)
    try:
        return _Merge(directory, chain, len(group), go_on).write(out, side_out)
    except (OSError, LayerDamaged, Cancelled):
        files.remove_file(out)
        files.remove_file(side_out)
        raise


def discard(directory: Path, into: LayerRef) -> None:
    """Remove what `merge` wrote. Raises OSError."""
    for final in (directory / into.file, side_file.side_path(directory / into.file)):
        files.remove_file(final.with_name(final.name + MERGED))


class _Merge:
    def __init__(self, directory: Path, chain: Sequence[LayerRef], count: int, go_on: Callable[[], bool]) -> None:
        self._paths = [directory / layer.file for layer in chain]
        self._sizes = [layer.size for layer in chain]
        self._first = len(chain) - count  # index of the oldest layer that is merged
        self._go_on = go_on

    def write(self, out: Path, side_out: Path) -> LayerRef:
        with ExitStack() as stack:
            reader = stack.enter_context(closing(ChainReader(self._paths)))
            layers = [stack.enter_context(closing(Layer(path))) for path in self._paths[self._first :]]
            sides = [
                stack.enter_context(closing(side_file.SideFile(side_file.side_path(path))))
                for path in self._paths[self._first :]
            ]
            fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            writer = LayerWriter(fd, self._sizes[-1])
            zero_runs: list[Run] = []
            digest = side_file.write(
                side_out, writer.size, self._windows(writer, reader, layers, sides, zero_runs), _lazily(zero_runs)
            )
            writer.finish(self._paths[self._first - 1].name if self._first else None)
            files.sync_directory(out.parent)
        return LayerRef(
            file=self._paths[-1].name,
            size=writer.size,
            clusters=writer.data_clusters + sum(run.count for run in zero_runs),
            stored_bytes=writer.position - CLUSTER,
            digest=digest,
        )

    def _windows(
        self,
        writer: LayerWriter,
        reader: ChainReader,
        layers: Sequence[Layer],
        sides: Sequence[side_file.SideFile],
        zero_runs: list[Run],
    ) -> Iterator[bytes]:
        """Write the frames, one L2 table's worth of clusters after the other; yields the side file's records."""
        cut = self._cut_clusters()
        for start in range(0, clusters(writer.size), TABLE_ENTRIES):
            if not self._go_on():
                raise Cancelled
            end = min(start + TABLE_ENTRIES, clusters(writer.size))
            winners, fingerprints = self._window(layers, sides, start, end)
            zeros, data, frames = [], [], []
            for cluster in sorted(winners.keys() | {cluster for cluster in cut if start <= cluster < end}):
                if cluster in cut:  # part of it lies past a former end of the disk
                    content = reader.read_cluster(cluster)
                    frame = b"" if is_zero(content) else zstd_frame.compress(content)
                    fingerprints[cluster] = fingerprint(content)
                else:
                    layer, entry = winners[cluster]
                    frame = b"" if layer is None or entry == ZERO else layer.frame(cluster, entry)
                if frame:
                    data.append(cluster)
                    frames.append(frame)
                else:
                    zeros.append(cluster)
            if self._first:  # over nothing, what is not there is zero
                for run in runs(zeros):
                    writer.record_zeros(run)
                    zero_runs.append(run)
            _append(writer, data, frames)
            missing = next((cluster for cluster in data if cluster not in fingerprints), None)
            if missing is not None:
                raise LayerDamaged(sides[-1].path, "has no fingerprint", missing)
            yield side_file.records(data, b"".join(fingerprints[cluster] for cluster in data))

    def _window(
        self, layers: Sequence[Layer], sides: Sequence[side_file.SideFile], start: int, end: int
    ) -> tuple[dict[int, tuple[Layer | None, int]], dict[int, bytes]]:
        """Which layer's entry of each cluster counts, and the clusters' fingerprints."""
        winners: dict[int, tuple[Layer | None, int]] = {}
        fingerprints: dict[int, bytes] = {}
        below = clusters(layers[0].size)
        highest = max(map(clusters, self._sizes[: self._first]), default=0)
        for layer, side in zip(layers, sides, strict=True):
            size = clusters(layer.size)
            for cluster in [cluster for cluster in winners if cluster >= size]:
                del winners[cluster]
            # Where the disk grew it reads zeros, whatever a layer from before it shrank holds there.
            for cluster in range(max(start, below), min(end, size, highest)):
                winners[cluster] = (None, ZERO)
            winners.update((cluster, (layer, entry)) for cluster, entry in layer.entries(start, end))
            fingerprints.update(side.data(start, end))
            below, highest = size, max(size, highest)
        return winners, fingerprints

    def _cut_clusters(self) -> set[int]:
        """The clusters in which the disk ended after it shrank, as far as the merged layers did that."""
        pairs = zip(self._sizes[max(0, self._first - 1) :], self._sizes[max(1, self._first) :], strict=False)
        ends = (upper for lower, upper in pairs if upper < lower and upper % CLUSTER)
        return {end // CLUSTER for end in ends if end // CLUSTER < clusters(self._sizes[-1])}


def _append(writer: LayerWriter, indexes: Sequence[int], frames: Sequence[bytes]) -> None:
    """Write frames in pieces of about _BUFFER bytes."""
    first = size = 0
    for position, frame in enumerate(frames):
        size += len(frame)
        if size >= _BUFFER or position == len(frames) - 1:
            piece = frames[first : position + 1]
            writer.write(b"".join(piece))
            writer.record(indexes[first : position + 1], list(map(len, piece)))
            first, size = position + 1, 0


def _lazily(zero_runs: list[Run]) -> Iterator[Run]:
    """The list as it is when it is read, after the records."""
    yield from zero_runs
