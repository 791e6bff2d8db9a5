"""Which VMs of a source host may run a cycle now: earliest deadline first, as many at once as help; pure.

Whole copies have places of their own: however many wait or run, no cycle waits for one. How many cycles run at once is
either set or learned: one more while that moves more bytes, one less while that moves no fewer. Seconds by one clock.
"""

from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.replication.sending import AskTurn

MOST: Final = 32  # cycles at once, learned
_FIRST: Final = 2
_GROWTH: Final = 1.05  # a difference of bytes that counts
_HOLD: Final = 6  # measurements between two tries
_LONG: Final = 600.0  # who waited so long goes before those with nearer deadlines


@dataclass(frozen=True, slots=True)
class Given:
    """Tell this VM's sender `TurnGiven(turn)`."""

    vm: str
    turn: int


@dataclass(frozen=True, slots=True)
class _Asked:
    vm: str
    order: AskTurn
    at: float

    def rank(self, now: float) -> tuple[bool, float, str]:
        first = self.order.urgent or now >= self.at + _LONG
        return not first, self.at if first else self.order.deadline, self.vm


class Turns:
    """Told what senders ask; says whose turn it is. Each call returns the turns that are given by it."""

    def __init__(self, *, cycles: int, copies: int) -> None:
        """`cycles` at once, 0: learned; `copies` at once, at least 1."""
        self._fixed = cycles
        self._copies = max(1, copies)
        self._waiting: dict[str, _Asked] = {}
        self._running: dict[str, bool] = {}  # VM → whether it copies
        self._level = _Level()

    @property
    def concurrency(self) -> int:
        """Cycles that may run at once."""
        return self._fixed or self._level.places

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def ask(self, vm: str, order: AskTurn, now: float) -> list[Given]:
        """An AskTurn of the VM's sender; it replaces one that waits, and ends a turn it had."""
        self._running.pop(vm, None)
        before = self._waiting.get(vm)
        since = before.at if before and before.order.copy == order.copy else now
        self._waiting[vm] = _Asked(vm, order, since)
        return self._give(now)

    def end(self, vm: str, now: float) -> list[Given]:
        """An EndTurn, or the end of the VM's sender. Repeatable."""
        self._running.pop(vm, None)
        self._waiting.pop(vm, None)
        return self._give(now)

    def measure(self, moved: int, now: float) -> list[Given]:
        """`moved`: bytes this host has sent for all VMs since it started. Every few seconds."""
        full = self._count(copies=False) >= self.concurrency and any(
            not asked.order.copy for asked in self._waiting.values()
        )
        self._level.measure(moved, now, full=full)
        return self._give(now)

    def _give(self, now: float) -> list[Given]:
        given = []
        for asked in sorted(self._waiting.values(), key=lambda asked: asked.rank(now)):
            copy = asked.order.copy
            if self._count(copies=copy) < (self._copies if copy else self.concurrency):
                del self._waiting[asked.vm]
                self._running[asked.vm] = copy
                given.append(Given(asked.vm, asked.order.turn))
        return given

    def _count(self, *, copies: bool) -> int:
        return sum(copy == copies for copy in self._running.values())


@dataclass(slots=True)
class _Level:
    """Tries one place more, then one less, and keeps what moved the bytes with fewest places.

    Only measurements with all places taken, and cycles waiting, say anything.
    """

    places: int = _FIRST
    _last: tuple[float, int] | None = None
    _full: bool = False  # at the last measurement
    _base: float = 0.0  # bytes per second before the last step
    _step: int = 1  # +1 or -1
    _hold: int = 0  # measurements until the next step

    def measure(self, moved: int, now: float, *, full: bool) -> None:
        last, self._last = self._last, (now, moved)
        was_full, self._full = self._full, full
        if last is None or now <= last[0] or not (full and was_full):
            return
        rate = (moved - last[1]) / (now - last[0])
        if self._hold:
            self._hold -= 1
            if self._hold:
                return
        elif not self._helped(rate):
            self.places -= self._step
            self._turn_round()
            return
        self._base = rate
        if 1 <= self.places + self._step <= MOST:
            self.places += self._step
        else:
            self._turn_round()

    def _helped(self, rate: float) -> bool:
        return rate > self._base * _GROWTH if self._step > 0 else rate * _GROWTH > self._base

    def _turn_round(self) -> None:
        self._step = -self._step
        self._hold = _HOLD
