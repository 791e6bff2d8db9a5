"""What is known about changes to a VM's disks, in files mapped into memory beside them.

    state          one page of words: which boot of the host, closed cleanly or not, the pending point …
    <disk>.map     one page of words about the disk file, then three bitmaps: active, frozen, copied
    anchor.json    the point the target confirmed

`active` collects what the guest writes now, `frozen` what it wrote before the pending point, `copied` what was saved
for the open point before it was overwritten. Mapped memory belongs to the kernel: a process killed at any instruction
loses none of it. A host that crashes may lose any page of it, so the map remembers the boot it was written in and is
believed in another boot only if it was closed cleanly; and it remembers when each disk file was last changed, so that
a file that was edited, replaced or restored while nobody tracked it is noticed. What is doubtful is LOST, never clean.

One process at a time writes: whoever holds the owner lock (see `tracked_disks`). Others may look.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from blake3 import blake3

from hyperv_host_agent.changes.base import Anchor
from hyperv_host_agent.changes.bitmap import Bitmap, bytes_for
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import replace, safe_name, sync_folder
from hyperv_host_agent.changes.mapped_file import PAGE, MappedFile, MapUnusable, create_mapped, padded
from twinsite.extents import clusters

# A write that a kill interrupted has changed the file no later than this after it began.
_SLOWEST_WRITE_NS: Final = 1_000_000_000


def this_boot() -> bytes:
    """Differs after every start of the host."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


class DiskMap:
    """The changes of one disk."""

    _SIZE, _IDENTITY, _CHANGED, _WRITING = 1, 2, 4, 5  # words; the identity has two

    def __init__(self, path: Path, disk: Disk, *, writable: bool) -> None:
        bits = clusters(disk.size)
        self._mapped = MappedFile(path, map_length(disk.size), writable=writable)
        self._words = self._mapped.words
        self._disk = disk
        step = padded(bytes_for(bits))
        self.active, self.frozen, self.copied = (
            Bitmap(self._mapped.slice(PAGE + part * step, step), bits) for part in range(3)
        )

    def doubt(self, *, clean: bool) -> str:
        """Why the disk's file may hold changes the map does not know; empty: it does not."""
        if self._words[self._SIZE] != self._disk.size or self._identity() != self._recorded_identity():
            return "the disk's file was replaced or resized"
        changed, known = self._disk.changed_ns(), self._words[self._CHANGED]
        if changed == known:
            return ""
        writing = self._words[self._WRITING]
        if not clean and writing and known < changed <= writing + _SLOWEST_WRITE_NS:
            return ""  # the change is the tracked write that a kill interrupted; its bits were set before
        return "the disk's file was changed while it was not tracked"

    def write_begins(self, now: float) -> None:
        self._words[self._WRITING] = int(now * 1e9)

    def write_ended(self) -> None:
        self._words[self._CHANGED] = self._disk.changed_ns()
        self._words[self._WRITING] = 0

    def trust(self) -> None:
        """From now on the disk's file as it is belongs to this map."""
        for place, word in enumerate(self._identity()):
            self._words[self._IDENTITY + place] = word
        self._words[self._SIZE] = self._disk.size
        self.write_ended()

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
        return self._words[self._IDENTITY], self._words[self._IDENTITY + 1]


