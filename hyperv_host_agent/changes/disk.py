"""What change tracking needs of a disk, and a flat file as one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from twinsite.extents import CLUSTER, Run


class Disk(Protocol):
    """A disk of a fixed size. Reads may run beside a write; writes come one at a time. Raises OSError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        ...

    def write(self, offset: int, data: bytes | memoryview) -> None: ...

    def holes(self, run: Run) -> Iterator[Run]:
        """Clusters inside the run that are zero and need no reading, ascending."""
        ...

    def sync(self) -> None:
        """Everything written is durable."""
        ...

    def identity(self) -> bytes:
        """Changes when another file takes its place, or its size changes."""
        ...

    def changed_ns(self) -> int:
        """When its content was last changed, by whomever; nanoseconds since 1970."""
        ...

    def close(self) -> None: ...


class RawDisk:
    def __init__(self, path: Path, *, writable: bool) -> None:
        """Raises OSError."""
        self._file = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file, length, offset)
        if len(data) == length:
            return data
        parts = [data]  # the kernel gives at most 2 GiB at once
        while (missing := length - sum(map(len, parts))) > 0:
            data = os.pread(self._file, missing, offset + length - missing)
            if not data:
                raise OSError(f"the file ends before byte {offset + length}")
            parts.append(data)
        return b"".join(parts)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise ValueError(f"{offset}+{len(data)} is not inside {self._size} bytes")
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def holes(self, run: Run) -> Iterator[Run]:
        end = min(run.end * CLUSTER, self._size)
        at = run.start * CLUSTER
        while at < end:
            try:
                data = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError:  # ENXIO: no data behind `at`
                data = end
            data = min(data, end)
            first = -(-at // CLUSTER)
            last = run.end if data == end else data // CLUSTER
            if last > first:
                yield Run(first, last - first)
            if data == end:
                return
            at = os.lseek(self._file, data, os.SEEK_HOLE)

    def sync(self) -> None:
        os.fsync(self._file)

    def identity(self) -> bytes:
        found = os.fstat(self._file)
        return f"{found.st_dev}:{found.st_ino}:{found.st_size}".encode()

    def changed_ns(self) -> int:
        # ctime, because a copy that preserves times can set mtime back, but not this one.
        return os.fstat(self._file).st_ctime_ns

    def close(self) -> None:
        os.close(self._file)
