"""Disk images that a new replica may begin with: raw or qcow2 files, opened for reading and left as they are.

What is read here is only a good guess: the source compares fingerprints and sends what differs. A plain qcow2 file is
read by our own reader, any other by qemu-img, converted once, in a process of its own with bounded memory and time.
"""

import asyncio
import errno
import os
import resource
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from hyperv_host_agent.store.formats.qcow2 import COMPRESSED, Layer, LayerDamaged
from twinsite.errors import Failed, InvalidInput, NotFound, Precondition
from twinsite.extents import CLUSTER, Run, clusters, runs
from twinsite.units import GiB, MiB

UNIT_CLUSTERS: Final = 32  # most clusters of one run
_MAGIC: Final = b"QFI\xfb"
_HEADER: Final = struct.Struct(">4sIQIIQI36xQ")  # magic, version, backing offset, size, bits, size, crypt, …, features
_COMPRESSION_AT: Final = 104
_DATA_FILE: Final = 1 << 2  # features: the data is in another file
_OTHERS: Final = {b"vhdxfile": "VHDX", b"KDMV": "VMDK", b"conectix": "VHD", b"# Disk D": "VMDK", b"<<< Orac": "VDI"}
_MEMORY: Final = 2 * GiB  # of qemu-img's address space
_SECONDS: Final = 600.0  # for qemu-img, and one more for every _RATE bytes of the disk
_RATE: Final = 20 * MiB
SCRATCH: Final = ".image-"  # where qemu-img writes, in the replica store


class ImageMissing(NotFound):
    public = "there is no image file {error.path} on the target host"
    still_works = "nothing was changed"
    next_step = "name a raw or qcow2 file that the target's host agent can read"

    def __init__(self, path: Path) -> None:
        self.path = path


class ImageUnusable(InvalidInput):
    public = "{error.path} cannot be what a replica begins with: {error.problem}"
    still_works = "nothing was changed, the file was left as it is"
    next_step = "convert it: qemu-img convert -O qcow2 {error.path} copy.qcow2, and name the copy; or begin without it"

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem


class ImageUnreadable(Failed):
    public = "{error.path} cannot be read: {error.problem}"
    still_works = "the replica holds nothing yet; the file was left as it is"
    next_step = "look at the file and its disk, name another one, or begin without it"

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem


class QemuImgMissing(Precondition):
    public = "{error.path} can be read by qemu-img only, which is not installed on the target host"
    still_works = "nothing was changed"
    next_step = "install qemu-utils on the target host, or convert the image to raw elsewhere"

    def __init__(self, path: Path) -> None:
        self.path = path


class Image(Protocol):
    """An image, open. Blocking."""

    size: int  # bytes of the disk in it

    def held(self) -> Iterator[Run]:
        """Clusters that may hold data, ascending, in runs of at most UNIT_CLUSTERS. Raises ImageUnreadable."""
        ...

    def read(self, run: Run) -> bytes:
        """Content; shorter at the end of the disk only. Raises ImageUnreadable."""
        ...

    def close(self) -> None: ...


