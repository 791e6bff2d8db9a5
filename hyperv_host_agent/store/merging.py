"""Layers become one. What is newest in them is what the new layer's tables show; older versions of a cluster that a
point inside still needs stay as frames that only its side file knows (a pack). Frames are copied as they are.

The new layer takes the name of the newest one it replaces, so nothing above it changes. Layer, side file and the
document of the chains cannot be replaced by one rename; an intent, durable before the first of them, lets a start after
a crash do the rest.
"""

import os
from bisect import bisect_left, insort
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

from hyperv_host_agent.store import files, rules
from hyperv_host_agent.store.base import BadName
from hyperv_host_agent.store.chains import CHAINS, Chains, store
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.formats import side_file, zstd_frame
from hyperv_host_agent.store.formats.qcow2 import ChainReader, LayerDamaged
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.formats.side_file import WINDOW, Entry, SideFile, SideWriter, ZeroRun, side_path
from hyperv_host_agent.store.manifests import LayerRef
from twinsite.digest import ZERO_FINGERPRINT, fingerprint, is_zero
from twinsite.extents import CLUSTER, clusters, runs

MERGED: Final = ".merged"
INTENT: Final = "merge.json"
_BUFFER: Final = 1 << 20
_AT_ONCE: Final = 1 << 11  # frames in a step: 128 MiB at most
_MADE: Final = -1  # a frame that the merge made itself


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
            disk, group = rules.check_id("disk", document["disk"]), tuple(map(str, document["group"]))
            intent = cls(disk, group, LayerRef.from_json(document["into"]))
        except (KeyError, TypeError, BadName) as error:
            raise ValueError(f"is malformed: {error}") from error
        if intent.encode() != data or not group or intent.into.file != group[-1]:
            raise ValueError("is malformed")
        return intent


def publish(directory: Path, intent: Intent, chains: Chains) -> Chains:
    """Put a finished layer in place of a group of layers: the chains afterwards.

    The files must be durable under `temporary_paths(directory / disk / into.file)`; `into.file` is the newest of the
    group, `into.backing` what the oldest of it stood on. A group of one replaces a layer by another version of itself:
    with frames repaired, or the content that came on media. Repeatable after a crash or an error at any instant.
    """
    files.replace_file(directory / INTENT, intent.encode())
    place(directory, intent)
    changed = chains.merged(intent.disk, intent.group, intent.into)
    store(directory, changed)
    (directory / INTENT).unlink()
    files.sync_directory(directory)
    return changed


def place(directory: Path, intent: Intent) -> None:
    """The files of it alone. Repeatable. Raises OSError."""
    layer = directory / intent.disk / intent.into.file
    files.remove_file(copy_path(side_path(layer)))  # of the side file that goes
    for final in (side_path(layer), layer):
        temporary = final.with_name(final.name + MERGED)
        if not temporary.exists():
            # Renamed before something failed. Once more: a sync of names that are as they were proves nothing.
            final.rename(temporary)
        temporary.rename(final)
    files.sync_directory(layer.parent)


def temporary_paths(layer: Path) -> tuple[Path, Path]:
    """Where a layer and its side file are until `publish` puts them in place."""
    side = side_path(layer)
    return layer.with_name(layer.name + MERGED), side.with_name(side.name + MERGED)


def discard(layer: Path) -> None:
    """Remove what a merge wrote or began to write. Raises OSError."""
    for path in temporary_paths(layer):
        files.remove_file(path)


class _Version(NamedTuple):
    """What a cycle made of a cluster: `length` 0 is zeros."""

    cycle: int
    source: int  # index of the layer the frame is in, or _MADE
    offset: int  # or the index of the made frame
    length: int
    fingerprint: bytes


