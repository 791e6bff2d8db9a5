"""The fingerprints of a layer, in a file beside it: the layer says where a cluster is, this says what it must be.

Little-endian: a record (cluster, fingerprint) per data cluster, ascending; a record (start, count) per zero run,
ascending; a trailer with the disk's size and both counts. 24 bytes a cluster: 384 MiB for a TiB of data.
"""

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from hyperv_host_agent.store.files import DIGEST_BYTES, sync, write_all
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import Run

_RECORD: Final = struct.Struct(f"<Q{FINGERPRINT_BYTES}s")
_RUN: Final = struct.Struct("<QQ")
_TRAILER: Final = struct.Struct("<QQQ8s")
_MAGIC: Final = b"TWFPRNT1"
_BUFFER: Final = 1 << 20


def side_path(layer: Path) -> Path:
    """Where a layer's fingerprints are: 000042.qcow2 → 000042.fp."""
    return layer.with_suffix(".fp")


def records(indexes: Iterable[int], fingerprints: bytes) -> bytes:
    """Ascending clusters and their fingerprints as records."""
    pack = _RECORD.pack
    return b"".join(
        pack(index, fingerprints[at : at + FINGERPRINT_BYTES])
        for index, at in zip(indexes, range(0, len(fingerprints), FINGERPRINT_BYTES), strict=True)
    )


def write(path: Path, size: int, chunks: Iterable[bytes], zero_runs: Iterable[Run]) -> bytes:
    """Write a side file durably from chunks of ascending records; its digest. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        digest, end, buffer = blake3(), 0, bytearray()

        def flush() -> None:
            nonlocal end
            write_all(fd, bytes(buffer), end)
            digest.update(buffer)
            end += len(buffer)
            buffer.clear()

        for chunk in chunks:
            buffer += chunk
            if len(buffer) >= _BUFFER:
                flush()
        count, run_count = (end + len(buffer)) // _RECORD.size, 0
        for run in zero_runs:
            buffer += _RUN.pack(run.start, run.count)
            run_count += 1
        buffer += _TRAILER.pack(size, count, run_count, _MAGIC)
        flush()
        sync(fd)
    finally:
        os.close(fd)
    return digest.digest(length=DIGEST_BYTES)


class SideFile:
    """A side file, open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises LayerDamaged when it cannot be one."""
        self.path = path
        self.size: int
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

    def __len__(self) -> int:
        return self._count

    def data(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(cluster, fingerprint) of the data clusters `start` up to `end`, ascending."""
        first = self._before(start, 0, _RECORD.size, self._count)
        last = self._before(end, 0, _RECORD.size, self._count)
        return _RECORD.iter_unpack(self._map[first * _RECORD.size : last * _RECORD.size])

    def zeros(self, start: int, end: int) -> Iterator[Run]:
        """The zero runs, cut to clusters `start` up to `end`, ascending."""
        base = self._count * _RECORD.size
        for position in range(max(0, self._before(start, base, _RUN.size, self._runs) - 1), self._runs):
            run_start, count = _RUN.unpack_from(self._map, base + position * _RUN.size)
            if run_start >= end:
                break
            first, last = max(start, run_start), min(end, run_start + count)
            if first < last:
                yield Run(first, last - first)

    def close(self) -> None:
        self._map.close()

    def _before(self, cluster: int, base: int, size: int, count: int) -> int:
        """How many of the `count` items of `size` bytes from `base` begin with less than the cluster."""
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if int.from_bytes(self._map[base + middle * size : base + middle * size + 8], "little") < cluster:
                low = middle + 1
            else:
                high = middle
        return low
