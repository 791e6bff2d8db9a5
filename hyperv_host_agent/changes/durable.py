"""Small files that survive a crash whole: written beside, synced, renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