class Merge:
    """One merge: drive `steps` to its end, then `result` is the new layer, durable under its temporary name."""

    def __init__(
        self,
        directory: Path,
        stack: Sequence[LayerRef],
        count: int,
        sizes: Mapping[int, int],
    ) -> None:
        """Merge the last `count` layers of `stack` (all that the newest of them stands on, oldest first).

        `sizes`: the disk's bytes at every cycle inside them that must stay readable; others are forgotten.
        """
        self.group = tuple(layer.file for layer in stack[-count:])
        self.result: LayerRef
        self._layer = directory / self.group[-1]
        self._directory = directory
        self._lower, self._merged = stack[:-count], stack[-count:]
        self._size = stack[-1].size
        inner = {cycle: size for cycle, size in sizes.items() if self._oldest < cycle < stack[-1].cycle}
        self._kept = [*sorted(inner), stack[-1].cycle]
        self._ends = [clusters(inner[cycle]) for cycle in self._kept[:-1]] + [clusters(self._size)]
        self._reader: ChainReader | None = None
        self._sides: list[SideFile] = []
        self._fds: list[int] = []
        self._made: list[bytes] = []
        self._zero_runs: list[ZeroRun] = []
        self._zeros = 0  # clusters that the tables show as zero

    @property
    def _oldest(self) -> int:
        return self._lower[-1].cycle if self._lower else 0

    def steps(self) -> Generator[int, None, None]:
        """Bytes written so far, after each piece of work. Raises OSError, LayerDamaged. Closing it leaves the files."""
        out, side_out = temporary_paths(self._layer)
        with ExitStack() as stack:
            self._open(stack)
            fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            writer = LayerWriter(fd, self._size)
            side = stack.enter_context(closing(SideWriter(side_out)))
            for start, end in self._windows():
                side.add(self._window(writer, start, end))
                yield writer.position
            digest = side.finish(self._size, self._zero_runs)
            writer.finish(self._merged[0].backing)
            files.sync_directory(out.parent)
        self.result = LayerRef(
            file=self.group[-1],
            backing=self._merged[0].backing,
            size=self._size,
            clusters=writer.data_clusters + self._zeros,
            stored_bytes=writer.position - CLUSTER,
            digest=digest,
            points=tuple(self._kept[:-1]),
        )

    def dead_bytes(self) -> int:
        """Bytes of frames that it would leave out. Raises LayerDamaged."""
        with ExitStack() as stack:
            self._open(stack)
            dead = 0
            for start, end in self._windows():
                for cluster, history in self._versions(start, end).items():
                    needed = self._needed(cluster, history)
                    dead += sum(version.length for version in history) - sum(version.length for version in needed)
            return dead

    def _open(self, stack: ExitStack) -> None:
        lower = [self._directory / layer.file for layer in self._lower]
        self._reader = stack.enter_context(closing(ChainReader(lower))) if lower else None
        self._sides.clear()
        self._fds.clear()
        for layer in self._merged:
            path = self._directory / layer.file
            held = stack.enter_context(closing(SideFile(side_path(path))))
            if held.digest() != layer.digest:
                raise LayerDamaged(held.path, f"does not match the digest in {CHAINS}")
            self._sides.append(held)
            self._fds.append(_open(path))
            stack.callback(os.close, self._fds[-1])

    def _windows(self) -> Iterator[tuple[int, int]]:
        """All clusters of the disk at any kept cycle, in pieces with not too many frames."""
        start, last = 0, max(self._ends)
        while start < last:
            end = min(last, (start // WINDOW + 1) * WINDOW)
            while end - start > 1 and sum(side.count(start, end) for side in self._sides) > _AT_ONCE:
                end = start + (end - start) // 2
            yield start, end
            start = end

    def _window(self, writer: LayerWriter, start: int, end: int) -> bytes:
        """Write what is kept of some clusters: their records for the side file."""
        self._made.clear()
        newest: list[tuple[int, _Version]] = []  # data that the tables show
        older: list[tuple[int, _Version]] = []
        shown_zero: list[int] = []
        zeros: dict[int, list[int]] = {}  # by cycle
        versions = self._versions(start, end)
        for cluster in sorted(versions):
            needed = self._needed(cluster, versions[cluster])
            shown = needed[-1] if needed and cluster < self._ends[-1] else None
            for version in needed:
                if not version.length:
                    zeros.setdefault(version.cycle, []).append(cluster)
                    if version is shown:
                        shown_zero.append(cluster)
                elif version is shown:
                    newest.append((cluster, version))
                else:
                    older.append((cluster, version))
        if self._lower:  # over nothing, what is not there is zero
            for run in runs(shown_zero):
                writer.record_zeros(run)
                self._zeros += run.count
        self._zero_runs += sorted(
            ZeroRun(run.start, run.end, cycle) for cycle, indexes in zeros.items() for run in runs(indexes)
        )
        return side_file.records(sorted([*self._copy(writer, newest), *self._copy(writer, older, mapped=False)]))

    def _versions(self, start: int, end: int) -> dict[int, list[_Version]]:
        """Everything the layers say of some clusters, by cluster, each ascending by cycle."""
        found: dict[int, list[_Version]] = {}
        below = max((clusters(layer.size) for layer in self._lower), default=0)
        before = self._lower[-1].size if self._lower else 0
        for source, (layer, side) in enumerate(zip(self._merged, self._sides, strict=True)):
            for cluster, cycle, offset, length, value, _ in side.entries(start, end):
                found.setdefault(cluster, []).append(_Version(cycle, source, offset, length, value))
            for run in side.zeros(start, end):
                for cluster in range(run.start, run.end):
                    insort(found.setdefault(cluster, []), _zero(run.cycle), key=_cycle)
            if layer.size < before and layer.size % CLUSTER and start <= layer.size // CLUSTER < end:
                self._cut(found.setdefault(layer.size // CLUSTER, []), layer)
            if layer is not self._merged[-1]:
                # Where the disk ended it reads zeros should it grow, whatever a layer from before it shrank holds.
                beyond = max(start, clusters(layer.size))
                for cluster in {*(x for x in found if x >= beyond), *range(beyond, min(end, below))}:
                    history = found.setdefault(cluster, [])
                    if not history or history[-1].length:
                        history.append(_zero(layer.cycle))
            before = layer.size
        return found

    def _cut(self, history: list[_Version], layer: LayerRef) -> None:
        """The disk ended inside this cluster when it shrank: what lay past its end is gone for good."""
        cluster, length = layer.size // CLUSTER, layer.size % CLUSTER
        if history:
            if history[-1].cycle == layer.cycle or not history[-1].length:
                return
            try:
                data = zstd_frame.content(self._read(cluster, history[-1:]))
            except zstd_frame.BadFrame as error:
                raise LayerDamaged(self._layer, error.problem, cluster) from error
        elif self._reader and cluster < clusters(self._reader.size):
            data = self._reader.read_cluster(cluster)
        else:
            return
        left = data[:length].ljust(CLUSTER, b"\0")
        if left == data:
            return
        if is_zero(left):
            history.append(_zero(layer.cycle))
        else:
            history.append(self._make(layer.cycle, zstd_frame.compress(left), fingerprint(left)))

    def _make(self, cycle: int, frame: bytes, value: bytes) -> _Version:
        self._made.append(frame)
        return _Version(cycle, _MADE, len(self._made) - 1, len(frame), value)

    def _needed(self, cluster: int, history: Sequence[_Version]) -> list[_Version]:
        """The versions that a kept cycle sees."""
        needed: list[_Version] = []
        for place, version in enumerate(history):
            until = history[place + 1].cycle if place + 1 < len(history) else side_file.NEWEST
            at = bisect_left(self._kept, version.cycle)
            while at < len(self._kept) and self._kept[at] < until and cluster >= self._ends[at]:
                at += 1
            if at == len(self._kept) or self._kept[at] >= until:
                continue
            if needed and needed[-1].fingerprint == version.fingerprint:
                continue  # what came between is forgotten
            if needed or version.length or self._lower:  # over nothing, what is not there is zero
                needed.append(version)
        return needed

    def _copy(self, writer: LayerWriter, frames: Sequence[tuple[int, _Version]], *, mapped: bool = True) -> list[Entry]:
        """Write frames in pieces of about _BUFFER bytes: where they are now."""
        placed: list[Entry] = []
        first = size = 0
        for place, (_, version) in enumerate(frames):
            size += version.length
            if size < _BUFFER and place < len(frames) - 1:
                continue
            piece, at = frames[first : place + 1], writer.position
            writer.write(self._read(piece[0][0], [version for _, version in piece]))
            if mapped:
                writer.record([cluster for cluster, _ in piece], [version.length for _, version in piece])
            else:
                writer.skip(size)
            for cluster, (cycle, _, _, length, value) in piece:
                placed.append(Entry(cluster, cycle, at, length, value, mapped))
                at += length
            first, size = place + 1, 0
        return placed

    def _read(self, cluster: int, versions: Sequence[_Version]) -> bytes:
        """Their frames, back to back; those that lie so are read at once. `cluster`: the first one's."""
        parts, place = [], 0
        while place < len(versions):
            _, source, offset, length, _ = versions[place]
            place += 1
            if source == _MADE:
                parts.append(self._made[offset])
                continue
            while place < len(versions) and (versions[place].source, versions[place].offset) == (
                source,
                offset + length,
            ):
                length += versions[place].length
                place += 1
            part = os.pread(self._fds[source], length, offset)
            if len(part) != length:
                raise LayerDamaged(self._directory / self._merged[source].file, "is cut off", cluster)
            parts.append(part)
        return b"".join(parts)


def _zero(cycle: int) -> _Version:
    return _Version(cycle, _MADE, 0, 0, ZERO_FINGERPRINT)


def _cycle(version: _Version) -> int:
    return version.cycle


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LayerDamaged(path, f"cannot be opened: {error.strerror}") from error
