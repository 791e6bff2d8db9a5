"""A disk that stands on the immutable layers of a recovery point; what is written goes to files of its own.

    <name>.top       sparse, of the disk's size: clusters that were written
    <name>.present   which clusters those are: two bitmaps, what is written and what of it is durable

A cluster is present or not, as a whole: the first write to a part of it brings the rest up. After a crash of the
host only what a `sync` had made durable counts as present: a page of `top` that never reached the disk must not hide a
layer.
"""

import contextlib
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
        try:
            self._present_inode = present_path(top).stat().st_ino
            self._mapped = MappedFile(present_path(top), _present_length(self._top.size), writable=writable)
            self._chain = ChainReader(layers)
        except (MapUnusable, LayerDamaged) as error:
            self._top.close()
            raise OSError(str(error)) from error
        written, self._durable = _bitmaps(self._mapped, self._top.size)
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

    @property
    def size(self) -> int:
        return self._top.size

    @property
    def below(self) -> int:
        """Bytes of the disk at the point it stands on."""
        return self._chain.size

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
        below = clusters(self._chain.size)
        for hole in self._top.holes(run):  # whatever is not present is one
            yield from runs(
                cluster
                for cluster in range(hole.start, hole.end)
                if cluster in self._present or cluster >= below or self._chain.is_zero(cluster)
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
        there = max(0, min(length, self._chain.size - offset))  # the disk may have grown since the point
        try:
            return self._chain.read(offset, there).ljust(length, b"\0") if there else bytes(length)
        except LayerDamaged as error:
            raise OSError(str(error)) from error


def create_overlay(top: Path, size: int) -> None:
    """An overlay that shows what is below it; its files are small whatever the size."""
    with top.open("wb") as file:
        os.ftruncate(file.fileno(), size)
    create_mapped(present_path(top), _present_length(size))


def stage_resize(top: Path, size: int, layers: Sequence[Path], *, boot: bytes) -> None:
    """Prepare that the overlay has `size` bytes; durable. Nobody writes to it until `publish_resize`, or it is dropped.

    What the point below holds behind the end of a disk that was smaller once must not come back: all that a growing
    disk gets counts as written, and reads zeros. Raises OSError.
    """
    with contextlib.closing(OverlayDisk(top, layers, writable=True, boot=boot)) as disk:
        before, below = disk.size, disk.below
        last = before // CLUSTER * CLUSTER
        if last < before:  # a cluster is above or below as a whole, and this one is to change its length
            disk.write(last, disk.read(last, before - last))
            disk.sync()
    covered = Run(clusters(before), max(0, min(clusters(size), clusters(below)) - clusters(before)))
    create_mapped(_staged(top), _present_length(size))
    try:
        old = MappedFile(present_path(top), _present_length(before), writable=False)
        new = MappedFile(_staged(top), _present_length(size), writable=True)
    except MapUnusable as error:
        raise OSError(str(error)) from error
    for had, has in zip(_bitmaps(old, before), _bitmaps(new, size), strict=True):
        has.merge(had)
        if covered.count:
            has.set_run(covered)
        had.release()
        has.release()
    new.words.set_16_bytes(_BOOT, old.words.get_16_bytes(_BOOT))
    new.flush()
    new.close()
    old.close()


def publish_resize(top: Path) -> None:
    """Its new size is decided. Repeatable; the top file gets it after this."""
    if _staged(top).exists():
        _staged(top).rename(present_path(top))


def forget_resize(top: Path) -> None:
    """What `stage_resize` prepared. Repeatable."""
    _staged(top).unlink(missing_ok=True)


def present_path(top: Path) -> Path:
    return top.with_suffix(".present")


def _staged(top: Path) -> Path:
    return top.with_suffix(".present.staged")


def _present_length(size: int) -> int:
    return PAGE + 2 * padded(bytes_for(clusters(size)))


def _bitmaps(mapped: MappedFile, size: int) -> tuple[Bitmap, Bitmap]:
    """What is written, and what of it is durable."""
    step = padded(bytes_for(clusters(size)))
    return (
        Bitmap(mapped.slice(PAGE, step), clusters(size)),
        Bitmap(mapped.slice(PAGE + step, step), clusters(size)),
    )
