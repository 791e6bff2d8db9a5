"""Whether a layer is, byte for byte, what its side file makes of it: frames, header, tables, refcounts."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hyperv_host_agent.store.formats import zstd_frame
from hyperv_host_agent.store.formats.qcow2 import Header, Layer
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.formats.side_file import NEWEST, WINDOW, Entry, SideFile, side_path
from hyperv_host_agent.store.manifests import LayerRef
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER, clusters, runs

_STEP: Final = 4 << 20  # bytes of frames between two looks of the caller
_PIECE: Final = 1 << 20
_FARTHEST: Final = 1 << 62  # no file is so long


@dataclass(frozen=True, slots=True)
class Piece:
    """The frames of clusters up to `end` were read."""

    end: int
    checked_bytes: int
    damaged: tuple[tuple[Entry, str], ...]  # and what is wrong with them


class LayerCheck:
    """A layer open for reading, with a side file that is known to be sound; replacing them meanwhile does not matter.

    A layer that cannot be opened is one whose frames are all unreadable.
    """

    def __init__(self, layer: Path, ref: LayerRef, side: Path) -> None:
        """Raises LayerDamaged for the side file."""
        self._ref = ref
        with ExitStack() as opened:
            self.side = opened.enter_context(closing(SideFile(side)))
            self._fd = -1
            try:
                self._fd = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, self._fd)
            except OSError as error:
                self._problem = f"cannot be opened: {error.strerror}"
            self._opened = opened.pop_all()

    def frames(self, start: int) -> Iterator[Piece]:
        """Read all frames of the clusters from `start` on."""
        damaged: list[tuple[Entry, str]] = []
        size = reached = 0
        for entry in self.side.entries(start):
            if size >= _STEP and entry.cluster != reached:
                yield Piece(entry.cluster, size, tuple(damaged))
                damaged, size = [], 0
            reached = entry.cluster
            size += entry.length
            problem = self._frame_problem(entry)
            if problem:
                damaged.append((entry, problem))
        yield Piece(NEWEST, size, tuple(damaged))

    def content(self, entry: Entry) -> bytes | None:
        """The frame of an entry when it is sound."""
        return None if self._frame_problem(entry) else self._read(entry.offset, entry.length)

    def next_version(self, cluster: int, after: int) -> int:
        """The first cycle after `after` that the layer holds the cluster of; 0: none."""
        cycles = [entry.cycle for entry in self.side.entries(cluster, cluster + 1)]
        cycles += [run.cycle for run in self.side.zeros(cluster, cluster + 1)]
        return min((cycle for cycle in cycles if cycle > after), default=0)

    def tables_problem(self) -> str | None:
        """What of the file, beside its frames, differs from what the layer writer makes."""
        if self._fd < 0:
            return self._problem
        fd = os.memfd_create("expected", os.MFD_CLOEXEC)  # the frames' part of it stays a hole
        try:
            writer = LayerWriter(fd, self._ref.size)
            lay_out(writer, self.side, self._ref)
            writer.finish(self._ref.backing)
            return self._difference(fd, writer.position)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame_problem(self, entry: Entry) -> str | None:
        if self._fd < 0:
            return self._problem
        if entry.length > zstd_frame.MAX_FRAME or entry.offset >= _FARTHEST:
            return f"it is said to be {entry.length} bytes at {entry.offset}"
        try:
            stored = self._read(entry.offset, entry.length)
            if len(stored) != entry.length:
                return "the file ends before it"
            if zstd_frame.length(stored) != entry.length:
                return "its frame has another length"
            if fingerprint(zstd_frame.content(stored)) != entry.fingerprint:
                return "its content does not match its fingerprint"
        except zstd_frame.BadFrame as error:
            return error.problem
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None

    def _difference(self, fd: int, data_end: int) -> str | None:
        try:
            expected, actual = os.fstat(fd).st_size, os.fstat(self._fd).st_size
            if expected != actual:
                return f"the file has {actual} bytes instead of {expected}"
            for start, end in ((0, CLUSTER), (data_end, expected)):
                for at in range(start, end, _PIECE):
                    count = min(_PIECE, end - at)
                    right, found = os.pread(fd, count, at), self._read(at, count)
                    if right != found:
                        return f"its {_part(fd, at + _first_difference(right, found))} is not what its frames make it"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        return None

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)


def lay_out(writer: LayerWriter, side: SideFile, ref: LayerRef) -> None:
    """Let the writer know all frames where the side file says they are, and what is zero; then it may `finish`."""
    end = CLUSTER + ref.stored_bytes
    for start in range(0, clusters(ref.size), WINDOW):
        for entry in side.entries(start, start + WINDOW):
            writer.position = entry.offset
            if entry.mapped:
                writer.record([entry.cluster], [entry.length])
            else:
                writer.skip(entry.length)
        newest = side.at(NEWEST, start, min(start + WINDOW, clusters(ref.size)))
        for run in runs(sorted(cluster for cluster, entry in newest.items() if not entry.length)):
            writer.record_zeros(run)
    for entry in side.entries(clusters(ref.size)):  # a point inside was larger
        writer.position = entry.offset
        writer.skip(entry.length)
    writer.position = end


def stand_in(layer: Path, side_file: Path | None = None) -> LayerRef:
    """What was said of a layer, but for the points in it, from the files alone. Raises LayerDamaged."""
    with closing(Layer(layer)) as opened, closing(SideFile(side_file or side_path(layer))) as side:
        end, count = CLUSTER, 0
        for entry in side.entries():
            end, count = max(end, entry.offset + entry.length), count + 1
        return LayerRef(
            file=layer.name,
            backing=opened.header.backing,
            size=opened.size,
            clusters=count + sum(run.end - run.start for run in side.zeros()),
            stored_bytes=end - CLUSTER,
            digest=side.digest(),
        )


def _first_difference(right: bytes, found: bytes) -> int:
    low, high = 0, len(right)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if right[low : middle + 1] == found[low : middle + 1] else (low, middle)
    return low


def _part(fd: int, offset: int) -> str:
    """What of a layer is at this offset; `fd` holds it as it should be."""
    header = Header.decode(os.pread(fd, 4096, 0), Path("expected"))
    if offset < CLUSTER:
        return "header"
    if header.l1_offset <= offset < header.l1_offset + header.l1_entries * 8:
        return "L1 table"
    return "L2 tables" if offset < header.l1_offset else "refcounts"
