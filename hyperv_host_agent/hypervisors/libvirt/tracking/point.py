"""One instant over all disks of a VM."""

from collections.abc import Iterator

from hyperv_host_agent.changes.base import SourceFailed, Tracking
from hyperv_host_agent.changes.bitmap import Bitmap
from hyperv_host_agent.hypervisors.libvirt.tracking.session import Session
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.extents import Run, clusters


class LibvirtPoint:
    def __init__(
        self,
        vm_id: str,
        session: Session,
        disks: tuple[DiskGeometry, ...],
        changed: dict[str, Bitmap | None],
        *,
        instant: float,
        consistency: str,
        doubt: str,
        lost: bool,
        machine: bytes,
    ) -> None:
        """`changed`: None is everything."""
        self._vm_id, self.session, self._changed = vm_id, session, changed
        self.disks, self.instant, self.consistency = disks, instant, consistency
        self.tracking = Tracking.LOST if lost else Tracking.OK
        self.doubt, self.machine = doubt, machine
        self._sizes = {disk.id: disk.size for disk in disks}
        self.closed = False

    def dirty(self, disk: str) -> Iterator[Run]:
        changed = self._changed[disk]
        if changed is None:
            return iter((Run(0, clusters(self._sizes[disk])),))
        return changed.runs()

    def holes(self, disk: str) -> Iterator[Run]:
        self._check_open(disk)
        return self.session.holes(disk, self.dirty(disk))  # nobody asks for others

    def read(self, disk: str, run: Run) -> bytes:
        self._check_open(disk)
        return self.session.read(disk, run)

    def close(self) -> None:
        self.closed = True
        self.session.close()

    def _check_open(self, disk: str) -> None:
        if self.closed:
            raise SourceFailed(self._vm_id, disk, "the point is closed")
