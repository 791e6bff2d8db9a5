"""How fast a source may send, by the local time of its host; pure. Rates are bytes on the wire in a second.

A cap is held by a token bucket that may go into debt: a message is let through as soon as nothing is owed, and what it
takes is owed then. So the average is exact whatever the messages' size, and a change of the cap counts at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LEAST: Final = 1024  # bytes a second; below it a cluster would take more than a minute
BURST_SECONDS: Final = 0.25  # what an idle bucket saves up: wakes that come late are made good, and no more
PACE_SECONDS: Final = 0.125  # a message under a cap takes no longer, as far as clusters can be cut
_DAY: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Rule:
    """A cap in a part of the week."""

    days: int  # bit 0 Monday … bit 6 Sunday, of the day it begins in; 0: every day
    start: int  # minute of the day
    end: int  # not included; not above `start`: past midnight, so equal ones are a whole day
    rate: int

    def covers(self, weekday: int, minute: int) -> bool:
        """`weekday` 0 is Monday; `minute` of that day."""
        if self.start < self.end:
            return self._on(weekday) and self.start <= minute < self.end
        return (self._on(weekday) and minute >= self.start) or (self._on(weekday - 1) and minute < self.end)

    def _on(self, weekday: int) -> bool:
        return not self.days or bool(self.days >> weekday % 7 & 1)


def problem(rule: Rule) -> str:
    """What is wrong with a rule, empty when nothing is."""
    if not 0 <= rule.days < 1 << 7:
        return "its days are not days of the week"
    if not (0 <= rule.start < _DAY and 0 <= rule.end <= _DAY):
        return "its times are not times of a day"
    if rule.rate < LEAST:
        return f"a rate below {LEAST} bytes a second"
    return ""


def cap(rules: Iterable[Rule], weekday: int, minute: int) -> int:
    """The cap at that local time by the first rule that covers it; 0: none."""
    return next((rule.rate for rule in rules if rule.covers(weekday, minute)), 0)


def least(caps: Iterable[int]) -> int:
    """The cap that holds of several, each 0 where there is none."""
    return min((rate for rate in caps if rate), default=0)


class Bucket:
    """One cap. `now` in monotonic seconds."""

    def __init__(self) -> None:
        self.rate = 0  # as of the last `set`; 0: nothing is held back
        self._saved = 0.0  # bytes; negative: owed
        self._at = 0.0

    def set(self, rate: int, now: float) -> None:
        """Counts from now on; what is owed stays owed, at the new rate. Without a cap nothing is."""
        self._fill(now)
        if not self.rate or not rate:
            self._saved = 0.0
        self.rate = rate
        self._saved = min(self._saved, rate * BURST_SECONDS)

    def wait(self, now: float) -> float:
        """Seconds until the next message may go; 0: now."""
        if not self.rate:
            return 0.0
        self._fill(now)
        return max(0.0, -self._saved / self.rate)

    def take(self, count: int, now: float) -> None:
        """A message of `count` bytes goes."""
        if self.rate:
            self._fill(now)
            self._saved -= count

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._saved = min(self._saved + passed * self.rate, self.rate * BURST_SECONDS)


def message_bytes(rate: int, most: int, smallest: int) -> int:
    """How much a message should carry under a cap, so that a second has several of them."""
    return most if not rate else max(smallest, min(most, int(rate * PACE_SECONDS)))
