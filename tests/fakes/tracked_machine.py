"""Tracked disks in files whose guest is the test, in its own process, running or stopped."""

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from hyperv_host_agent.changes.disk import Disk, RawDisk
from hyperv_host_agent.changes.durable import locked, safe_name
from hyperv_host_agent.changes.tracked_disks import OWNER_LOCK, Owner, OwnerGone, TrackedDisks
from hyperv_host_agent.changes.tracked_file import FilePoint, TrackedFileSource
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.clock import SystemClock
from twinsite.units import GiB


class SetClock(SystemClock):
    """The system's clock, that a test sets."""

    def __init__(self) -> None:
        self.ahead = 0.0  # seconds
        self.passed = 0.0  # seconds more than really did

    def now(self) -> float:
        return super().now() + self.passed + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


class TimedDisk(RawDisk):
    """A file whose change times are those of a clock that is set: each change has the time of the moment it is seen."""

    def __init__(self, path: Path, clock: SetClock, seen: dict[int, tuple[int, int]], *, writable: bool) -> None:
        super().__init__(path, writable=writable)
        self._clock, self._seen, self._inode = clock, seen, path.stat().st_ino

    def changed_ns(self) -> int:
        real = super().changed_ns()
        if self._seen.get(self._inode, (0, 0))[0] != real:
            self._seen[self._inode] = real, real + int((self._clock.passed + self._clock.ahead) * 1e9)
        return self._seen[self._inode][1]


class TrackedMachine:
    def __init__(self, folder: Path, disks: tuple[DiskGeometry, ...], *, boot: bytes = b"boot" * 4) -> None:
        self.folder, self.geometry, self.boot = folder, disks, boot
        self.scratch_limit = 4 * GiB
        self.clock = SetClock()
        self._changes: dict[int, tuple[int, int]] = {}
        self.guest: TrackedDisks | None = None
        self._running = contextlib.ExitStack()
        folder.mkdir(exist_ok=True)
        for disk in disks:
            with self.path(disk.id).open("wb") as file:
                file.truncate(disk.size)
        self.source = self.new_source()
        self.points: list[FilePoint] = []

    def path(self, disk: str) -> Path:
        return self.folder / f"{safe_name(disk)}.raw"

    def open_disk(self, disk: str, writable: bool) -> Disk:
        return TimedDisk(self.path(disk), self.clock, self._changes, writable=writable)

    def new_source(self) -> TrackedFileSource:
        machine = self

        class Source(TrackedFileSource):
            def open_point(self, cycle: int, id: bytes, *, consistency: str) -> FilePoint:  # noqa: A002  # as the port
                machine.points.append(super().open_point(cycle, id, consistency=consistency))
                return machine.points[-1]

        return Source(
            "vm",
            self.folder,
            lambda: self.geometry,
            self.open_disk,
            machine=lambda: b"",
            owner=self._owner,
            settled=lambda: True,
            boot=self.boot,
            clock=self.clock,
        )

    def _owner(self) -> Owner:
        if self.guest is None:
            raise OwnerGone
        return self.guest

    def start(self) -> None:
        self._running = contextlib.ExitStack()
        assert self._running.enter_context(locked(self.folder / OWNER_LOCK, seconds=10))
        self.guest = TrackedDisks(
            self.folder,
            {disk.id: self.open_disk(disk.id, True) for disk in self.geometry},
            boot=self.boot,
            clock=self.clock,
            scratch_limit=self.scratch_limit,
        )

    def stop(self) -> None:
        guest, self.guest = self.guest, None
        if guest is not None:
            guest.close()
            self._running.close()

    def kill(self) -> None:
        """As SIGKILL leaves it: nothing is closed cleanly, the kernel frees the lock."""
        guest, self.guest = self.guest, None
        assert guest is not None
        with guest._writing:
            if guest._map is not None:
                guest._map.close()
        guest._close_scratch()
        for disk in guest._disks.values():
            disk.close()
        self._running.close()

    def abandon_points(self) -> None:
        """As the death of the agent leaves them: the kernel frees the reader's lock and its files, nobody is told."""
        for point in self.points:
            point._closed = True
            point._resources.close()
        self.points.clear()

    def write(self, disk: str, offset: int, data: bytes) -> None:
        with self.writer() as guest:
            guest.write(disk, offset, data)

    def reshape(self, *geometry: DiskGeometry) -> None:
        """The VM has these disks now: they grew, shrank, came or went."""
        before = {disk.id: disk for disk in self.geometry}

        def swap() -> dict[str, Disk]:
            for disk in geometry:
                with self.path(disk.id).open("ab") as file:
                    if before.get(disk.id) != disk:
                        file.truncate(disk.size)
            for gone in set(before) - {disk.id for disk in geometry}:
                self.path(gone).unlink()
            self.geometry = geometry
            return {disk.id: self.open_disk(disk.id, True) for disk in geometry}

        with self.writer() as guest:
            guest.reshape({disk.id: disk.size for disk in geometry}, {}, decide=lambda: None, swap=swap)

    @contextlib.contextmanager
    def writer(self) -> Iterator[TrackedDisks]:
        if self.guest is not None:
            yield self.guest
            return
        self.start()
        assert self.guest is not None
        try:
            yield self.guest
        finally:
            self.stop()

    def content(self, disk: str) -> bytes:
        return self.path(disk).read_bytes()

    def set_clock(self, seconds: float) -> None:
        """The host's clock jumps by that much; what was changed before keeps its time."""
        for disk in self.geometry:
            with contextlib.closing(self.open_disk(disk.id, False)) as opened:
                opened.changed_ns()
        self.clock.ahead += seconds

    def killed_in_a_write(self, disk: str) -> None:
        """SIGKILL between the change of the file and the note of it."""
        assert self.guest is not None
        assert self.guest._map is not None
        disk_map = self.guest._map.disks[disk]
        disk_map.active.set(0)
        disk_map.write_begins()
        self.edit_behind_its_back(disk)
        self.kill()

    def edit_behind_its_back(self, disk: str) -> None:
        """The file is changed by somebody else, long enough after the last write for the file system's clock."""
        path = self.path(disk)
        before = path.stat().st_ctime_ns
        for _ in range(1000):
            with path.open("r+b") as file:
                first = file.read(1)
                file.seek(0)
                file.write(first)
            if path.stat().st_ctime_ns != before:
                return
            threading.Event().wait(0.005)
        raise AssertionError("the file system's clock stands")

    def close(self) -> None:
        self.abandon_points()
        self.stop()

    def restore_from(self, backup: Path, part: str) -> None:
        """Put a backup's files in place of this folder's (or of `part` of it), times preserved as far as it can."""
        for path in (backup / part).rglob("*"):
            if path.is_file():
                target = self.folder / path.relative_to(backup)
                target.unlink(missing_ok=True)
                shutil.copy2(path, target)
