"""The clock that times locks: it counts seconds that two clocks agree have passed, so that none can be shortened.

The wall clock jumps, and the clock since boot starts over with every boot. What passes is the lesser of what both say
passed since the last reading, nothing across a boot, never less than nothing. So it may be slow, then a lock lasts
longer than it was asked for; it is never fast.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import copies
from hyperv_host_agent.store.copies import Document
from twinsite.clock import Boot, boot

FILE: Final = "lock-clock.json"
_SAVE_SECONDS: Final = 30.0  # what a reboot may cost a lock in extra time


class Passing:
    """The counting alone. Not thread-safe."""

    def __init__(self, elapsed: float, last: Boot) -> None:
        self.elapsed, self.last = elapsed, last

    def see(self, read: Boot) -> bool:
        """Count up to this reading; whether it is of the same boot as the last one."""
        same = read.id == self.last.id
        if same:
            self.elapsed += max(0.0, min(read.seconds - self.last.seconds, read.wall - self.last.wall))
        self.last = read
        return same


class LockClock:
    """Of one store; durable. Thread-safe."""

    def __init__(self, root: Path, *, read: Callable[[], Boot] = boot) -> None:
        self._path, self._read = root / FILE, read
        self._lock = threading.Lock()
        copies.tidy(self._path)
        documents, _ = copies.read(self._path, _decode)
        # The further one: a crash between the two copies leaves them apart.
        self._passing = max(documents, key=lambda one: one.elapsed, default=Passing(0.0, read()))
        self._saved = self._passing.elapsed
        self._data = b""  # as it was written last
        if documents:
            self._save()

    def now(self) -> float:
        """Seconds on this clock."""
        with self._lock:
            same = self._passing.see(self._read())
            if not same or self._passing.elapsed - self._saved >= _SAVE_SECONDS:
                with suppress(OSError):  # what is not kept makes a lock longer, no more
                    self._save()
            return self._passing.elapsed

    def wall(self) -> float:
        """The wall clock, seconds since 1970: to say when a lock will end, never to decide it."""
        return self._read().wall

    def at_least(self, seconds: float) -> None:
        """A lock was made when this clock said so; a clock that was lost goes on from there. Raises OSError."""
        with self._lock:
            if seconds > self._passing.elapsed:
                self._passing.elapsed = seconds
                self._save()

    def save(self) -> None:
        """Keep what has passed: a lock that is made now counts from here. Raises OSError."""
        with self._lock:
            self._passing.see(self._read())
            self._save()

    def documents(self) -> list[Document]:
        with self._lock:
            return [Document(self._path, self._data)] if self._data else []

    def _save(self) -> None:
        self._data = copies.write(self._path, _document(self._passing))
        self._saved = self._passing.elapsed


def _decode(document: dict[str, Any]) -> Passing:
    last = Boot(str(document["boot"]), float(document["seconds"]), float(document["wall"]))
    passing = Passing(float(document["elapsed"]), last)
    copies.as_written(document, _document(passing))
    return passing


def _document(passing: Passing) -> dict[str, object]:
    last = passing.last
    return {"elapsed": passing.elapsed, "boot": last.id, "seconds": last.seconds, "wall": last.wall}
