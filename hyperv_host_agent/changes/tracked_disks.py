"""A VM's disks as their one writer has them: every write is remembered, and an open point is saved from it.

The writer is the guest process while the VM runs; while it is stopped, whoever wants to change the map for a moment.
Holding `owner.lock` makes it the writer; the lock ends with the process.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from hyperv_host_agent.changes.base import Anchor
from hyperv_host_agent.changes.change_map import (
    ChangeMap,
    create,
    publish_sizes,
    stage_sizes,
    this_boot,
    unstage_sizes,
)
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.disk_map import DiskMap
from hyperv_host_agent.changes.durable import locked, safe_name
from hyperv_host_agent.changes.mapped_file import MapUnusable
from twinsite.clock import Clock, SystemClock
from twinsite.extents import CLUSTER, Run
from twinsite.units import GiB

OWNER_LOCK: Final = "owner.lock"
TRACKING: Final = "tracking"
_READER_CHECK_SECONDS: Final = 1.0


class NotTracked(Exception):
    """Tracking was not started."""


class OwnerGone(Exception):
    """The process that had the disks open ended, or does not answer."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A point that was opened: seconds since 1970, and what consistency was achieved."""

    instant: float
    consistency: str


class Owner(Protocol):
    """What the writer of the disks does for the host agent. Every operation is repeatable. Raises OwnerGone."""

    def begin_tracking(self) -> None: ...

    def open_point(self, point: Anchor, consistency: str) -> Opened:
        """The caller holds the point's reader lock. Raises NotTracked."""
        ...

    def close_point(self) -> None: ...

    def ack(self, point: Anchor) -> None:
        """Raises NotTracked."""
        ...

    def discard(self) -> None: ...

    def end_tracking(self) -> None: ...


@contextlib.contextmanager
def _running() -> Iterator[bool]:
    """A writer that cannot make its guest pause between two writes that belong together."""
    yield False


