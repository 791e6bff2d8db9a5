"""How often strangers may try."""

from typing import Final

from coordinator.access.model import TooManyTries
from twinsite.clock import Clock

_MOST: Final = 10_000  # remembered; past that the oldest are forgotten, which costs an attacker as many addresses


class Rate:
    """Tokens per key (an address, a user name): `burst` at once, `per_second` after that."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock, self._rate, self._burst = clock, per_second, burst
        self._left: dict[str, tuple[float, float]] = {}  # key → (tokens, when)

    def take(self, key: str) -> None:
        """Raises TooManyTries."""
        left = self._now(key)
        if left < 1:
            raise TooManyTries(max(1, round((1 - left) / self._rate)))
        self._left.pop(key, None)
        self._left[key] = (left - 1, self._clock.monotonic())
        if len(self._left) > _MOST:
            del self._left[next(iter(self._left))]

    def give_back(self, key: str) -> None:
        """A try that turned out well does not count."""
        self._left[key] = (min(self._burst, self._now(key) + 1), self._clock.monotonic())

    def _now(self, key: str) -> float:
        left, when = self._left.get(key, (float(self._burst), self._clock.monotonic()))
        return min(self._burst, left + (self._clock.monotonic() - when) * self._rate)
