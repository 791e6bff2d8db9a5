"""What a target lacks, in slices: a missing part of a seed may be a GiB, and the cycle that brings some of it has to
arrive in time all the same. State of one sender; pure.
"""

from typing import Final

from hyperv_host_agent.replication import resync
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, TargetState, Wanted
from twinsite.extents import CLUSTER, Run

FIRST: Final = (64 << 20) // CLUSTER  # clusters beside the changes of a cycle; then as many as go in half its period
LEAST: Final = (1 << 20) // CLUSTER
MOST: Final = (256 << 20) // CLUSTER  # what of it waits in a spool stays bounded


class Lacking:
    """Told what cycles carry and how long they take."""

    def __init__(self) -> None:
        self._most = FIRST
        self._carried: tuple[Wanted, ...] = ()  # what the target wanted when the cycle on its way was planned
        self.cut = False  # that cycle brings a part of it only

    def slice(self, wanted: tuple[Wanted, ...], disks: tuple[DiskGeometry, ...]) -> tuple[Wanted, ...]:
        """What of it goes with the cycle that is planned."""
        taken: list[Wanted] = []
        left = self._most
        self._carried, self.cut = wanted, False
        for want in resync.forced(wanted, disks):
            if want.run.count > left:
                self.cut = True
            if left:
                taken.append(Wanted(want.disk, Run(want.run.start, min(want.run.count, left))))
            left -= min(want.run.count, left)
        return tuple(taken)

    def early(self, header: CycleHeader, target: TargetState) -> bool:
        """Whether the cycle is no recovery point because of what its base lacks. `target`: what was known then."""
        return resync.early(header, target, self._carried) or (self.cut and target.seed_after > 0)

    def arrived(self, seconds: float, frequency: float) -> None:
        """The cycle took `seconds`, one is due every `frequency`: the next slice is larger or smaller for that."""
        if self.cut and seconds > frequency:
            self._most = max(LEAST, self._most // 2)
        elif self.cut and seconds <= frequency / 2:
            self._most = min(MOST, self._most * 2)
        self._carried, self.cut = (), False
