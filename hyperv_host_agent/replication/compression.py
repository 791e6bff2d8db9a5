"""How hard to compress one VM's content, from what packing and sending it took; pure.

Known are, or guessed from what ran: what a byte costs at each level and how far it shrinks, how much of the content
shrinks at all, and what a byte takes on its way. The level that would have been fastest for what was sent lately wins,
by a margin and twice in a row.
"""

from dataclasses import dataclass, field
from typing import Final

LEVELS: Final = (0, 1, 3, 6, 9)  # of zstd; 0: frames of raw blocks, no compressor runs
FIRST_COPY: Final = 1  # before anything is known: costs 5 % of the size and is half again as fast
FIRST_CYCLE: Final = 3
_GUESSED_COST: Final = {0: 0.1e-9, 1: 2.7e-9, 3: 3.3e-9, 6: 10e-9, 9: 16e-9}  # seconds a byte, as once measured
_GAIN: Final = {0: 0.0, 1: 1.0, 3: 1.03, 6: 1.06, 9: 1.07}  # of what level 1 saves
_GUESSED_WAY: Final = 8e-9  # seconds a byte: 1 Gbit/s
_GUESSED_SAVED: Final = 0.6  # of a byte that shrinks
_GUESSED_SHARE: Final = 0.7  # of the content that does
_FORGET: Final = 0.02  # at level 0 nothing is learned of the content; it may be another by now
_MIX: Final = 0.2  # of the newest part in what is known of the content: a disk changes from place to place
_DRIFT: Final = 0.05  # of a level's cost towards that of the level that ran
_SMOOTHING: Final = 0.5  # of the newest part in what is known of a level's cost
_WAY: Final = 0.3  # and of the way
_MARGIN: Final = 0.985  # a step costs nothing, so little is enough
_TIMES: Final = 2
_LEAST_BYTES: Final = 1 << 20  # of a part that says something of costs
_OVERLAP: Final = 0.1  # of the shorter one of packing and sending that is felt though both run at a time


@dataclass(frozen=True, slots=True)
class Part:
    """What a cycle, or a part of a copy, came to; seconds of packing are sums over the threads."""

    level: int
    content_bytes: int  # what became frames
    frame_bytes: int
    shrunk_bytes: int  # of the content: what became less; the rest is noise, which costs next to nothing
    pack_seconds: float  # in which it did
    way_seconds: float  # for which the messages were held up by network, target and caps
    beside: bool  # packed while it was sent: a copy. A cycle is packed before


@dataclass(slots=True)
class Compression:
    """Of one VM. `threads` pack at a time."""

    threads: int
    _copy: int = FIRST_COPY
    _cycle: int = FIRST_CYCLE
    _slow: dict[int, float] = field(default_factory=dict)  # by level that ran: its cost, in guessed ones
    _saved: float = _GUESSED_SAVED  # by level 1, of a byte that shrinks
    _share: float = _GUESSED_SHARE
    _way: float = _GUESSED_WAY
    _known: bool = False  # the way was measured
    _wish: tuple[bool, int, int] = (False, 0, 0)  # beside, level, times in a row

    def level(self, *, beside: bool) -> int:
        """To pack the next part with."""
        return self._copy if beside else self._cycle

    def learn(self, part: Part) -> None:
        if part.content_bytes < _LEAST_BYTES:
            return
        self._learn_content(part)
        if part.frame_bytes >= _LEAST_BYTES:
            way = part.way_seconds / part.frame_bytes
            self._way = way if not self._known else self._way + _WAY * (way - self._way)
            self._known = True
        if self._known:
            self._decide(part)

    def seconds(self, level: int, *, beside: bool) -> float:
        """A byte of content would take at that level, by what is known."""
        pack = self._share * self._cost(level) / self.threads
        way = (1 - self._share * self._saved * _GAIN[level]) * self._way
        if not beside:
            return pack + way
        return max(pack, way) + _OVERLAP * min(pack, way)

    def _learn_content(self, part: Part) -> None:
        level = part.level
        if not level:
            self._saved += _FORGET * (_GUESSED_SAVED - self._saved)
            self._share += _FORGET * (_GUESSED_SHARE - self._share)
            return
        self._share += _MIX * (part.shrunk_bytes / part.content_bytes - self._share)
        if part.shrunk_bytes < _LEAST_BYTES:
            return
        slow = part.pack_seconds / part.shrunk_bytes / _GUESSED_COST[level]
        before = self._slow.get(level, slow)
        after = self._slow[level] = before + _SMOOTHING * (slow - before)
        for other in self._slow:  # what slows one level down slows the others, in the long run
            if other != level:
                self._slow[other] += _DRIFT * (after - self._slow[other])
        saved = (part.content_bytes - part.frame_bytes) / part.shrunk_bytes / _GAIN[level]
        self._saved += _MIX * (min(1.0, max(0.0, saved)) - self._saved)

    def _cost(self, level: int) -> float:
        if not level or not self._slow:
            return _GUESSED_COST[level]
        nearest = min(self._slow, key=lambda ran: abs(LEVELS.index(ran) - LEVELS.index(level)))
        return _GUESSED_COST[level] * self._slow[nearest]

    def _decide(self, part: Part) -> None:
        now = self.level(beside=part.beside)
        best = min(LEVELS, key=lambda level: self.seconds(level, beside=part.beside))
        times = self._wish[2] if self._wish[:2] == (part.beside, best) else 0
        margin = 1.0 if times >= _TIMES else _MARGIN  # a move that began goes on
        if self.seconds(best, beside=part.beside) >= margin * self.seconds(now, beside=part.beside):
            self._wish = (part.beside, now, 0)
            return
        self._wish = (part.beside, best, times + 1)
        if times + 1 < _TIMES:
            return
        # One step at a time: a level is known only once it ran.
        place = LEVELS.index(now)
        step = LEVELS[place + (1 if best > now else -1)]
        if part.beside:
            self._copy = step
        else:
            self._cycle = step