class TrackedDisks:
    """Thread-safe. The caller holds `owner.lock` from before it opened the disks until after `close`."""

    def __init__(
        self,
        folder: Path,
        disks: Mapping[str, Disk],
        *,
        boot: bytes | None = None,
        clock: Clock | None = None,
        quiet: Callable[[], contextlib.AbstractContextManager[bool]] = _running,
        scratch_limit: int = 4 * GiB,
    ) -> None:
        """`quiet` holds the guest between two of its operations, and says whether it could in time."""
        self._folder, self._disks = folder / TRACKING, dict(disks)
        self._boot = boot or this_boot()
        self._clock = clock or SystemClock()
        self._quiet = quiet
        self._scratch_limit = scratch_limit
        self._writing = threading.Lock()  # no write is half done while it is held by somebody else
        self._operating = threading.RLock()
        self._scratch: dict[str, int] = {}
        self._scratch_bytes = 0
        self._reader_seen = 0.0
        self._map: ChangeMap | None = None
        self._closed = False
        self.doubt = ""  # why changes may have been missed before this opening
        if self._folder.exists():
            self._attach()

    # What the guest does.

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """Raises OSError."""
        return self._disks[disk].read(offset, length)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """Remember, save what an open point needs, write. Raises OSError of the disk itself, never of the tracking."""
        with self._writing:
            target = self._disks[disk]
            if self._map is None:
                target.write(offset, data)
                return
            disk_map = self._map.disks[disk]
            self._look_for_others(self._map, disk_map)
            for cluster in range(offset // CLUSTER, -(-(offset + len(data)) // CLUSTER)):
                disk_map.active.set(cluster)
                if self._map.point_open and not self._map.point_failed and cluster not in disk_map.copied:
                    self._save(disk, cluster)
            disk_map.write_begins()
            try:
                target.write(offset, data)
            finally:
                disk_map.write_ended()

    def sizes(self) -> dict[str, int]:
        """Bytes of each disk."""
        return {identifier: disk.size for identifier, disk in self._disks.items()}

    def sync(self) -> None:
        for disk in self._disks.values():
            disk.sync()

    # What the host agent asks for.

    def begin_tracking(self) -> None:
        with self._operation():
            if self._map is not None:
                self._check_in_place(self._map)
                return
            create(self._folder, self._disks, boot=self._boot)
            with self._writing:
                found = self._open_map()
                found.trust()  # writes until here are before the first point, and that one reads everything
                found.attach()
                self._map = found

    def open_point(self, point: Anchor, consistency: str) -> Opened:
        with self._operation():
            found = self._tracked()
            self.close_point()  # of a reader that is gone
            (self._folder / "scratch").mkdir(exist_ok=True)
            if consistency != "application":
                return self._freeze(found, point, "crash")
            with self._quiet() as quiet:
                if quiet:
                    self.sync()
                return self._freeze(found, point, "application" if quiet else "crash")

    def close_point(self) -> None:
        with self._operation():
            if self._map is not None:
                with self._writing:
                    self._map.close_point()
                self._drop_scratch()

    def ack(self, point: Anchor) -> None:
        with self._operation():
            self._tracked().ack(point)

    def discard(self) -> None:
        with self._operation():
            if self._map is not None:
                with self._writing:
                    self._map.discard()

    def end_tracking(self) -> None:
        with self._operation():
            self.close_point()
            with self._writing:
                found, self._map = self._map, None
            if found is not None:
                found.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    # What whoever changes the VM asks for.

    def reshape(
        self,
        sizes: Mapping[str, int],
        touched: Mapping[str, Iterable[Run]],
        *,
        decide: Callable[[], None],
        swap: Callable[[], Mapping[str, Disk]],
    ) -> None:
        """From now on the VM has disks of these `sizes` in bytes; what is known of changes goes on.

        Nobody writes meanwhile. What may fail comes before `decide`, which makes the change certain; `swap` makes it
        and opens the disks as they are then, of which `touched` differs from what was there. An open point ends.
        Raises OSError: before `decide` has returned nothing is changed; from then on the caller must end, and whoever
        has the disks next finishes the change with `reshape_map`.
        """
        with self._operation(), self._writing:
            found = self._map
            if found is not None:
                found.fail_point()
                found.close_point()
                self._drop_scratch()
                try:
                    stage_sizes(self._folder, sizes, touched)
                except MapUnusable as error:
                    raise OSError(str(error)) from error
            decide()
            if found is not None:
                publish_sizes(self._folder, sizes)
                self._map = None
                found.close()
            before, self._disks = self._disks, dict(swap())
            for disk in before.values():
                disk.close()
            if found is not None:
                self._map = self._open_map()
                self._map.trust()

    def close(self) -> None:
        """Make everything durable, so that the map is believed after a restart of the host too. Closes the disks."""
        with self._operating, self._writing:
            self.sync()
            if self._map is not None:
                self._map.detach_cleanly()
                self._map.close()
                self._map = None
            self._close_scratch()
            self._closed = True
            for disk in self._disks.values():
                disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _operation(self) -> Iterator[None]:
        with self._operating:
            if self._closed:
                raise OwnerGone
            yield

    def _tracked(self) -> ChangeMap:
        if self._map is None:
            raise NotTracked
        return self._check_in_place(self._map)

    def _attach(self) -> None:
        try:
            found = self._open_map()
        except MapUnusable as unusable:
            self.doubt = str(unusable)
            self._map = self._recreated(self.doubt)
            return
        self._map = found
        self.doubt = found.attach()
        self._close_abandoned_point()

    def _open_map(self) -> ChangeMap:
        return ChangeMap(self._folder, self._disks, writable=True, boot=self._boot, clock=self._clock)

    def _recreated(self, doubt: str) -> ChangeMap:
        create(self._folder, self._disks, boot=self._boot, doubt=doubt)
        found = self._open_map()
        found.attach()
        return found

    def _check_in_place(self, found: ChangeMap) -> ChangeMap:
        """The map, a new one if somebody removed or replaced its files: what is mapped then nobody else can see."""
        if found.in_place():
            return found
        with self._writing:
            found.close()
            self._map = None  # if the next step fails, nothing is tracked, and what is there now is doubtful
            self._drop_scratch()
            self.doubt = "what was known of its changes was removed or replaced while the VM ran"
            self._map = self._recreated(self.doubt)
            return self._map

    def _freeze(self, found: ChangeMap, point: Anchor, consistency: str) -> Opened:
        with self._writing:
            for disk_map in found.disks.values():
                self._look_for_others(found, disk_map)
            found.freeze(point)
            self._reader_seen = self._clock.monotonic()
            return Opened(self._clock.now(), consistency)

    def _look_for_others(self, found: ChangeMap, disk_map: DiskMap) -> None:
        if disk_map.intruded():
            found.lose("the disk's file was changed by another program while the VM ran")
            found.fail_point()
            disk_map.write_ended()

    def _save(self, disk: str, cluster: int) -> None:
        """Copy a cluster to the scratch file before it is overwritten. If that fails, the point does, not the guest.

        The reader reads the disk first and looks at `copied` afterwards. Here the copy is complete before its bit is
        set, and the bit is set before the disk changes. So a reader that finds the bit clear had read the disk before
        it changed, and one that finds it set finds the copy. The system calls on both sides keep the order.
        """
        found = self._map
        if found is None:
            return
        if self._clock.monotonic() - self._reader_seen > _READER_CHECK_SECONDS:
            self._close_abandoned_point()
            if not found.point_open:
                return
        source = self._disks[disk]
        start = cluster * CLUSTER
        if self._scratch_bytes + CLUSTER > self._scratch_limit:
            found.fail_point()
            return
        try:
            if disk not in self._scratch:
                path = self.scratch_path(self._folder, disk)
                self._scratch[disk] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            old = memoryview(source.read(start, min(CLUSTER, source.size - start)))
            while old:
                written = os.pwrite(self._scratch[disk], old, start)
                start, old = start + written, old[written:]
        except OSError:
            found.fail_point()
            return
        self._scratch_bytes += CLUSTER
        found.disks[disk].copied.set(cluster)

    def _close_abandoned_point(self) -> None:
        """A reader that died has not closed its point; its lock is free then."""
        found = self._map
        if found is None or not found.point_open:
            return
        with reader_lock(self._folder.parent) as free:
            if free:
                found.close_point()
                self._drop_scratch()
        self._reader_seen = self._clock.monotonic()

    def _close_scratch(self) -> None:
        for file in self._scratch.values():
            os.close(file)
        self._scratch.clear()
        self._scratch_bytes = 0

    def _drop_scratch(self) -> None:
        self._close_scratch()
        shutil.rmtree(self._folder / "scratch", ignore_errors=True)

    @staticmethod
    def scratch_path(folder: Path, disk: str) -> Path:
        """Old clusters, each at its place on the disk."""
        return folder / "scratch" / safe_name(disk)


def reshape_map(folder: Path, disks: Iterable[str]) -> None:
    """Finish what `TrackedDisks.reshape` had decided when its process ended; of the VM's folder. Repeatable.

    The caller holds the owner lock and changes the disks after this.
    """
    if (folder / TRACKING).is_dir():
        publish_sizes(folder / TRACKING, disks)


def forget_reshape(folder: Path) -> None:
    """What `TrackedDisks.reshape` had prepared when its process ended before the decision. Repeatable."""
    unstage_sizes(folder / TRACKING)


def reader_lock(folder: Path, *, seconds: float = 0.0) -> contextlib.AbstractContextManager[bool]:
    """Held by the reader of an open point for as long as it reads; of the VM's folder."""
    return locked(folder / "reader.lock", seconds=seconds)
