"""Measured minutes of replication, checked and added up. No I/O."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from coordinator.inventory.model import DISKS_PER_MACHINE, is_uuid
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput, NotFound

MINUTE: Final = 60
DAY: Final = 86400
# Seconds a row stands for → seconds it is kept. Each row divides the next one evenly.
KEPT: Final = {MINUTE: 2 * DAY, 900: 7 * DAY, 3600: 30 * DAY}
HOUR: Final = 3600  # the coarsest: it knows which of its minutes were counted
LONGEST: Final = 30 * DAY
_MOST_ROWS: Final = 50_000  # added up for one answer: a fraction of a second
DEFAULT_SPAN: Final = DAY

SAMPLES: Final = 1000  # of one message; a host sends half of that
AHEAD_SECONDS: Final = 3600  # so much a host's clock may be ahead of ours
_MOST_CYCLES: Final = 6000  # in a minute: a hundred times the most frequent policy
_MOST_BYTES: Final = 2**48  # in a minute; a whole copy ends in one
_MOST_SECONDS: Final = 366.0 * DAY

CAUSES: Final = ("source", "compress", "network", "target", "cap", "turn")


class SpanTooLong(InvalidInput):
    public = "statistics are kept for 30 days, {error.days} were asked for"
    still_works = "nothing was changed"
    next_step = "ask for less: --since 30d"

    def __init__(self, seconds: int) -> None:
        self.days = -(-seconds // DAY)


class SpanTooShort(InvalidInput):
    public = "statistics are kept by the minute, {error.seconds} s are less than one"
    still_works = "nothing was changed"
    next_step = "ask for more: --since 1m"

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds


class NoVmButPair(NotFound):
    public = "there is no vm {error.name}, but a pair of that name"
    still_works = "nothing was changed"
    next_step = "twinsite vm stats {error.name} --pair"

    def __init__(self, name: str) -> None:
        self.name = name


class TooManySamples(InvalidInput):
    public = "{error.count} samples came in one message, {error.most} are taken"
    still_works = "nothing was stored; the host keeps them and sends them again"
    next_step = "update the host agents of that site"

    def __init__(self, count: int) -> None:
        self.count, self.most = count, SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Sums over a stretch of time; the two `…max…` are maxima. Adding is exact for everything but seconds."""

    cycles: int = 0
    missed: int = 0
    failures: int = 0
    changed_bytes: int = 0
    content_bytes: int = 0
    wire_bytes: int = 0
    rpo_max_seconds: float = 0.0
    seconds_max: float = 0.0
    seconds_sum: float = 0.0
    source: float = 0.0  # seconds by cause
    compress: float = 0.0
    network: float = 0.0
    target: float = 0.0
    cap: float = 0.0
    turn: float = 0.0
    disks: Mapping[str, int] = field(default_factory=dict)  # disk id → changed bytes

    def __add__(self, other: "Measured") -> "Measured":
        values: dict[str, object] = {
            name: getattr(self, name) + getattr(other, name) for name in NUMBERS if name not in MAXIMA
        }
        values |= {name: max(getattr(self, name), getattr(other, name)) for name in MAXIMA}
        disks = dict(self.disks)
        for disk, count in other.disks.items():
            disks[disk] = disks.get(disk, 0) + count
        return Measured(**values, disks=disks)  # type: ignore[arg-type]  # the fields by their names

    @property
    def causes(self) -> dict[str, float]:
        """Seconds by cause."""
        return {name: float(getattr(self, name)) for name in CAUSES}

    @property
    def missed_share(self) -> float | None:
        """Of the cycles that were due; None when none was."""
        due = self.cycles + self.missed
        return self.missed / due if due else None

    @property
    def average_seconds(self) -> float:
        """Of a cycle, from its instant to its commit."""
        return self.seconds_sum / self.cycles if self.cycles else 0.0


NUMBERS: Final = tuple(item.name for item in fields(Measured) if item.name != "disks")
MAXIMA: Final = ("rpo_max_seconds", "seconds_max")


@dataclass(frozen=True, slots=True)
class Row:
    start: int  # seconds since 1970, a multiple of the resolution
    resolution: int  # seconds
    measured: Measured


def total(rows: Iterable[Row]) -> Measured:
    return sum((row.measured for row in rows), Measured())


def measured(sample: types_pb2.Sample, now: float) -> Measured | None:
    """A host's sample as numbers; None when it is impossible or older than what is kept."""
    disks = {change.disk_id: change.changed_bytes for change in sample.disks}
    good = (
        sample.start_unix % MINUTE == 0
        and now - LONGEST < sample.start_unix <= now + AHEAD_SECONDS
        and max(sample.cycles, sample.missed, sample.failures) <= _MOST_CYCLES
        and max(sample.changed_bytes, sample.content_bytes, sample.wire_bytes, *disks.values()) <= _MOST_BYTES
        and all(map(_seconds, (sample.rpo_max_seconds, sample.seconds_max, sample.seconds_sum)))
        and all(_seconds(getattr(sample.causes, name)) for name in CAUSES)
        and len(sample.disks) == len(disks) <= DISKS_PER_MACHINE
        and all(map(is_uuid, disks))
    )
    if not good:
        return None
    return Measured(
        cycles=sample.cycles,
        missed=sample.missed,
        failures=sample.failures,
        changed_bytes=sample.changed_bytes,
        content_bytes=sample.content_bytes,
        wire_bytes=sample.wire_bytes,
        rpo_max_seconds=sample.rpo_max_seconds,
        seconds_max=sample.seconds_max,
        seconds_sum=sample.seconds_sum,
        **{name: getattr(sample.causes, name) for name in CAUSES},
        disks=disks,
    )


def _seconds(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= _MOST_SECONDS


def resolution_for(span: int, vms: int = 1) -> int:
    """The finest resolution that is kept for so many seconds and does not make too many rows.

    Raises SpanTooShort, SpanTooLong.
    """
    if span < MINUTE:
        raise SpanTooShort(span)
    if span > LONGEST:
        raise SpanTooLong(span)
    fine = [each for each, kept in KEPT.items() if span <= kept and span // each * vms <= _MOST_ROWS]
    return fine[0] if fine else HOUR