class ChangeMap:
    """The map of one VM, opened. Writing methods are for the holder of the owner lock."""

    _BOOT, _CLEAN, _ACTIVE_LOST, _FROZEN_LOST, _POINT_OPEN, _POINT_FAILED, _GENERATION = 1, 3, 4, 5, 6, 7, 8
    _PENDING, _PENDING_CYCLE, _PENDING_ID = 9, 10, 11  # words; boot and id have two

    def __init__(self, folder: Path, disks: Mapping[str, Disk], *, writable: bool, boot: bytes) -> None:
        """Raises MapUnusable."""
        self._folder, self._boot = folder, boot
        self.disks: dict[str, DiskMap] = {}
        self._state = MappedFile(folder / "state", PAGE, writable=writable)
        self._words = self._state.words
        try:
            for identifier, disk in disks.items():
                self.disks[identifier] = DiskMap(map_path(folder, identifier), disk, writable=writable)
        except MapUnusable:
            self.close()
            raise

    def doubt(self) -> str:
        """Why the map may miss changes made while nobody had it open; empty: it does not."""
        clean = bool(self._words[self._CLEAN])
        if not clean and self._words.get_16_bytes(self._BOOT) != self._boot:
            return "the host stopped while the VM ran"
        return next(filter(None, (disk.doubt(clean=clean) for disk in self.disks.values())), "")

    def trust(self) -> None:
        """From now on the disks' files as they are belong to this map."""
        for disk in self.disks.values():
            disk.trust()

    def attach(self) -> str:
        """Begin to write: what is doubtful becomes LOST, durably, before the first write. Says why it is doubtful."""
        doubt = self.doubt()
        if doubt:
            self._words[self._ACTIVE_LOST] = 1
            self._words[self._POINT_FAILED] = 1
        self._words[self._CLEAN] = 0
        self._words.set_16_bytes(self._BOOT, self._boot)
        self._state.flush()
        self.trust()
        pending = self.pending()
        if pending is not None and pending == self.anchor():
            self._finish_ack()
        return doubt

    def detach_cleanly(self) -> None:
        """Everything is durable and whole; call after the disks were synced, instead of leaving by a crash."""
        for disk in self.disks.values():
            disk.write_ended()
            disk.flush()
        self._state.flush()
        self._words[self._CLEAN] = 1
        self._state.flush()

    # Points.

    @property
    def active_lost(self) -> bool:
        return bool(self._words[self._ACTIVE_LOST])

    @property
    def frozen_lost(self) -> bool:
        return bool(self._words[self._FROZEN_LOST])

    @property
    def point_open(self) -> bool:
        return bool(self._words[self._POINT_OPEN])

    @property
    def point_failed(self) -> bool:
        return bool(self._words[self._POINT_FAILED])

    @property
    def generation(self) -> int:
        """Rises with every point that is opened."""
        return self._words[self._GENERATION]

    def inherit(self, anchor: Anchor) -> None:
        """The anchor of the unusable map before this one; what changed since then is not known."""
        self.lose()
        self._set_anchor(anchor)

    def lose(self) -> None:
        """What changed since the anchor is not known."""
        self._words[self._ACTIVE_LOST] = 1

    def fail_point(self) -> None:
        self._words[self._POINT_FAILED] = 1

    def anchor(self) -> Anchor | None:
        return _read_anchor(self._folder / "anchor.json")

    def pending(self) -> Anchor | None:
        """The point that was opened and is neither acked nor discarded."""
        if not self._words[self._PENDING]:
            return None
        return Anchor(self._words[self._PENDING_CYCLE], self._words.get_16_bytes(self._PENDING_ID))

    def freeze(self, point: Anchor) -> None:
        """What is active belongs to `point` now, with what an earlier point froze; no guest write runs meanwhile."""
        self.close_point()
        # A kill in between leaves frozen bits without a pending point; the next point takes them in.
        self._words[self._PENDING] = 0
        self._words[self._PENDING_CYCLE] = point.cycle
        self._words.set_16_bytes(self._PENDING_ID, point.id)
        self._words[self._PENDING] = 1
        # Every bit is set in its new place before it goes from the old one; a kill in between leaves it in both.
        self._words[self._FROZEN_LOST] |= self._words[self._ACTIVE_LOST]
        self._words[self._ACTIVE_LOST] = 0
        for disk in self.disks.values():
            disk.frozen.merge(disk.active)
            disk.active.clear()
            disk.copied.clear()
        self._words[self._GENERATION] += 1
        self._words[self._POINT_FAILED] = 0
        self._words[self._POINT_OPEN] = 1

    def close_point(self) -> None:
        self._words[self._POINT_OPEN] = 0

    def ack(self, point: Anchor) -> None:
        """Of the pending point; naming any other changes nothing."""
        if self.pending() != point:
            return
        # The anchor first: bits that outlive it only cost a comparison, an anchor that outlives its bits loses changes.
        self._set_anchor(point)
        self._finish_ack()

    def discard(self) -> None:
        self._words[self._ACTIVE_LOST] |= self._words[self._FROZEN_LOST]
        for disk in self.disks.values():
            disk.active.merge(disk.frozen)
            disk.frozen.clear()
        self._words[self._FROZEN_LOST] = 0
        self._words[self._PENDING] = 0

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()
        self._state.close()

    def _set_anchor(self, anchor: Anchor) -> None:
        replace(self._folder / "anchor.json", json.dumps({"cycle": anchor.cycle, "id": anchor.id.hex()}).encode())

    def _finish_ack(self) -> None:
        for disk in self.disks.values():
            disk.frozen.clear()
        self._words[self._FROZEN_LOST] = 0
        self._words[self._PENDING] = 0


def create(folder: Path, disks: Mapping[str, Disk], *, boot: bytes) -> None:
    """A map that knows of no change yet, in place of whatever is there; the anchor of an unusable map is kept, LOST."""
    anchor = _read_anchor(folder / "anchor.json")
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    create_mapped(new / "state", PAGE)
    for identifier, disk in disks.items():
        create_mapped(map_path(new, identifier), map_length(disk.size))
    opened = ChangeMap(new, disks, writable=True, boot=boot)
    opened.trust()
    if anchor is not None:
        opened.inherit(anchor)
    opened.detach_cleanly()
    opened.close()
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    sync_folder(folder.parent)


def map_path(folder: Path, disk: str) -> Path:
    return folder / f"{safe_name(disk)}.map"


def map_length(size: int) -> int:
    return PAGE + 3 * padded(bytes_for(clusters(size)))


def _read_anchor(path: Path) -> Anchor | None:
    try:
        words = json.loads(path.read_bytes())
        return Anchor(words["cycle"], bytes.fromhex(words["id"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # an anchor nobody can read is none: everything is compared
