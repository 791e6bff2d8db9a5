"""One process at a time uses a store: two would merge and delete under one another."""

import fcntl
import os
import re
import weakref
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from hyperv_host_agent.store.base import StoreInUse

_LOCKS: Final = Path("/proc/locks")


class StoreLock:
    """Held by this process until nobody refers to it any more."""

    def __init__(self, fd: int) -> None:
        weakref.finalize(self, os.close, fd)


_held: WeakValueDictionary[tuple[int, int], StoreLock] = WeakValueDictionary()  # by device and inode


def take(root: Path) -> StoreLock:
    """The lock on a store's directory; the same one for everybody in this process. Raises StoreInUse, OSError."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    held = _held.get(key)
    if held is not None:
        os.close(fd)
        return held
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreInUse(root, _holder(status.st_ino)) from error
    except OSError:
        os.close(fd)
        raise
    lock = _held[key] = StoreLock(fd)
    return lock


def _holder(inode: int) -> str:
    """Who has it, as far as the system tells."""
    try:
        text = _LOCKS.read_text()
    except OSError:
        return "another process"
    found = re.search(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{inode}\s", text)
    return f"process {found[1]}" if found else "another process"