class RawImage:
    """A file that is the disk, byte for byte."""

    def __init__(self, path: Path) -> None:
        """Raises ImageUnreadable."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise ImageUnreadable(path, error.strerror or str(error)) from error

    def held(self) -> Iterator[Run]:
        end = reached = 0
        while end < self.size:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
                end = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only holes from here
                    return
                raise ImageUnreadable(self._path, error.strerror or str(error)) from error
            first, last = max(reached, start // CLUSTER), clusters(end)
            for at in range(first, last, UNIT_CLUSTERS):
                yield Run(at, min(UNIT_CLUSTERS, last - at))
            reached = max(reached, last)

    def read(self, run: Run) -> bytes:
        try:
            return os.pread(self._fd, run.count * CLUSTER, run.start * CLUSTER)
        except OSError as error:
            raise ImageUnreadable(self._path, error.strerror or str(error)) from error

    def close(self) -> None:
        os.close(self._fd)


class PlainQcow2:
    """A qcow2 file on its own, with clusters of 64 KiB that are not compressed, or with zstd."""

    def __init__(self, path: Path) -> None:
        """Raises LayerDamaged when it is none."""
        self._path = path
        self._layer = Layer(path)
        self.size = self._layer.size

    def plain(self, *, zstd: bool) -> bool:
        """Whether all of it can be read here. Raises LayerDamaged."""
        return zstd or not any(entry & COMPRESSED for _, entry in self._layer.entries())

    def held(self) -> Iterator[Run]:
        try:
            for run in runs(cluster for cluster, _ in self._layer.entries()):
                for at in range(run.start, run.end, UNIT_CLUSTERS):
                    yield Run(at, min(UNIT_CLUSTERS, run.end - at))
        except LayerDamaged as error:
            raise ImageUnreadable(self._path, str(error)) from error

    def read(self, run: Run) -> bytes:
        try:
            found = b"".join(
                self._layer.data(cluster, self._layer.entry(cluster)) for cluster in range(run.start, run.end)
            )
        except LayerDamaged as error:
            raise ImageUnreadable(self._path, str(error)) from error
        return found[: self.size - run.start * CLUSTER]

    def close(self) -> None:
        self._layer.close()


def look(path: Path) -> Image | None:
    """Open an image that can be read here; None: it takes qemu-img. Blocking.

    Raises ImageMissing, ImageUnusable, ImageUnreadable.
    """
    try:
        if not path.is_absolute() or not path.is_file():
            raise ImageMissing(path)
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.ENAMETOOLONG, errno.ENOENT}:
            raise ImageUnreadable(path, error.strerror or str(error)) from error
        raise ImageMissing(path) from error
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise ImageUnusable(path, f"it is a {name} file")
    return _qcow2(path, head) if head.startswith(_MAGIC) else RawImage(path)


def _qcow2(path: Path, head: bytes) -> Image | None:
    if len(head) < _HEADER.size:
        raise ImageUnusable(path, "it is cut off")
    _, version, backing, _, _, _, crypt, features = _HEADER.unpack_from(head)
    features = features if version >= 3 else 0
    # An image from elsewhere must not name files of this host that are then read in its place.
    if backing:
        raise ImageUnusable(path, "it stands on another file")
    if features & _DATA_FILE:
        raise ImageUnusable(path, "its data is in another file")
    if crypt:
        raise ImageUnusable(path, "it is encrypted")
    zstd = bool(features & 1 << 3) and len(head) > _COMPRESSION_AT and head[_COMPRESSION_AT] == 1
    try:
        image = PlainQcow2(path)
    except LayerDamaged:
        return None
    try:
        if image.plain(zstd=zstd):
            return image
    except LayerDamaged as error:
        image.close()
        raise ImageUnreadable(path, str(error)) from error
    image.close()
    return None


async def converted(path: Path, into: Path) -> Image:
    """A qcow2 file as qemu-img reads it, written to a sparse file of its own.

    Raises QemuImgMissing, ImageUnreadable.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise QemuImgMissing(path)
    process = await asyncio.create_subprocess_exec(
        *(program, "convert", "-f", "qcow2", "-O", "raw", "-S", "64k", str(path), str(into)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )
    try:
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        async with asyncio.timeout(_SECONDS + _disk_bytes(path) / _RATE):
            _, said = await process.communicate()
    except TimeoutError:
        raise ImageUnreadable(path, "qemu-img did not come to an end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = said.decode(errors="replace").strip().splitlines()
        raise ImageUnreadable(path, text[-1][:200] if text else f"qemu-img ended with {process.returncode}")
    return RawImage(into)


def _disk_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return min(int(_HEADER.unpack_from(file.read(_HEADER.size))[5]), 64 << 40)
