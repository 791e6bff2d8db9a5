"""Which recovery points to keep: the target does it, the coordinator foretells it. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

HOUR: Final = 3600.0  # seconds


@dataclass(frozen=True, slots=True)
class KeptPoint:
    """A committed cycle, as retention sees it."""

    cycle: int
    instant: float  # seconds since 1970
    recoverable: bool
    pinned: bool = False  # in use, kept or locked


@dataclass(frozen=True, slots=True)
class Tier:
    """One point of every `every` seconds, for `duration` seconds; `every` 0: each cycle."""

    every: float
    duration: float


def keep(
    points: Iterable[KeptPoint], *, additional: int, tiers: Sequence[Tier] = (), frequency: float = 0.0
) -> list[int]:
    """Cycles that stay points, ascending: the newest, `additional` hourly ones before it, the tiers' and pinned ones.

    Time is cut into slots, and the point of a slot is its first, so a choice made stays a choice. Slots are counted
    over those that have points: a link that was down for two days must not cost the points from before. `frequency`,
    the seconds between cycles, says how many slots of a tier can have one. Points that came more often, by request,
    cost none either: what is younger than a tier's duration stays, however many there are.
    """
    ordered = sorted(points, key=lambda point: point.cycle)
    kept = {point.cycle for point in ordered if point.pinned}
    kept.update(point.cycle for point in ordered[-1:])  # a copy that waits for its delta, too
    recoverable = [point for point in ordered if point.recoverable]
    if not recoverable:
        return sorted(kept)
    newest = recoverable[-1]
    kept.add(newest.cycle)
    kept.update(_newest(_slots(recoverable[:-1], HOUR), additional))
    for tier in tiers:
        slots = _slots(recoverable, tier.every)
        apart = max(tier.every, frequency)
        kept.update(_newest(slots, math.ceil(tier.duration / apart) if apart else 0))
        kept.update(point.cycle for point in slots if 0 <= newest.instant - point.instant < tier.duration)
    return sorted(kept)


def _slots(points: Sequence[KeptPoint], width: float) -> list[KeptPoint]:
    """The first point of each slot, in order of cycles; width 0: every point."""
    if not width:
        return list(points)
    first: dict[int, KeptPoint] = {}
    for point in points:
        first.setdefault(int(point.instant // width), point)
    return list(first.values())


def _newest(points: Sequence[KeptPoint], count: int) -> list[int]:
    return [point.cycle for point in points[max(0, len(points) - count) :]]
