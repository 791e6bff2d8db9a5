"""A host's two clocks: one that only boots reset, and one that anybody sets."""

from twinsite.clock import Boot


class BootClock:
    def __init__(self) -> None:
        self.boots, self.seconds, self.wall = 1, 1000.0, 1_800_000_000.0

    def read(self) -> Boot:
        return Boot(f"boot-{self.boots}", self.seconds, self.wall)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        self.wall += seconds

    def set_wall(self, seconds: float) -> None:
        """Turn the wall clock forward, or back."""
        self.wall += seconds

    def reboot(self, seconds: float = 60.0) -> None:
        """The host is down for so long."""
        self.boots += 1
        self.seconds = 5.0
        self.wall += seconds
