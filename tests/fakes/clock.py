"""A clock somebody turns back: the wall time jumps, the monotonic one does not."""

from twinsite.clock import MovedClock, SystemClock


class SetBackClock(MovedClock):
    offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset

    def set_back(self, seconds: float) -> None:
        self.offset -= seconds


class SteppedClock(SystemClock):
    """The system's, whose wall time is `shift` seconds off."""

    def __init__(self) -> None:
        self.shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift
