"""What is known about changes to a VM's disks, in files mapped into memory beside them.

    state          one page of words: which boot of the host, closed cleanly or not, the pending point …
    <disk>.map     see `disk_map`
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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.base import Anchor
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.disk_map import DiskMap, count_dirty, create_disk_map, map_path, publish, stage, unstage
from hyperv_host_agent.changes.durable import replace, sync_folder
from hyperv_host_agent.changes.mapped_file import PAGE, MappedFile, MapUnusable, Text, create_mapped
from twinsite.clock import Clock
from twinsite.extents import Run

_TEXT: Final = 1024  # bytes of each of the two reasons, in the second half of the state's page


def this_boot() -> bytes:
    """Differs after every start of the host."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))


class ChangeMap:
    """The map of one VM, opened. Writing methods are for the holder of the owner lock."""

    _BOOT, _CLEAN, _ACTIVE_LOST, _FROZEN_LOST, _POINT_OPEN, _POINT_FAILED, _GENERATION = 1, 3, 4, 5, 6, 7, 8
    _PENDING, _PENDING_CYCLE, _PENDING_ID = 9, 10, 11  # words; boot and id have two

    def __init__(
        self, folder: Path, disks: Mapping[str, Disk], *, writable: bool, boot: bytes, clock: Clock | None = None
    ) -> None:
        """Raises MapUnusable."""
        self._folder, self._boot = folder, boot
        self.disks: dict[str, DiskMap] = {}
        self._state = MappedFile(folder / "state", PAGE, writable=writable)
        self._words = self._state.words
        self._active_doubt = Text(self._state.slice(PAGE - 2 * _TEXT, _TEXT))
        self._frozen_doubt = Text(self._state.slice(PAGE - _TEXT, _TEXT))
        try:
            for identifier, disk in disks.items():
                self.disks[identifier] = DiskMap(map_path(folder, identifier), disk, writable=writable, clock=clock)
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
            self.lose(doubt)
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
    def frozen_doubt(self) -> str:
        """Why the point's changes are lost; empty: they are not."""
        return (self._frozen_doubt.get() or "its changes were lost") if self.frozen_lost else ""

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

    def keep(self, anchor: Anchor) -> None:
        """Of the unusable map before this one."""
        self._set_anchor(anchor)

    def lose(self, doubt: str) -> None:
        """What changed since the anchor is not known, for this reason."""
        if not (self.active_lost and self._active_doubt.get()):
            self._active_doubt.set(doubt)
        self._words[self._ACTIVE_LOST] = 1

    def in_place(self) -> bool:
        """Whether the folder still holds just these files: nobody removed or replaced them while they were in use."""
        return self._state.in_place() and all(disk.in_place() for disk in self.disks.values())

    def fail_point(self) -> None:
        self._words[self._POINT_FAILED] = 1

    def anchor(self) -> Anchor | None:
        return read_anchor(self._folder)

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
        if self.active_lost and not self.frozen_lost:
            self._frozen_doubt.set(self._active_doubt.get())
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
        if self.frozen_lost:
            self.lose(self.frozen_doubt)
        for disk in self.disks.values():
            disk.active.merge(disk.frozen)
            disk.frozen.clear()
        self._words[self._FROZEN_LOST] = 0
        self._words[self._PENDING] = 0

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()
        self._active_doubt.release()
        self._frozen_doubt.release()
        self._state.close()

    def _set_anchor(self, anchor: Anchor) -> None:
        replace(self._folder / "anchor.json", json.dumps({"cycle": anchor.cycle, "id": anchor.id.hex()}).encode())

    def _finish_ack(self) -> None:
        for disk in self.disks.values():
            disk.frozen.clear()
        self._words[self._FROZEN_LOST] = 0
        self._words[self._PENDING] = 0


def create(folder: Path, disks: Mapping[str, Disk], *, boot: bytes, doubt: str = "") -> None:
    """A map that knows of no change yet, in place of whatever is there; the anchor of an unusable map is kept.

    `doubt`: why there is an unusable map, so that what changed since its anchor is LOST.
    """
    anchor = read_anchor(folder)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    create_mapped(new / "state", PAGE)
    for identifier, disk in disks.items():
        create_disk_map(map_path(new, identifier), disk.size)
    opened = ChangeMap(new, disks, writable=True, boot=boot)
    opened.trust()
    if doubt:
        opened.lose(doubt)
        if anchor is not None:
            opened.keep(anchor)
    opened.detach_cleanly()
    opened.close()
    if folder.is_dir():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    new.rename(folder)
    sync_folder(folder.parent)


def stage_sizes(folder: Path, sizes: Mapping[str, int], touched: Mapping[str, Iterable[Run]]) -> None:
    """Prepare the map in `folder` for disks of these sizes; see `disk_map.stage`. Until `publish_sizes` it stays.

    Raises OSError, MapUnusable.
    """
    for disk, size in sizes.items():
        stage(map_path(folder, disk), size, touched.get(disk, ()))
    sync_folder(folder)


def publish_sizes(folder: Path, disks: Iterable[str]) -> None:
    """What was staged for these disks is their map now, and there are no others. Repeatable; nobody else writes."""
    kept = {map_path(folder, disk) for disk in disks}
    for path in kept:
        publish(path)
    for path in set(folder.glob("*.map")) - kept:
        path.unlink()
    sync_folder(folder)


def unstage_sizes(folder: Path) -> None:
    """Nothing is staged any more. Repeatable."""
    unstage(folder)


def dirty_clusters(folder: Path) -> int:
    """Known dirty and not acked, whatever the disks are; 0 when there is no map to look at."""
    try:
        return sum(count_dirty(path) for path in folder.glob("*.map"))
    except MapUnusable:
        return 0  # it changes in this moment, or is lost; who opens the next point says so


def read_anchor(folder: Path) -> Anchor | None:
    """What the last ack named, whatever became of the rest of the map."""
    try:
        words = json.loads((folder / "anchor.json").read_bytes())
        return Anchor(words["cycle"], bytes.fromhex(words["id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # an anchor nobody can read is none: everything is compared
