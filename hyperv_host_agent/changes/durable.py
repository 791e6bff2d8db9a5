"""Small files that survive a crash whole: written beside, synced, renamed."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from twinsite.clock import SystemClock


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside the folder durable."""
    with descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as file:
        os.fsync(file)


def replace(path: Path, content: bytes) -> None:
    """The file holds either what it held or all of `content`, whatever happens; durable before it returns."""
    beside = path.with_name(path.name + ".new")
    with descriptor(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        view = memoryview(content)
        while view:
            view = view[os.write(file, view) :]
        os.fsync(file)
    beside.rename(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield file
    finally:
        os.close(file)


def safe_name(identifier: str) -> str:
    """A file name for an identifier somebody else chose: it never becomes a path."""
    return blake3(identifier.encode()).hexdigest(length=16)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = 0.0) -> Iterator[bool]:
    """Whether the lock was got within `seconds`. The kernel frees it when the process dies, however it dies."""
    pause = threading.Event()
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    with descriptor(path, os.O_RDWR | os.O_CREAT) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() >= deadline:
                    yield False
                    return
                pause.wait(0.01)
                continue
            yield True
            return
