"""qcow2 as layers use it: version 3, 64 KiB clusters, zstd frames. The format, a layer's reader, a chain's reader."""

import os
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hyperv_host_agent.store.formats import zstd_frame
from twinsite.digest import is_zero
from twinsite.errors import Failed
from twinsite.extents import CLUSTER, clusters

CLUSTER_BITS: Final = 16
HEADER_BYTES: Final = 112
PAGE_ENTRIES: Final = 512  # of an L2 table: 4 KiB, the unit that is kept in memory and written; the rest stays holes
TABLE_ENTRIES: Final = CLUSTER // 8  # one L2 table maps 512 MiB
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
OFFSET_BITS: Final = 62 - (CLUSTER_BITS - 8)  # of a compressed entry; above them: further 512-byte sectors it touches
SECTOR: Final = 512

_MAGIC: Final = 0x514649FB
_HEADER: Final = struct.Struct(">IIQIIQIIQQIIQQQQIIB7x")
_EXTENSION: Final = struct.Struct(">II")
_BACKING_FORMAT: Final = 0xE2792ACA  # libvirt refuses to probe, so the format of the backing file is always said
_COMPRESSION_TYPE: Final = 1 << 3  # incompatible feature bit
_ZSTD: Final = 1
_OFFSET: Final = 0x00FFFFFFFFFFFE00
_CACHED_PAGES: Final = 512  # 2 MiB a layer
_ZEROS: Final = bytes(CLUSTER)
_NO_ENTRIES: Final = array("Q", bytes(PAGE_ENTRIES * 8))


class LayerDamaged(Failed):
    """A layer cannot be read as what it should be; `cluster` is None when it is not about one."""

    public = "{error.file}: {error.where}{error.problem}"
    still_works = "other recovery points may not be affected"
    next_step = "use an older recovery point; the next resynchronisation repairs the replica"

    def __init__(self, path: Path, problem: str, cluster: int | None = None) -> None:
        self.path, self.problem, self.cluster = path, problem, cluster

    @property
    def file(self) -> str:
        return self.path.name

    @property
    def where(self) -> str:
        return "" if self.cluster is None else f"cluster {self.cluster}: "


