"""What a layer holds, in a file beside it: every frame, of which cycle it is, where it is, and what it must hold.

The layer's own tables say only what is newest. A layer that several cycles became one in (a pack) keeps older versions
of clusters for the points inside it: frames in its data area that no table names, listed here.

Little-endian. A record (cluster, cycle, offset, length and whether the tables name it, fingerprint) per frame,
ascending by cluster, then cycle; a record (start, count, cycle) per run of clusters that a cycle made zero, ascending
by start, none reaching over a multiple of WINDOW clusters; a trailer with the disk's size and both counts.
36 bytes a frame: 576 MiB for a TiB of data.
"""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from hyperv_host_agent.store.files import DIGEST_BYTES, sync, write_all
from hyperv_host_agent.store.formats.qcow2 import TABLE_ENTRIES, LayerDamaged
from twinsite.digest import FINGERPRINT_BYTES, ZERO_FINGERPRINT

WINDOW: Final = TABLE_ENTRIES  # clusters
NEWEST: Final = (1 << 32) - 1  # a cycle above all
_RECORD: Final = struct.Struct(f"<IIQI{FINGERPRINT_BYTES}s")
_RUN: Final = struct.Struct("<III")
_TRAILER: Final = struct.Struct("<QQQ8s")
_MAGIC: Final = b"TWFPRNT2"
_MAPPED: Final = 1 << 31
_BUFFER: Final = 1 << 20


class Entry(NamedTuple):
    """One frame of a layer, or (of `SideFile.at`) that the cluster is zero: `length` 0."""

    cluster: int
    cycle: int  # that brought it
    offset: int  # in the layer file, bytes
    length: int
    fingerprint: bytes
    mapped: bool = True  # the layer's tables name it; False: an older version that only points inside the pack see


class ZeroRun(NamedTuple):
    """Clusters `start` up to `end` that read zeros from a cycle on."""

    start: int
    end: int
    cycle: int


def side_path(layer: Path) -> Path:
    """Where what a layer holds is told: 000042.qcow2 → 000042.fp."""
    return layer.with_suffix(".fp")


def records(entries: Iterable[Entry]) -> bytes:
    """Ascending entries as they are stored."""
    pack = _RECORD.pack
    return b"".join(
        pack(cluster, cycle, offset, length | _MAPPED if mapped else length, fingerprint)
        for cluster, cycle, offset, length, fingerprint, mapped in entries
    )


def arrived(
    cycle: int, indexes: Sequence[int], lengths: Sequence[int], position: int, fingerprints: bytes
) -> Iterator[Entry]:
    """The entries of frames that came back to back, the first one at `position` of the layer."""
    at = 0
    for index, length in zip(indexes, lengths, strict=True):
        yield Entry(index, cycle, position, length, fingerprints[at : at + FINGERPRINT_BYTES])
        position += length
        at += FINGERPRINT_BYTES


def write(path: Path, size: int, chunks: Iterable[bytes], zero_runs: Iterable[ZeroRun]) -> bytes:
    """Write a side file durably from chunks of ascending `records`; its digest. Raises OSError.

    Runs may be longer than a window when no two of them overlap.
    """
    with closing(SideWriter(path)) as writer:
        for chunk in chunks:
            writer.add(chunk)
        return writer.finish(size, zero_runs)


