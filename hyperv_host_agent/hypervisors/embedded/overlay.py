"""A disk that stands on the immutable layers of a recovery point; what is written goes to files of its own.

    <name>.top       sparse, of the disk's size: clusters that were written
    <name>.present   which clusters those are: two bitmaps, what is written and what of it is durable

A cluster is present or not, as a whole: the first write to a part of it brings the rest up. After a crash of the
host only what a `sync` had made durable counts as present: a page of `top` that never reached the disk must not hide a
layer.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.bitmap import Bitmap, bytes_for
from hyperv_host_agent.changes.disk import RawDisk
from hyperv_host_agent.changes.mapped_file import PAGE, MappedFile, MapUnusable, create_mapped, padded
from hyperv_host_agent.store.formats.qcow2 import ChainReader, LayerDamaged
from twinsite.extents import CLUSTER, Run, cluster_length, clusters, runs

_BOOT: Final = 1  # word


class OverlayDisk:
    def __init__(self, top: Path, layers: Sequence[Path], *, writable: bool, boot: bytes) -> None:
        """Raises OSError."""
        self._top = RawDisk(top, writable=writable)
        bits = clusters(self._top.size)
        step = padded(bytes_for(bits))
        try:
            self._present_inode = present_path(top).stat().st_ino
            self._mapped = MappedFile(present_path(top), PAGE + 2 * step, writable=writable)
            self._chain = ChainReader(layers)
        except (MapUnusable, LayerDamaged) as error:
            self._top.close()
            raise OSError(str(error)) from error
        written = Bitmap(self._mapped.slice(PAGE, step), bits)
        self._durable = Bitmap(self._mapped.slice(PAGE + step, step), bits)
        self._present = written
        if self._mapped.words.get_16_bytes(_BOOT) != boot:
            if writable:
                written.clear()
                written.merge(self._durable)
                self._mapped.flush()
                self._mapped.words.set_16_bytes(_BOOT, boot)
            else:
                self._present = self._durable
        self._bitmaps = (written, self._durable)
        if self._chain.size != self._top.size:
            self.close()
            raise OSError(f"{top} has {self._top.size} bytes, the point below it {self._chain.size}")

    @property
    def size(self) -> int:
        return self._top.size

    def read(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        end = offset + length
        while offset < end:
            cluster = offset // CLUSTER
            here = cluster in self._present
            stop = (cluster + 1) * CLUSTER
            while stop < end and (stop // CLUSTER in self._present) == here:
                stop += CLUSTER
            stop = min(stop, end)
            parts.append(self._top.read(offset, stop - offset) if here else self._below(offset, stop - offset))
            offset = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            cluster, within = divmod(offset, CLUSTER)
            part = view[: CLUSTER - within]
            if cluster in self._present:
                self._top.write(offset, part)
            else:
                length = cluster_length(cluster, self.size)
                whole = part
                if len(part) < length:
                    brought = bytearray(self._below(cluster * CLUSTER, length))
                    brought[within : within + len(part)] = part
                    whole = memoryview(brought)
                self._top.write(cluster * CLUSTER, whole)
                self._present.set(cluster)  # after the data: a kill in between leaves the cluster as it was
            view, offset = view[len(part) :], offset + len(part)

    def holes(self, run: Run) -> Iterator[Run]:
        for hole in self._top.holes(run):  # whatever is not present is one
            yield from runs(
                cluster
                for cluster in range(hole.start, hole.end)
                if cluster in self._present or self._chain.is_zero(cluster)
            )

    def sync(self) -> None:
        written = self._present.snapshot()  # before the data is: a write that comes now is not in it
        self._top.sync()
        self._durable.merge(written)
        self._mapped.flush()

    def identity(self) -> bytes:
        return self._top.identity() + f":{self._present_inode}".encode()

    def changed_ns(self) -> int:
        return self._top.changed_ns()

    def close(self) -> None:
        for bitmap in self._bitmaps:
            bitmap.release()
        self._mapped.close()
        self._chain.close()
        self._top.close()

    def _below(self, offset: int, length: int) -> bytes:
        try:
            return self._chain.read(offset, length)
        except LayerDamaged as error:
            raise OSError(str(error)) from error


def create_overlay(top: Path, size: int) -> None:
    """An overlay that shows what is below it; its files are small whatever the size."""
    with top.open("wb") as file:
        os.ftruncate(file.fileno(), size)
    create_mapped(present_path(top), PAGE + 2 * padded(bytes_for(clusters(size))))


def present_path(top: Path) -> Path:
    return top.with_suffix(".present")
