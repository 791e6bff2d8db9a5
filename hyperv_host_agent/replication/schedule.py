"""When the next cycle is due, how long to wait after a failure, and what made a cycle late; pure, in seconds."""

from dataclasses import dataclass, fields
from typing import Final

_CAP: Final = 30.0


def due(opened: float, frequency: float, now: float) -> float:
    """When the next point is to be opened: the RPO clock runs from instant to instant; a late cycle is not made up."""
    return max(opened + frequency, now)


def backoff(failures: int, frequency: float) -> float:
    """Wait after the n-th failure in a row (1, 2, 3 …): 1, 2, 4 … s, for a frequent cycle no longer than its period."""
    return min(2.0 ** min(failures - 1, 10), _CAP, max(1.0, frequency))


def missed(since: float, now: float, frequency: float) -> int:
    """Periods that passed without a commit: none until a cycle due at `since` is two periods late, then each one."""
    if now <= since + 2 * frequency:
        return 0
    return int((now - since) / frequency) - 1


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a cycle went."""

    source: float = 0.0  # opening the point and reading it
    compress: float = 0.0
    network: float = 0.0  # until everything was sent, waiting for a peer that did not answer included
    target: float = 0.0  # from the last frame to the commit
    cap: float = 0.0  # held back by a rate cap
    turn: float = 0.0  # waiting for other VMs of the host, before its instant

    @property
    def total(self) -> float:
        return self.source + self.compress + self.network + self.target + self.cap + self.turn

    def late(self, frequency: float) -> str:
        """The name of the part that made the cycle late: empty when it was not."""
        if self.total <= frequency:
            return ""
        return max((field.name for field in fields(self)), key=lambda name: float(getattr(self, name)))
