"""What is known about changes to one disk, in a mapped file: a page of words, then the bitmaps active, frozen, copied.

A disk that grows or shrinks gets a new file beside the old one, which a rename puts in its place; whoever has the old
one mapped keeps it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from blake3 import blake3

from hyperv_host_agent.changes.bitmap import Bitmap, bytes_for
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import safe_name
from hyperv_host_agent.changes.mapped_file import PAGE, MappedFile, MapUnusable, create_mapped, padded
from twinsite.clock import Clock, SystemClock
from twinsite.extents import CLUSTER, Run, clusters

# A write that a kill interrupted has changed the file no later than this after it began.
_SLOWEST_WRITE_NS: Final = 50_000_000
_SAME_CLOCK_NS: Final = 10_000_000  # two looks at it are not taken at once
_STAGED: Final = ".staged"


class DiskMap:
    """The changes of one disk."""

    # Words; the identity has two. `reach` is the largest size the disk ever had, `offset` what the wall clock was ahead
    # of the monotonic one when the last write began: only a clock that was set changes it.
    SIZE, IDENTITY, CHANGED, WRITING, REACH, OFFSET = 1, 2, 4, 5, 6, 7

    def __init__(self, path: Path, disk: Disk, *, writable: bool, clock: Clock | None = None) -> None:
        """Raises MapUnusable."""
        bits = clusters(disk.size)
        self._mapped = MappedFile(path, map_length(disk.size), writable=writable)
        self._words = self._mapped.words
        self._disk = disk
        self._clock = clock or SystemClock()
        self.active, self.frozen, self.copied = _bitmaps(self._mapped, bits)

    def doubt(self, *, clean: bool) -> str:
        """Why the disk's file may hold changes the map does not know; empty: it does not.

        Times are compared for equality as far as possible: a clock that was set, forward or back, hides nothing.
        """
        if self._words[self.SIZE] != self._disk.size or self._identity() != self._recorded_identity():
            return "the disk's file was replaced or resized"
        changed, known = self._disk.changed_ns(), self._words[self.CHANGED]
        if changed == known:
            return ""
        writing = self._words[self.WRITING]
        if not clean and writing and known < changed <= writing + _SLOWEST_WRITE_NS and self._clock_stayed():
            return ""  # the change is the tracked write that a kill interrupted; its bits were set before
        return "the disk's file was changed while it was not tracked"

    def intruded(self) -> bool:
        """Whether somebody else changed the file since the last write ended, as far as its times tell."""
        return self._disk.changed_ns() != self._words[self.CHANGED]

    def write_begins(self) -> None:
        now = self._clock.now()
        self._words[self.OFFSET] = max(0, int((now - self._clock.monotonic()) * 1e9))
        self._words[self.WRITING] = int(now * 1e9)

    def write_ended(self) -> None:
        self._words[self.CHANGED] = self._disk.changed_ns()
        self._words[self.WRITING] = 0

    def trust(self) -> None:
        """From now on the disk's file as it is belongs to this map."""
        for place, word in enumerate(self._identity()):
            self._words[self.IDENTITY + place] = word
        self._words[self.SIZE] = self._disk.size
        self._words[self.REACH] = max(self._words[self.REACH], self._disk.size)
        self.write_ended()

    def in_place(self) -> bool:
        return self._mapped.in_place()

    def flush(self) -> None:
        self._mapped.flush()

    def close(self) -> None:
        for bitmap in (self.active, self.frozen, self.copied):
            bitmap.release()
        self._mapped.close()

    def _identity(self) -> tuple[int, int]:
        digest = blake3(self._disk.identity()).digest(length=16)
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    def _recorded_identity(self) -> tuple[int, int]:
        return self._words[self.IDENTITY], self._words[self.IDENTITY + 1]

    def _clock_stayed(self) -> bool:
        offset = int((self._clock.now() - self._clock.monotonic()) * 1e9)
        return abs(offset - self._words[self.OFFSET]) < _SAME_CLOCK_NS


