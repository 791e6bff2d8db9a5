"""The change source of the embedded hypervisor: disks in files, written by one process through `TrackedDisks`."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from hyperv_host_agent.changes.base import UNTRACKED, Anchor, SourceFailed, SourceUnavailable, Tracking
from hyperv_host_agent.changes.bitmap import Bitmap
from hyperv_host_agent.changes.change_map import ChangeMap, dirty_clusters, read_anchor, this_boot
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import locked
from hyperv_host_agent.changes.mapped_file import MapUnusable
from hyperv_host_agent.changes.readers import Readers
from hyperv_host_agent.changes.tracked_disks import (
    OWNER_LOCK,
    TRACKING,
    NotTracked,
    Opened,
    Owner,
    OwnerGone,
    TrackedDisks,
    reader_lock,
)
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.clock import Clock, SystemClock
from twinsite.extents import CLUSTER, Run, clusters

Answer = TypeVar("Answer")
_OWNER_SECONDS: Final = 15.0  # a guest that starts or stops is out of reach for that long on a loaded host
_READER_SECONDS: Final = 2.0  # the owner probes the reader's lock now and then


class FilePoint:
    """Reads the disks beside their writer; what the writer overwrites meanwhile comes from the scratch files."""

    def __init__(
        self,
        source: "TrackedFileSource",
        point: Anchor,
        opened: Opened,
        folder: Path,
        machine: Callable[[], bytes],
        resources: contextlib.ExitStack,
    ) -> None:
        """Takes over what is in `resources`. Raises SourceUnavailable, MapUnusable."""
        self.instant, self.consistency = opened.instant, opened.consistency
        self.disks = source.disks()
        self._source = source
        self._files = source.open_readers(self.disks, resources)
        self._map = resources.enter_context(contextlib.closing(source.open_map(self._files)))
        self.machine = machine()
        # What was looked at is of the instant: a change of the disks would have failed the point before it began.
        if self._map.pending() != point or self._map.point_failed or not self._map.point_open:
            raise SourceUnavailable(source.vm_id, "its disks were changed meanwhile")
        everything = self._map.frozen_lost or self._map.anchor() is None
        self.tracking = Tracking.LOST if self._map.frozen_lost else Tracking.OK
        self.doubt = self._map.frozen_doubt or (UNTRACKED if everything else "")
        self._frozen: dict[str, Bitmap | None] = {
            disk.id: None if everything else self._map.disks[disk.id].frozen.snapshot() for disk in self.disks
        }
        self._generation = self._map.generation
        self._scratch: dict[str, Path] = {
            disk.id: TrackedDisks.scratch_path(folder / TRACKING, disk.id) for disk in self.disks
        }
        self._closed = False
        self._resources = resources.pop_all()

    def dirty(self, disk: str) -> Iterator[Run]:
        frozen = self._frozen[disk]
        if frozen is None:
            return iter((Run(0, clusters(self._files[disk].size)),))
        return frozen.runs()

    def holes(self, disk: str) -> Iterator[Run]:
        self._check_open(disk)
        copied = self._map.disks[disk].copied
        for hole in self._files[disk].holes(Run(0, clusters(self._files[disk].size))):
            self._check_whole()  # a disk that was cut has a hole where it ended
            # A cluster with a copy was written since the instant, so the hole says nothing about the instant.
            yield from copied.clear_runs(hole)

    def read(self, disk: str, run: Run) -> bytes:
        self._check_open(disk)
        file = self._files[disk]
        start, end = run.start * CLUSTER, min(run.end * CLUSTER, file.size)
        try:
            data = file.read(start, end - start)
            # Only now: see TrackedDisks._save for why this order is right.
            copied = self._map.disks[disk].copied
            if copied.any_in(run):
                data = self._mended(disk, run, data, copied)
        except OSError as error:
            self._check_whole()  # a disk that was cut, and the point with it, ends early
            raise SourceFailed(self._source.vm_id, disk, str(error)) from error
        self._check_whole()
        return data

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._resources:  # an owner out of reach notices by the freed lock
            self._source.point_closes()

    def _mended(self, disk: str, run: Run, data: bytes, copied: Bitmap) -> bytes:
        whole = bytearray(data)
        with self._scratch[disk].open("rb") as scratch:
            for cluster in range(run.start, run.end):
                if cluster in copied:
                    at = (cluster - run.start) * CLUSTER
                    scratch.seek(cluster * CLUSTER)
                    whole[at : at + CLUSTER] = scratch.read(min(CLUSTER, len(data) - at))
        return bytes(whole)

    def _check_whole(self) -> None:
        if self._map.point_failed or not self._map.point_open or self._map.generation != self._generation:
            raise SourceUnavailable(
                self._source.vm_id,
                "what was overwritten since the instant could not be saved (scratch space), or its disks were changed",
            )

    def _check_open(self, disk: str) -> None:
        if self._closed:
            raise SourceFailed(self._source.vm_id, disk, "the point is closed")


class TrackedFileSource:
    """`folder` is the VM's; it holds `owner.lock` and, while changes are tracked, `tracking`."""

    def __init__(
        self,
        vm_id: str,
        folder: Path,
        geometry: Callable[[], Sequence[DiskGeometry]],
        open_disk: Callable[[str, bool], Disk],
        *,
        machine: Callable[[], bytes],
        owner: Callable[[], Owner],
        settled: Callable[[], bool],
        recover: Callable[[], None] = lambda: None,
        boot: bytes | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`open_disk(id, writable)`; `owner` reaches the process that holds the owner lock, or raises OwnerGone.

        `settled` says of a stopped VM whether its guest had ended in an orderly way; `recover` finishes a change of the
        VM's disks that its process did not live to finish, and is called with the owner lock held.
        """
        self.vm_id = vm_id
        self._clock = clock or SystemClock()
        self._recover = recover
        self._readers = Readers(lambda disk: open_disk(disk, False))  # of the fuzzy copy
        self._folder, self._geometry = folder, geometry
        self._open_disk, self._machine, self._owner, self._settled = open_disk, machine, owner, settled
        self._boot = boot or this_boot()

    def status(self) -> tuple[Anchor | None, Tracking]:
        with contextlib.ExitStack() as stack:
            try:
                found = stack.enter_context(contextlib.closing(self.open_map(self.open_readers(self.disks(), stack))))
            except MapUnusable:
                return read_anchor(self._folder / TRACKING), Tracking.LOST
            whole = not found.active_lost and not found.frozen_lost
            if whole and stack.enter_context(locked(self._folder / OWNER_LOCK)):
                whole = not found.doubt()  # nobody writes, so nobody has looked yet
            return found.anchor(), Tracking.OK if whole else Tracking.LOST

    def start(self) -> None:
        self._ask(lambda owner: owner.begin_tracking())

    def open_point(self, cycle: int, id: bytes, *, consistency: str) -> FilePoint:  # noqa: A002  # as the port
        self.rest()
        point = Anchor(cycle, id)
        with contextlib.ExitStack() as stack:
            try:
                free = stack.enter_context(reader_lock(self._folder, seconds=_READER_SECONDS))
            except OSError as error:
                raise SourceUnavailable(self.vm_id, str(error)) from error
            if not free:
                raise SourceUnavailable(self.vm_id, "a point of it is open already")
            opened = self._ask(lambda owner: owner.open_point(point, consistency))
            try:
                return FilePoint(self, point, opened, self._folder, self._machine, stack)
            except MapUnusable as error:
                raise SourceUnavailable(self.vm_id, str(error)) from error

    def ack(self, cycle: int, id: bytes) -> None:  # noqa: A002  # as the port
        self._ask(lambda owner: owner.ack(Anchor(cycle, id)))

    def discard(self) -> None:
        self._ask(lambda owner: owner.discard())

    def read_now(self, disk: str, run: Run) -> bytes:
        start = run.start * CLUSTER
        with self._reading_now(disk) as file:
            return file.read(start, min(run.end * CLUSTER, file.size) - start)

    def holes_now(self, disk: str, run: Run) -> Iterator[Run]:
        with self._reading_now(disk) as file:
            yield from file.holes(run)

    @contextlib.contextmanager
    def _reading_now(self, disk: str) -> Iterator[Disk]:
        # Kept open until `rest`: a file that took its place meanwhile makes the next point doubtful, so that what was
        # read of this one is compared again.
        try:
            with self._readers.using(disk) as file:
                yield file
        except OSError as error:
            self.rest()
            raise SourceFailed(self.vm_id, disk, str(error)) from error

    def rest(self) -> None:
        self._readers.rest()

    def disks(self) -> tuple[DiskGeometry, ...]:
        return tuple(self._geometry())

    def dirty_bytes(self) -> int:
        return dirty_clusters(self._folder / TRACKING) * CLUSTER

    def stop(self) -> None:
        self.rest()
        self._ask(lambda owner: owner.end_tracking())

    # What its points ask.

    def open_readers(self, disks: Iterable[DiskGeometry], stack: contextlib.ExitStack) -> dict[str, Disk]:
        try:
            return {disk.id: stack.enter_context(contextlib.closing(self._open_disk(disk.id, False))) for disk in disks}
        except OSError as error:
            raise SourceUnavailable(self.vm_id, str(error)) from error

    def open_map(self, disks: Mapping[str, Disk]) -> ChangeMap:
        """To look at. Raises MapUnusable."""
        return ChangeMap(self._folder / TRACKING, disks, writable=False, boot=self._boot, clock=self._clock)

    def point_closes(self) -> None:
        with contextlib.suppress(SourceUnavailable):
            self._ask(lambda owner: owner.close_point())

    def _ask(self, operation: Callable[[Owner], Answer]) -> Answer:
        """Of the owner if there is one, else as the owner. A guest may start or stop at any moment in between."""
        clock = self._clock
        deadline = clock.monotonic() + _OWNER_SECONDS
        pause = threading.Event()
        while True:
            try:
                with locked(self._folder / OWNER_LOCK) as free:
                    if free:
                        with self._own() as disks:
                            return operation(disks)
                return operation(self._owner())
            except NotTracked:
                raise SourceUnavailable(self.vm_id, "its changes are not tracked") from None
            except OwnerGone:
                if clock.monotonic() > deadline:
                    raise SourceUnavailable(self.vm_id, "the process that has its disks open does not answer") from None
                pause.wait(0.02)
            except OSError as error:
                raise SourceUnavailable(self.vm_id, str(error)) from error

    def _own(self) -> TrackedDisks:
        with contextlib.ExitStack() as stack:
            self._recover()
            disks = {
                disk.id: stack.enter_context(contextlib.closing(self._open_disk(disk.id, True)))
                for disk in self.disks()
            }
            owned = TrackedDisks(
                self._folder,
                disks,
                boot=self._boot,
                clock=self._clock,
                quiet=lambda: contextlib.nullcontext(self._settled()),
            )
            stack.pop_all()  # it closes them from here on
            return owned
