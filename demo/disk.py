"""Disks for the demonstration's VM: an ext4 file system of real files, or the user's own image."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from twinsite.units import MiB

# Where real files come from, in this order, until there are enough; a Debian always has the first two.
SOURCES: Final = (Path("/usr/lib"), Path("/usr/bin"), Path("/usr/share"))
SMALLEST: Final = 16 * 1024  # bytes of a file that is taken: tens of thousands of tiny ones would take minutes
MKFS_PATHS: Final = ("/usr/sbin", "/sbin", "/usr/bin")


class NoDisk(Exception):  # named for the fact
    """The disk could not be made; the text says why and what to install."""


def ext4_of_real_files(path: Path, *, size: int, content: int, staging: Path) -> int:
    """Make `path` an ext4 image of `size` bytes holding about `content` bytes of this machine's files; how many."""
    mkfs = next((found for place in MKFS_PATHS if (found := shutil.which("mke2fs", path=place))), None)
    if mkfs is None:
        raise NoDisk("mke2fs is not installed: apt-get install e2fsprogs")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    copied = number = 0
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            for name in names:
                file = Path(folder, name)
                if file.is_symlink() or not file.is_file() or not os.access(file, os.R_OK):
                    continue
                length = file.stat().st_size
                if length < SMALLEST or copied + length > content:
                    continue
                place = staging / f"{number // 500:03d}"
                place.mkdir(exist_ok=True)
                shutil.copyfile(file, place / f"{number:06d}-{name[-100:]}")
                copied, number = copied + length, number + 1
                if copied > content - MiB:
                    break
            else:
                continue
            break
        if copied > content - MiB:
            break
    path.unlink(missing_ok=True)
    with path.open("wb") as image:
        image.truncate(size)
    made = subprocess.run(
        [mkfs, "-q", "-F", "-t", "ext4", "-E", "nodiscard", "-d", str(staging), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    shutil.rmtree(staging)
    if made.returncode:
        raise NoDisk(f"mke2fs failed: {made.stderr.strip()}")
    return copied


def from_image(image: Path, path: Path) -> None:
    """A raw copy of the user's raw or qcow2 image. Raises NoDisk."""
    if not image.is_file():
        raise NoDisk(f"{image} is not a file")
    with image.open("rb") as file:
        is_qcow2 = file.read(4) == b"QFI\xfb"
    if not is_qcow2:
        copy_sparse(image, path)
        return
    if shutil.which("qemu-img") is None:
        raise NoDisk(f"{image} is qcow2, reading it needs qemu-img: apt-get install qemu-utils")
    done = subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NoDisk(f"qemu-img cannot read {image}: {done.stderr.strip()}")


def copy_sparse(source: Path, target: Path) -> None:
    """A copy that keeps holes, made of data extents only."""
    with source.open("rb") as reader, target.open("wb") as writer:
        end = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), end)
        at = 0
        while at < end:
            try:
                start = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # no data behind here
                break
            at = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < at:
                count = os.copy_file_range(reader.fileno(), writer.fileno(), at - start, start, start)
                if not count:
                    raise NoDisk(f"{source} became shorter while it was copied")
                start += count


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
