"""What makes a VM's cycles late, from what was measured: causes, rates, and what would fit. No I/O."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from coordinator.statistics.model import CAUSES, HOUR, Measured, Row, total
from twinsite import units

RECENT: Final = (900, HOUR, 6 * HOUR)  # seconds: the shortest that has cycles is what "now" means
MARGIN: Final = 1.25  # what is proposed fits with so much to spare
_FREQUENCIES: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
_ONE_DISK: Final = 0.7  # of the changes: then it is named
_TURNED: Final = 3.0  # times what cycles took on average: the last one tells what is the matter now
_BURST: Final = 3.0  # times what an ordinary hour changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How cycles go in a stretch of time."""

    measured: Measured
    seconds: float  # of the stretch
    pending_bytes: int = 0  # changed by now and not yet sent

    @property
    def shares(self) -> dict[str, float]:
        """Of the cycles' time, by cause, largest first; empty when nothing was timed."""
        causes = self.measured.causes
        whole = sum(causes.values())
        ordered = sorted(causes, key=lambda name: causes[name], reverse=True)
        return {name: causes[name] / whole for name in ordered} if whole else {}

    @property
    def cause(self) -> str:
        """That took most of the time; empty when nothing was timed."""
        return next(iter(self.shares), "")

    @property
    def churn(self) -> float:
        """Bytes the guest changes in a second."""
        return (sum(self.measured.disks.values()) + self._backlog) / self.seconds

    @property
    def sent(self) -> float:
        """Bytes a second while the network was busy with them."""
        return self.measured.wire_bytes / self.measured.network if self.measured.network else 0.0

    @property
    def ratio(self) -> float:
        """Compression: bytes that were not zero to bytes sent; 0: nothing was sent."""
        return self.measured.content_bytes / self.measured.wire_bytes if self.measured.wire_bytes else 0.0

    @property
    def falls_behind(self) -> bool:
        """Changes come faster than they go, at any frequency."""
        cycles = max(1, self.measured.cycles)
        return self._backlog > 2 * sum(self.measured.disks.values()) / cycles

    @property
    def _backlog(self) -> float:
        """Pending beyond what is always pending: the changes of one cycle."""
        cycles = max(1, self.measured.cycles)
        return max(0.0, self.pending_bytes - sum(self.measured.disks.values()) / cycles)

    def frequency_that_fits(self, frequency: int) -> int:
        """The next usual one, in seconds, at which cycles as they are now are in time; 0: none above the present."""
        if self.falls_behind or not self.measured.cycles:
            return 0
        wanted = MARGIN * self.measured.average_seconds
        found = next((each for each in _FREQUENCIES if each >= wanted), 0)
        return found if found > frequency else 0

    def rate_that_fits(self, cause: str, frequency: int) -> float:
        """Bytes on the wire a second that this stage of a cycle would have to do; 0: it alone does not help."""
        measured = self.measured
        cycles = max(1, measured.cycles)
        other = (measured.seconds_sum - measured.causes[cause]) / cycles
        changed = sum(measured.disks.values())
        if not changed or not measured.wire_bytes or other > 0.9 * frequency:
            return 0.0
        demand = self.churn * measured.wire_bytes / max(measured.changed_bytes, changed)
        return MARGIN * demand * frequency / (frequency - other)


def recent(rows: Sequence[Row], now: float, *, pending_bytes: int) -> Pace | None:
    """How it goes now; None when no cycle was measured in the last hours."""
    for seconds in RECENT:
        found = [row for row in rows if row.start >= now - seconds]
        if any(row.measured.cycles for row in found):
            stretch = now - min(row.start for row in found)
            return Pace(measured=total(found), seconds=max(60.0, stretch), pending_bytes=pending_bytes)
    return None


def of_last(causes: Mapping[str, float], seconds: float) -> Pace | None:
    """The last cycle alone, when nothing else is known."""
    whole = sum(causes.values())
    if whole <= 0:
        return None
    timed: dict[str, Any] = {name: causes[name] for name in CAUSES}
    last = Measured(cycles=1, seconds_sum=whole, seconds_max=whole, **timed)
    return Pace(measured=last, seconds=max(60.0, seconds))


def like_last(pace: Pace, causes: Mapping[str, float]) -> Pace | None:
    """A pace at which all cycles spend their time as the last one did; None: it took no longer than those before."""
    whole = sum(causes.values())
    if whole <= _TURNED * pace.measured.average_seconds:
        return None
    timed: dict[str, Any] = {name: pace.measured.seconds_sum * causes[name] / whole for name in CAUSES}
    return replace(pace, measured=replace(pace.measured, **timed))


def busiest_disk(measured: Measured, names: Mapping[str, str]) -> tuple[str, float] | None:
    """(name, share of the changes) of a disk that brings most of them, if there are several disks."""
    whole = sum(measured.disks.values())
    if not whole or len(names) < 2:
        return None
    disk = max(measured.disks, key=lambda each: measured.disks[each])
    share = measured.disks[disk] / whole
    return (names.get(disk, disk), share) if share >= _ONE_DISK else None


def burst(rows: Iterable[Row], pace: Pace, now: float) -> float:
    """How many times the changes of an ordinary hour of the last day come now; 0: not unusual."""
    hours: dict[int, int] = {}
    for row in rows:
        if row.start < now - HOUR:
            hours[row.start // HOUR] = hours.get(row.start // HOUR, 0) + sum(row.measured.disks.values())
    ordinary = median(hours.values()) / HOUR if len(hours) >= 3 else 0.0
    times = pace.churn / ordinary if ordinary else 0.0
    return times if times >= _BURST else 0.0


def minutes_unseen(rows: Sequence[Row], now: float, *, since: float) -> int:
    """Minutes of the last hour in which the source host measured nothing: its agent did not run. The last three are on
    their way.
    """
    begin = max(now - HOUR, since + 120)
    last = max((row.start for row in rows), default=0)
    seen = {row.start for row in rows if row.start >= begin}
    due = range(int(begin // 60 + 1) * 60, last, 60)
    return sum(start not in seen for start in due)


def speed(bytes_per_second: float) -> str:
    """Two significant digits: ``9.3 MB/s``."""
    digits = math.floor(math.log10(bytes_per_second)) - 1 if bytes_per_second >= 100 else 0
    return units.rate(int(round(bytes_per_second, -digits)))
