"""Disks that stay open for reading between calls, for any number of threads."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hyperv_host_agent.changes.disk import Disk


@dataclass(slots=True)
class _Kept:
    disk: Disk
    users: int = 0
    retired: bool = False


class Readers:
    """Thread-safe."""

    def __init__(self, open_disk: Callable[[str], Disk]) -> None:
        self._open = open_disk
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    @contextlib.contextmanager
    def using(self, disk: str) -> Iterator[Disk]:
        """Raises what opening it raises."""
        with self._lock:
            kept = self._kept.get(disk)
            if kept is None:
                kept = self._kept[disk] = _Kept(self._open(disk))
            kept.users += 1
        try:
            yield kept.disk
        finally:
            with self._lock:
                kept.users -= 1
                self._close_unused(kept)

    def rest(self) -> None:
        """Close all; one that is in use by whoever used it last. The next use opens it anew."""
        with self._lock:
            for kept in self._kept.values():
                kept.retired = True
                self._close_unused(kept)
            self._kept.clear()

    @staticmethod
    def _close_unused(kept: _Kept) -> None:
        if kept.retired and not kept.users:
            kept.disk.close()