@dataclass(frozen=True, slots=True)
class Header:
    """What a layer's first cluster says."""

    size: int  # bytes of the disk
    backing: str | None  # file name in the same directory
    l1_offset: int
    l1_entries: int
    refcount_offset: int
    refcount_clusters: int

    def encode(self) -> bytes:
        """The header, its extensions and the backing name; less than one cluster."""
        extensions, backing = b"", (self.backing or "").encode()
        if backing:
            extensions = _EXTENSION.pack(_BACKING_FORMAT, 5) + b"qcow2".ljust(8, b"\0")
        extensions += _EXTENSION.pack(0, 0)
        backing_at = HEADER_BYTES + len(extensions) if backing else 0
        head = _HEADER.pack(
            *(_MAGIC, 3, backing_at, len(backing), CLUSTER_BITS, self.size, 0),
            *(self.l1_entries, self.l1_offset, self.refcount_offset, self.refcount_clusters, 0, 0),
            *(_COMPRESSION_TYPE, 0, 0, 4, HEADER_BYTES, _ZSTD),
        )
        return head + extensions + backing

    @classmethod
    def decode(cls, data: bytes, path: Path) -> "Header":
        """Raises LayerDamaged for anything a layer cannot be."""
        if len(data) < HEADER_BYTES:
            raise LayerDamaged(path, f"has {len(data)} bytes, too few for a header")
        (magic, version, backing_at, backing_length, bits, size, encrypted, l1_entries, l1_offset, *rest) = (
            _HEADER.unpack(data[:HEADER_BYTES])
        )
        refcount_offset, refcount_clusters, _snapshots, _snapshots_at, incompatible = rest[:5]
        compression = rest[-1] if incompatible & _COMPRESSION_TYPE else 0
        if magic != _MAGIC:
            raise LayerDamaged(path, "is not a qcow2 file")
        problem = (
            (version != 3 and f"qcow2 version {version}")
            or (bits != CLUSTER_BITS and f"clusters of 2^{bits} bytes")
            or (encrypted and "is encrypted")
            or (incompatible & ~_COMPRESSION_TYPE and f"needs features {incompatible:#x}")
            or (compression not in {0, _ZSTD} and f"compression type {compression}")
            or (backing_at + backing_length > len(data) and "its backing file's name lies outside the header")
            or (l1_entries < -(-clusters(size) // TABLE_ENTRIES) and f"its L1 table has {l1_entries} entries")
            or (l1_entries > 1 << 22 and f"its L1 table has {l1_entries} entries")
        )
        if problem:
            raise LayerDamaged(path, problem)
        backing = data[backing_at : backing_at + backing_length].decode(errors="replace") if backing_at else None
        return cls(size, backing, l1_offset, l1_entries, refcount_offset, refcount_clusters)


def frame_entry(offset: int, length: int) -> int:
    """The L2 entry of a frame of `length` bytes at `offset` in the file."""
    return COMPRESSED | ((offset & SECTOR - 1) + length - 1) // SECTOR << OFFSET_BITS | offset


def frame_extent(entry: int) -> tuple[int, int]:
    """Offset and longest possible length in bytes (to the end of its last sector) of a frame's L2 entry."""
    offset = entry & (1 << OFFSET_BITS) - 1
    sectors = (entry >> OFFSET_BITS & (1 << CLUSTER_BITS - 8) - 1) + 1
    return offset, sectors * SECTOR - offset % SECTOR


class Layer:
    """One layer file, open for reading. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pages: dict[int, array[int]] = {}
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LayerDamaged(path, f"cannot be opened: {error.strerror}") from error
        try:
            self.header = Header.decode(self._read(0, 4096), path)
            tables = self._read(self.header.l1_offset, self.header.l1_entries * 8)
            if len(tables) != self.header.l1_entries * 8:
                raise LayerDamaged(path, "its L1 table is cut off")  # noqa: TRY301  # closes the file below
        except LayerDamaged:
            os.close(self._fd)
            raise
        self._tables = _big_endian(tables)

    @property
    def size(self) -> int:
        """Bytes of the disk at this layer."""
        return self.header.size

    def entry(self, cluster: int) -> int:
        """The cluster's L2 entry, 0: not in this layer."""
        number = cluster // PAGE_ENTRIES
        page = self._pages.get(number)
        return (page or self._page(number))[cluster % PAGE_ENTRIES]

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """(cluster, L2 entry) of what the layer holds of clusters `start` up to `end`, ascending."""
        end = min(clusters(self.size) if end is None else end, clusters(self.size))
        number = start // PAGE_ENTRIES
        while number * PAGE_ENTRIES < end:
            if not self._tables[number * PAGE_ENTRIES // TABLE_ENTRIES]:
                number = (number * PAGE_ENTRIES // TABLE_ENTRIES + 1) * (TABLE_ENTRIES // PAGE_ENTRIES)
                continue
            page = self._page(number)
            if page is not _NO_ENTRIES:
                for cluster, entry in enumerate(page, number * PAGE_ENTRIES):
                    if entry and start <= cluster < end:
                        yield cluster, entry
            number += 1

    def frame(self, cluster: int, entry: int) -> bytes:
        """The frame as it is stored, made anew for a cluster that is not compressed. Raises LayerDamaged."""
        if not entry & COMPRESSED:
            return zstd_frame.compress(self.data(cluster, entry))
        stored = self._read(*frame_extent(entry))
        try:
            return stored[: zstd_frame.length(stored)]
        except zstd_frame.BadFrame as error:
            raise LayerDamaged(self.path, error.problem, cluster) from error

    def data(self, cluster: int, entry: int) -> bytes:
        """The content behind an L2 entry, CLUSTER bytes. Raises LayerDamaged."""
        if entry & COMPRESSED:
            try:
                return zstd_frame.content(self._read(*frame_extent(entry)))
            except zstd_frame.BadFrame as error:
                raise LayerDamaged(self.path, error.problem, cluster) from error
        if _reads_zero(entry):
            return _ZEROS
        return self._read(entry & _OFFSET, CLUSTER).ljust(CLUSTER, b"\0")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _page(self, number: int) -> "array[int]":
        table = self._tables[number * PAGE_ENTRIES // TABLE_ENTRIES] & _OFFSET
        page = _NO_ENTRIES
        if table:
            at = table + number % (TABLE_ENTRIES // PAGE_ENTRIES) * PAGE_ENTRIES * 8
            stored = self._read(at, PAGE_ENTRIES * 8)
            if len(stored) != PAGE_ENTRIES * 8:
                raise LayerDamaged(self.path, "an L2 table is cut off", number * PAGE_ENTRIES)
            if stored.count(0) != len(stored):
                page = _big_endian(stored)
        if len(self._pages) >= _CACHED_PAGES:
            self._pages.clear()
        self._pages[number] = page
        return page

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OverflowError as error:  # a damaged table may say anything
            raise LayerDamaged(self.path, f"names offset {offset}, past any file's end") from error
        except OSError as error:
            raise LayerDamaged(self.path, f"cannot be read at {offset}: {error.strerror}") from error


class ChainReader:
    """A disk as a chain of layers shows it, oldest first, the last one is the disk. Thread-safe."""

    def __init__(self, layers: Sequence[Path]) -> None:
        """Open all layers. Raises LayerDamaged, ValueError for an empty chain."""
        if not layers:
            raise ValueError("a chain has at least one layer")
        opened: list[Layer] = []
        try:
            for path in layers:
                opened.append(Layer(path))  # noqa: PERF401  # those before a damaged one are closed below
        except LayerDamaged:
            for layer in opened:
                layer.close()
            raise
        self.size = opened[-1].size
        # What a layer holds past the end of a smaller one above it is gone for good, though a later one grew again.
        self._layers: list[tuple[Layer, int]] = []
        limit = self.size
        for layer in reversed(opened):
            limit = min(limit, layer.size)
            self._layers.append((layer, limit))

    def read_cluster(self, cluster: int) -> bytes:
        """CLUSTER bytes; zeros past the end of the disk. Raises LayerDamaged, ValueError for a cluster past the end."""
        layer, entry, limit = self._find(cluster)
        if layer is None:
            return _ZEROS
        data = layer.data(cluster, entry)
        return data if limit >= CLUSTER else data[:limit].ljust(CLUSTER, b"\0")

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises LayerDamaged, ValueError for a range that leaves the disk."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset}+{length} is not inside {self.size} bytes")
        if not length:
            return b""
        first, last = offset // CLUSTER, (offset + length - 1) // CLUSTER
        start = offset - first * CLUSTER
        if first == last:
            return self.read_cluster(first)[start : start + length]
        return b"".join(map(self.read_cluster, range(first, last + 1)))[start : start + length]

    def frame(self, cluster: int) -> bytes:
        """A frame of what `read_cluster` returns, the stored one when it is that; empty: zeros. Raises LayerDamaged."""
        layer, entry, limit = self._find(cluster)
        if layer is None or _reads_zero(entry):
            return b""
        if limit >= CLUSTER:
            return layer.frame(cluster, entry)
        data = self.read_cluster(cluster)
        return b"" if is_zero(data) else zstd_frame.compress(data)

    def is_zero(self, cluster: int) -> bool:
        """Whether the chain knows without reading that the cluster holds zeros. ValueError for one past the end."""
        layer, entry, _ = self._find(cluster)
        return layer is None or _reads_zero(entry)

    def mapped(self, start: int, end: int) -> list[int]:
        """The clusters `start` up to `end` that hold data, ascending."""
        found: dict[int, int] = {}
        for layer, limit in self._layers:
            end = min(end, clusters(limit))
            for cluster, entry in layer.entries(start, end):
                found.setdefault(cluster, entry)
        return sorted(cluster for cluster, entry in found.items() if not _reads_zero(entry))

    def close(self) -> None:
        for layer, _ in self._layers:
            layer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, cluster: int) -> tuple[Layer | None, int, int]:
        """The newest layer that holds the cluster, its entry, and how many bytes of it count."""
        if not 0 <= cluster * CLUSTER < self.size:
            raise ValueError(f"cluster {cluster} is not inside {self.size} bytes")
        for layer, limit in self._layers:
            if limit <= cluster * CLUSTER:
                break
            entry = layer.entry(cluster)
            if entry:
                return layer, entry, limit - cluster * CLUSTER
        return None, 0, 0


def _reads_zero(entry: int) -> bool:
    return not entry & COMPRESSED and (bool(entry & ZERO) or not entry & _OFFSET)


def _big_endian(data: bytes) -> "array[int]":
    values = array("Q", data)
    if sys.byteorder == "little":
        values.byteswap()
    return values
