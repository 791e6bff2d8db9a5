"""Files that survive a power loss: whole writes, atomic replacement, documents with a checksum, room on the disk."""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from hyperv_host_agent.store.base import NoSpace, WriteFailed

DIGEST_BYTES: Final = 16
# Of folders: a hypervisor that runs a VM from a point does so as another user. It may pass, no more: files are private.
PASSABLE: Final = 0o711
RESERVE: Final = 64 << 20  # bytes that stay free: finishing a cycle and every manifest must still fit

Space = Callable[[Path], tuple[int, int]]


class SyncFailed(OSError):
    """An fsync failed: what was written since the last one may be lost, and trying again proves nothing."""


def disk_space(path: Path) -> tuple[int, int]:
    """Free bytes for us, and all bytes, of the file system that `path` is on."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. Raises OSError."""
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    with memoryview(data) as view:
        while written < len(view):
            more = os.pwrite(fd, view[written:], offset + written)
            if not more:
                raise OSError(errno.EIO, "nothing of a write was taken")
            written += more


def sync(fd: int) -> None:
    """Make a file durable. Raises SyncFailed."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror) from error


def sync_data(fd: int) -> None:
    """As `sync`, without what only tells about the file. Raises SyncFailed."""
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise SyncFailed(error.errno, error.strerror) from error


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path) -> None:
    """Make the directory durably, unless it is there. Raises OSError."""
    if not path.is_dir():
        path.mkdir(mode=PASSABLE)
        sync_directory(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file durably, under its name; its directory is the caller's to sync. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data, 0)
        sync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` in place of the file, durably and at once. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    write_file(temporary, data)
    temporary.rename(path)
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Remove the file if it is there. Raises OSError."""
    with suppress(FileNotFoundError):
        path.unlink()


def remove_durably(*paths: Path) -> None:
    """Remove files of one directory, those that are there, in this order. Raises OSError.

    It may be called again then: a name changes each time, since repeating a sync that failed would prove nothing.
    """
    there = [path for path in paths if path.exists()]
    if not there:
        there = [paths[0].with_name(paths[0].name + ".tmp")]
        there[0].touch(mode=0o600)
    for path in there:
        path.unlink()
    sync_directory(paths[0].parent)


def seal(document: Mapping[str, object]) -> bytes:
    """A JSON document that carries the digest of itself."""
    body = json.dumps(document, sort_keys=True, separators=(",", ":"))
    digest = blake3(body.encode()).hexdigest(length=DIGEST_BYTES)
    return f'{{"blake3":"{digest}",\n"document":{body}}}\n'.encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The document in what `seal` made; no number in it is infinite. Raises ValueError when a bit of it differs."""
    try:
        document = json.loads(data, parse_constant=_refused)["document"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("is not a sealed document") from error
    if not isinstance(document, dict) or seal(document) != data:
        raise ValueError("does not match its checksum")
    return document


def _refused(constant: str) -> None:
    raise ValueError(f"holds {constant}")


@contextmanager
def writing(vm_id: str, directory: Path, space: Space) -> Iterator[None]:
    """Turn the OSErrors of writing into NoSpace and WriteFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT} and not isinstance(error, SyncFailed):
            raise NoSpace(space(directory)[0], 1) from error
        raise WriteFailed(vm_id, error.strerror or str(error)) from error
