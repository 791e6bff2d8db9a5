"""Time as a port: the system's, and one that tests move."""

import asyncio
import heapq
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Where a program gets time from. Nothing else reads the system's clock or sleeps."""

    def now(self) -> float:
        """Wall-clock seconds since 1970, UTC; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds that only grow; for durations and deadlines inside one process."""
        ...

    async def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Boot:
    """One reading of the clock that nobody can set, and of the wall clock at the same moment."""

    id: str  # of this boot of the host
    seconds: float  # since it began, sleep included
    wall: float  # since 1970, UTC; may jump


def boot() -> Boot:
    """Read both clocks of the host."""
    return Boot(_BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MovedClock:
    """A clock that stands until `advance` moves it; sleepers wake in the order of their deadlines."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.Event()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake.wait()

    def advance(self, seconds: float) -> None:
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            heapq.heappop(self._sleepers)[2].set()