class SideWriter:
    """A side file that grows. OSErrors of writing pass through."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._digest = blake3()
        self._end = 0
        self._buffer = bytearray()

    def add(self, chunk: bytes) -> None:
        """Further `records`, ascending."""
        self._buffer += chunk
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def finish(self, size: int, zero_runs: Iterable[ZeroRun]) -> bytes:
        """Complete it durably, for a disk of `size` bytes; its digest."""
        count, run_count = (self._end + len(self._buffer)) // _RECORD.size, 0
        for run in zero_runs:
            for piece in _pieces(run):
                self.add(_RUN.pack(piece.start, piece.end - piece.start, piece.cycle))
                run_count += 1
        self.add(_TRAILER.pack(size, count, run_count, _MAGIC))
        self._flush()
        sync(self._fd)
        return self._digest.digest(length=DIGEST_BYTES)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _flush(self) -> None:
        write_all(self._fd, bytes(self._buffer), self._end)
        self._digest.update(self._buffer)
        self._end += len(self._buffer)
        self._buffer.clear()


class SideFile:
    """A side file, open for reading. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises LayerDamaged when it cannot be one."""
        self.path = path
        self.size: int  # bytes of the disk at the layer
        self._count: int
        self._runs: int
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise LayerDamaged(path, f"cannot be opened: {error}") from error
        length = len(self._map)
        if length >= _TRAILER.size:
            self.size, self._count, self._runs, magic = _TRAILER.unpack_from(self._map, length - _TRAILER.size)
            expected = self._count * _RECORD.size + self._runs * _RUN.size + _TRAILER.size
        if length < _TRAILER.size or magic != _MAGIC or length != expected:
            self._map.close()
            raise LayerDamaged(path, "is no side file of fingerprints, or cut off")

    def digest(self) -> bytes:
        """Over the whole file, as `write` returned it."""
        return blake3(self._map).digest(length=DIGEST_BYTES)

    def count(self, start: int, end: int) -> int:
        """How many frames there are of the clusters `start` up to `end`."""
        return self._before(end, 0, _RECORD.size, self._count) - self._before(start, 0, _RECORD.size, self._count)

    def entries(self, start: int = 0, end: int = NEWEST) -> Iterator[Entry]:
        """Every frame of the clusters `start` up to `end`, ascending by cluster, then cycle."""
        for cluster, cycle, offset, length, fingerprint in self._records(start, end):
            yield Entry(cluster, cycle, offset, length & ~_MAPPED, fingerprint, length >= _MAPPED)

    def zeros(self, start: int = 0, end: int = NEWEST) -> Iterator[ZeroRun]:
        """The zero runs, cut to clusters `start` up to `end`, ascending by start; those of several cycles overlap."""
        base = self._count * _RECORD.size
        for position in range(self._before(start // WINDOW * WINDOW, base, _RUN.size, self._runs), self._runs):
            run_start, count, cycle = _RUN.unpack_from(self._map, base + position * _RUN.size)
            if run_start >= end:
                break
            first, last = max(start, run_start), min(end, run_start + count)
            if first < last:
                yield ZeroRun(first, last, cycle)

    def at(self, cycle: int, start: int, end: int) -> dict[int, Entry]:
        """By cluster, what the layer says of it at a cycle: its newest frame up to then, or that it is zero."""
        found: dict[int, Entry] = {}
        for entry in self.entries(start, end):
            if entry.cycle <= cycle:
                found[entry.cluster] = entry
        for run in self.zeros(start, end):
            if run.cycle <= cycle:
                for cluster in range(run.start, run.end):
                    held = found.get(cluster)
                    if held is None or held.cycle < run.cycle:
                        found[cluster] = Entry(cluster, run.cycle, 0, 0, ZERO_FINGERPRINT)
        return found

    def fingerprints(self, cycle: int, start: int, end: int) -> dict[int, bytes]:
        """As `at`, the fingerprints alone; ZERO_FINGERPRINT for what is zero."""
        found: dict[int, bytes] = {}
        dates: dict[int, int] = {}
        runs = [run for run in self.zeros(start, end) if run.cycle <= cycle]
        for cluster, of, _, _, fingerprint in self._records(start, end):
            if of <= cycle:
                found[cluster] = fingerprint
                if runs:
                    dates[cluster] = of
        for run in runs:
            for cluster in range(run.start, run.end):
                if dates.get(cluster, -1) < run.cycle:
                    found[cluster], dates[cluster] = ZERO_FINGERPRINT, run.cycle
        return found

    def close(self) -> None:
        self._map.close()

    def _records(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, bytes]]:
        first = self._before(start, 0, _RECORD.size, self._count) * _RECORD.size
        last = self._before(end, 0, _RECORD.size, self._count) * _RECORD.size
        step = _BUFFER // _RECORD.size * _RECORD.size
        pieces = (self._map[at : min(at + step, last)] for at in range(first, last, step))
        return chain.from_iterable(map(_RECORD.iter_unpack, pieces))

    def _before(self, cluster: int, base: int, size: int, count: int) -> int:
        """How many of the `count` items of `size` bytes from `base` begin with less than the cluster."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if int.from_bytes(self._map[base + middle * size : base + middle * size + 4], "little") < cluster:
                low = middle + 1
            else:
                high = middle
        return low


def _pieces(run: ZeroRun) -> Iterator[ZeroRun]:
    """The run, cut at multiples of WINDOW."""
    start = run.start
    while start < run.end:
        stop = min(run.end, (start // WINDOW + 1) * WINDOW)
        yield ZeroRun(start, stop, run.cycle)
        start = stop