def create_disk_map(path: Path, size: int) -> None:
    """Knows of no change yet."""
    create_mapped(path, map_length(size))


def stage(path: Path, size: int, touched: Iterable[Run]) -> None:
    """Beside the map at `path`, for `publish`: what it says, for a disk of `size` bytes; `touched` is dirty as well.

    Without a map at `path` the disk is new and dirty from end to end. Durable before it returns. Raises OSError,
    MapUnusable.
    """
    beside = _staged(path)
    create_mapped(beside, map_length(size))
    bits = clusters(size)
    new = MappedFile(beside, map_length(size), writable=True)
    active, frozen, copied = _bitmaps(new, bits)
    if path.exists():
        old, old_size = _opened(path)
        old_active, old_frozen, old_copied = _bitmaps(old, clusters(old_size))
        active.merge(old_active)
        frozen.merge(old_frozen)
        for word in range(DiskMap.SIZE, DiskMap.OFFSET + 1):
            new.words[word] = old.words[word]
        for run in _tail(old_size, size, old.words[DiskMap.REACH]):
            active.set_run(run)
        for bitmap in (old_active, old_frozen, old_copied):
            bitmap.release()
        old.close()
    else:
        active.set_run(Run(0, bits))
    for run in touched:
        active.set_run(run)
    new.words[DiskMap.SIZE] = size
    new.words[DiskMap.REACH] = max(size, new.words[DiskMap.REACH])
    new.flush()
    for bitmap in (active, frozen, copied):
        bitmap.release()
    new.close()


def publish(path: Path) -> None:
    """Put what was staged in its place; repeatable."""
    if _staged(path).exists():
        _staged(path).rename(path)


def unstage(folder: Path) -> None:
    for path in folder.glob("*" + _STAGED):
        path.unlink(missing_ok=True)


def count_dirty(path: Path) -> int:
    """Clusters that are active or frozen in the map at `path`. Raises MapUnusable."""
    found, size = _opened(path)
    active, frozen, copied = _bitmaps(found, clusters(size))
    count = (active.number() | frozen.number()).bit_count()
    for bitmap in (active, frozen, copied):
        bitmap.release()
    found.close()
    return count


def _opened(path: Path) -> tuple[MappedFile, int]:
    """The map at `path`, to look at, and the size of its disk. Raises MapUnusable."""
    try:
        length = max(PAGE, path.stat().st_size)
    except OSError as error:
        raise MapUnusable(f"the change map cannot be opened ({error.strerror})") from error
    found = MappedFile(path, length, writable=False)
    size = found.words[DiskMap.SIZE]
    if map_length(size) != length:
        found.close()
        raise MapUnusable("a file of the change map has a wrong length")
    return found, size


def map_path(folder: Path, disk: str) -> Path:
    return folder / f"{safe_name(disk)}.map"


def map_length(size: int) -> int:
    return PAGE + 3 * padded(bytes_for(clusters(size)))


def _tail(old: int, new: int, reach: int) -> Iterable[Run]:
    """What differs at a disk's end after its size changed.

    Behind the old end of a disk that grew there are zeros now: the target knows that of clusters it never had, and must
    be told of those that once held something. The last cluster is cut, or is longer: looked at again.
    """
    if new == old:
        return
    if new < old:
        first, end = new // CLUSTER, clusters(new)
    else:
        first, end = old // CLUSTER, min(clusters(new), max(clusters(reach), clusters(old)))
    if end > first:
        yield Run(first, end - first)


def _bitmaps(mapped: MappedFile, bits: int) -> tuple[Bitmap, Bitmap, Bitmap]:
    step = padded(bytes_for(bits))
    active, frozen, copied = (Bitmap(mapped.slice(PAGE + part * step, step), bits) for part in range(3))
    return active, frozen, copied


def _staged(path: Path) -> Path:
    return path.with_name(path.name + _STAGED)
