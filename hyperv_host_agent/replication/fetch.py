"""When a source asks the target for the fingerprints it does not know."""

from dataclasses import dataclass
from typing import Final

TRIES: Final = 3  # at a target that answers otherwise, and does not send them
RETRY_SECONDS: Final = 60.0  # after it could not; without them everything written is sent


@dataclass(slots=True)
class Fetch:
    _failures: int = 0  # in a row
    _not_before: float = float("-inf")

    def due(self, now: float) -> bool:
        return now >= self._not_before

    def failed(self, now: float) -> None:
        """The target could not be reached."""
        self._failures += 1
        if self._failures >= TRIES:
            self.impossible(now)

    def impossible(self, now: float) -> None:
        """It cannot say them now."""
        self._failures, self._not_before = 0, now + RETRY_SECONDS
