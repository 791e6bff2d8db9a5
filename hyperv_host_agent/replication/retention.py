"""Which recovery points to keep; pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class KeptPoint:
    """A committed cycle, as retention sees it."""

    cycle: int
    instant: float  # seconds since 1970
    recoverable: bool
    pinned: bool = False


def keep(points: Iterable[KeptPoint], *, additional: int) -> list[int]:
    """Cycles that stay points: the newest, `additional` hourly ones before it, and pinned ones; ascending.

    The hourly one is the first of its hour, so a choice made stays a choice. Hours are counted over those that have
    points: a link that was down for two days must not cost the points from before.
    """
    ordered = sorted(points, key=lambda point: point.cycle)
    kept = {point.cycle for point in ordered if point.pinned}
    kept.update(point.cycle for point in ordered[-1:])  # a copy that waits for its delta, too
    recoverable = [point for point in ordered if point.recoverable]
    if not recoverable:
        return sorted(kept)
    newest = recoverable[-1]
    kept.add(newest.cycle)
    hourly: dict[int, int] = {}
    for point in recoverable[:-1]:
        hourly.setdefault(int(point.instant // HOUR), point.cycle)
    latest = sorted(hourly, reverse=True)[:additional]
    kept.update(hourly[hour] for hour in latest)
    return sorted(kept)
