"""A change source over disks in memory, for tests: the twin of `tracked_file`."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hyperv_host_agent.changes.base import UNTRACKED, Anchor, SourceFailed, SourceUnavailable, Tracking
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.clock import Clock, SystemClock
from twinsite.digest import is_zero
from twinsite.extents import CLUSTER, Run, clusters, runs


class MemoryPoint:
    def __init__(
        self, source: "MemoryChangeSource", content: Mapping[str, bytes], dirty: Mapping[str, set[int]], instant: float
    ) -> None:
        self._source, self._content, self._dirty = source, content, dirty
        self.instant = instant
        self.consistency = "crash"
        self.disks = source.disks()
        self.tracking = Tracking.OK
        self.doubt = ""
        self.machine = source.machine

    def dirty(self, disk: str) -> Iterator[Run]:
        yield from runs(sorted(self._dirty[disk]))

    def holes(self, disk: str) -> Iterator[Run]:
        content = memoryview(self._content[disk])
        places = range(clusters(len(content)))
        yield from runs(place for place in places if is_zero(content[place * CLUSTER : (place + 1) * CLUSTER]))

    def read(self, disk: str, run: Run) -> bytes:
        if not self._source.point_open(self):
            raise SourceFailed(self._source.vm_id, disk, "the point is closed")
        if disk in self._source.broken_disks:
            raise SourceFailed(self._source.vm_id, disk, "input/output error")
        return self._content[disk][run.start * CLUSTER : run.end * CLUSTER]

    def close(self) -> None:
        self._source.point_closed(self)


class MemoryChangeSource:
    """Tests write through `write`, set `unavailable` or `broken_disks`, and call `lose_tracking` and `restart`."""

    def __init__(
        self,
        vm_id: str,
        disks: Sequence[DiskGeometry],
        *,
        contents: Mapping[str, bytes] | None = None,
        machine: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        self.vm_id = vm_id
        self.machine = machine
        self.unavailable = ""  # not empty: points cannot be opened, for this reason
        self.can_freeze = True
        self.broken_disks: set[str] = set()
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._geometry = tuple(disks)
        self._content = {
            disk.id: bytearray((contents or {}).get(disk.id, b"").ljust(disk.size, b"\0")) for disk in disks
        }
        self._point: MemoryPoint | None = None
        self._forget()

    def _forget(self) -> None:
        self._tracking = False
        self._anchor: Anchor | None = None
        self._pending: Anchor | None = None
        self._active: dict[str, set[int]] = {disk.id: set() for disk in self._geometry}
        self._frozen: dict[str, set[int]] = {disk.id: set() for disk in self._geometry}
        self._active_lost = self._frozen_lost = ""  # why what changed is not known

    # What a guest and a test do.

    def write(self, disk: str, offset: int, data: bytes) -> None:
        with self._lock:
            content = self._content[disk]
            if offset + len(data) > len(content):
                raise ValueError(f"{disk} ends at {len(content)}")
            if self._tracking:
                self._active[disk].update(range(offset // CLUSTER, -(-(offset + len(data)) // CLUSTER)))
            content[offset : offset + len(data)] = data

    def content(self, disk: str) -> bytes:
        with self._lock:
            return bytes(self._content[disk])

    def lose_tracking(self, why: str = "the host stopped while the VM ran") -> None:
        """As after a crash of the host: what changed since the anchor is unknown."""
        with self._lock:
            self._active_lost = why

    def resize(self, disk: str, size: int) -> None:
        """What is cut off is gone; what comes in reads zeros."""
        with self._lock:
            content, before = self._content[disk], len(self._content[disk])
            del content[size:]
            content.extend(bytes(size - len(content)))
            for bits in (self._active[disk], self._frozen[disk]):
                bits.intersection_update(range(clusters(size)))
            self._active[disk].update(range(min(size, before) // CLUSTER, clusters(size)))
            self._geometry = tuple(replace(known, size=size) if known.id == disk else known for known in self._geometry)

    def add_disk(self, disk: DiskGeometry, content: bytes = b"") -> None:
        with self._lock:
            self._geometry = (*self._geometry, disk)
            self._content[disk.id] = bytearray(content.ljust(disk.size, b"\0"))
            self._active[disk.id], self._frozen[disk.id] = set(range(clusters(disk.size))), set()

    def remove_disk(self, disk: str) -> None:
        with self._lock:
            self._geometry = tuple(known for known in self._geometry if known.id != disk)
            for held in (self._content, self._active, self._frozen):
                held.pop(disk)

    def restart(self) -> None:
        """The agent dies and comes back: an open point is gone, what it froze is neither acked nor discarded."""
        with self._lock:
            self._point = None

    # The port.

    def status(self) -> tuple[Anchor | None, Tracking]:
        with self._lock:
            whole = self._tracking and not self._active_lost and not self._frozen_lost
            return self._anchor, Tracking.OK if whole else Tracking.LOST

    def start(self) -> None:
        with self._lock:
            self._tracking = True

    def open_point(self, cycle: int, id: bytes, *, consistency: str) -> MemoryPoint:  # noqa: A002  # as the port
        with self._lock:
            if self.unavailable:
                raise SourceUnavailable(self.vm_id, self.unavailable)
            if not self._tracking:
                raise SourceUnavailable(self.vm_id, "its changes are not tracked")
            if self._point is not None:
                raise SourceUnavailable(self.vm_id, "a point of it is open already")
            self._pending = Anchor(cycle, id)
            for disk, bits in self._active.items():
                self._frozen[disk] |= bits
                bits.clear()
            self._frozen_lost = self._frozen_lost or self._active_lost
            self._active_lost = ""
            everything = bool(self._frozen_lost) or self._anchor is None
            dirty = {
                disk.id: set(range(clusters(disk.size))) if everything else set(self._frozen[disk.id])
                for disk in self._geometry
            }
            point = MemoryPoint(
                self, {disk: bytes(data) for disk, data in self._content.items()}, dirty, self._clock.now()
            )
            if consistency == "application" and self.can_freeze:
                point.consistency = consistency
            if self._frozen_lost:
                point.tracking = Tracking.LOST
            point.doubt = self._frozen_lost or ("" if self._anchor else UNTRACKED)
            self._point = point
            return point

    def ack(self, cycle: int, id: bytes) -> None:  # noqa: A002  # as the port
        with self._lock:
            named = Anchor(cycle, id)
            if self._pending != named:
                return
            self._anchor, self._pending = named, None
            for bits in self._frozen.values():
                bits.clear()
            self._frozen_lost = ""

    def discard(self) -> None:
        with self._lock:
            for disk, bits in self._frozen.items():
                self._active[disk] |= bits
                bits.clear()
            self._active_lost = self._active_lost or self._frozen_lost
            self._frozen_lost = ""
            self._pending = None

    def read_now(self, disk: str, run: Run) -> bytes:
        with self._lock:
            self._check_there(disk, run)
            if disk in self.broken_disks:
                raise SourceFailed(self.vm_id, disk, "input/output error")
            return bytes(self._content[disk][run.start * CLUSTER : run.end * CLUSTER])

    def holes_now(self, disk: str, run: Run) -> Iterator[Run]:
        with self._lock:
            self._check_there(disk, run)
            content = bytes(self._content[disk][run.start * CLUSTER : run.end * CLUSTER])
        places = range(run.count)
        zeros = (place for place in places if is_zero(content[place * CLUSTER : (place + 1) * CLUSTER]))
        yield from runs(run.start + place for place in zeros)

    def disks(self) -> tuple[DiskGeometry, ...]:
        with self._lock:
            return self._geometry

    def dirty_bytes(self) -> int:
        with self._lock:
            return sum(len(self._active[disk] | self._frozen[disk]) for disk in self._active) * CLUSTER

    def rest(self) -> None:
        """Nothing is kept open."""

    def stop(self) -> None:
        with self._lock:
            self._point = None
            self._forget()

    def _check_there(self, disk: str, run: Run) -> None:
        if disk not in self._content or run.end > clusters(len(self._content[disk])):
            raise SourceUnavailable(self.vm_id, "its disks were changed meanwhile")

    # What its points ask.

    def point_open(self, point: MemoryPoint) -> bool:
        return self._point is point

    def point_closed(self, point: MemoryPoint) -> None:
        with self._lock:
            if self._point is point:
                self._point = None
