"""Disks of a VM that grow, shrink, come and go, while it runs or is stopped. A change is made whole or not at all.

What a change needs is gathered in the folder `geometry.new` of the VM, and decided by a rename to `geometry`. Whoever
has the disks when a process ended in between finishes it (`recover`). The map of changes goes along: nothing that is
known of other disks is lost.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from hyperv_host_agent.changes.change_map import this_boot
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import descriptor, safe_name, sync_folder
from hyperv_host_agent.changes.durable import replace as replace_file
from hyperv_host_agent.changes.tracked_disks import TrackedDisks, forget_reshape, reshape_map
from hyperv_host_agent.hypervisors.embedded import overlay
from hyperv_host_agent.hypervisors.embedded.machine_folder import DiskFile, MachineFolder, open_file
from hyperv_host_agent.hypervisors.embedded.records import SECTOR, encode_label, label_place, moved, read_label
from twinsite.errors import InvalidInput
from twinsite.extents import CLUSTER, Run, clusters
from twinsite.units import MiB, size

SMALLEST: Final = 1 * MiB
Answer = TypeVar("Answer")
_DECIDED: Final = "geometry"
_GATHERED: Final = "geometry.new"
_CHANGE: Final = "change.json"


class BadDiskChange(InvalidInput):
    public = "disk {error.disk} cannot be changed: {error.problem}"
    still_works = "the VM and its disks are as they were"

    def __init__(self, disk: str, problem: str) -> None:
        self.disk, self.problem = disk, problem


@dataclass(frozen=True, slots=True)
class DiskChange:
    """Of one disk of a VM; `disk` is its id, for `add` a new one. Sizes in bytes."""

    kind: Literal["add", "resize", "remove"]
    disk: str
    size: int = 0
    name: str = ""  # of a disk that is added


@dataclass(frozen=True, slots=True)
class _Write:
    """What the guest keeps at a disk's end and takes along when the end moves."""

    disk: str
    offset: int
    data: bytes

    @property
    def run(self) -> Run:
        first = self.offset // CLUSTER
        return Run(first, clusters(self.offset + len(self.data)) - first)


@dataclass(frozen=True, slots=True)
class _Plan:
    disks: tuple[DiskFile, ...]  # of the VM afterwards
    writes: tuple[_Write, ...]


def check(folder: MachineFolder, change: DiskChange) -> None:
    """Raises BadDiskChange when the change cannot be made to the VM as it is."""
    _plan(folder, change)


def is_made(folder: MachineFolder, change: DiskChange) -> bool:
    sizes = {disk.id: disk.size for disk in folder.disks}
    return change.disk not in sizes if change.kind == "remove" else sizes.get(change.disk) == change.size


def apply(folder: MachineFolder, tracked: TrackedDisks, change: DiskChange) -> MachineFolder:
    """Make the change to the disks that `tracked` has, whose guest writes nothing meanwhile. The VM as it is then.

    Raises BadDiskChange, and OSError when it cannot be made; if `decided` says so then, the caller ends its use of the
    disks, and the next one finishes the change.
    """
    plan = _plan(folder, change)
    try:
        _gather(folder, plan)
        tracked.reshape(
            {disk.id: disk.size for disk in plan.disks},
            {write.disk: [other.run for other in plan.writes if other.disk == write.disk] for write in plan.writes},
            decide=lambda: _decide(folder.path),
            swap=lambda: _finish(folder.path),
        )
    except OSError:
        if not decided(folder.path):
            _forget(folder.path)
        raise
    return MachineFolder.open(folder.path, folder.spec.id)


def decided(path: Path) -> bool:
    """Whether the VM in this folder has a change that is decided and not finished."""
    return (path / _DECIDED).exists()


def recover(path: Path) -> None:
    """Finish what was decided, forget what was not. The caller holds the owner lock. Raises OSError, MachineFailed."""
    if decided(path):
        reshape_map(path, [disk.id for disk in _read(path)[0]])
        for disk in _finish(path).values():
            disk.close()
    if (path / _GATHERED).exists():
        _forget(path)


def _plan(folder: MachineFolder, change: DiskChange) -> _Plan:
    present = {disk.id: disk for disk in folder.disks}
    if change.kind == "add":
        return _Plan((*folder.disks, _added(folder, change)), ())
    if change.disk not in present:
        raise BadDiskChange(change.disk, "the VM has no such disk")
    disk = present[change.disk]
    if change.kind == "remove":
        if len(present) == 1:
            raise BadDiskChange(disk.name, "it is the VM's only one")
        if _with(folder, disk, read_label) is not None:
            raise BadDiskChange(disk.name, "the guest keeps its records on it")
        return _Plan(tuple(other for other in folder.disks if other is not disk), ())
    _check_size(disk.name, change.size)
    new = replace(disk, size=change.size)
    disks = tuple(new if other is disk else other for other in folder.disks)
    return _Plan(disks, _with(folder, disk, lambda opened: _moves(disk, opened, change.size)))


def _added(folder: MachineFolder, change: DiskChange) -> DiskFile:
    if not change.name or any(disk.name == change.name for disk in folder.disks):
        raise BadDiskChange(change.name, "the VM has a disk of that name")
    if any(disk.id == change.disk for disk in folder.disks):
        raise BadDiskChange(change.name, "the VM has a disk of that id")
    _check_size(change.name, change.size)
    return DiskFile(change.disk, change.name, change.size, f"{safe_name(change.disk)}.raw")


def _check_size(name: str, wanted: int) -> None:
    if wanted < SMALLEST:
        raise BadDiskChange(name, f"{wanted} bytes are less than {size(SMALLEST)}")
    if wanted % SECTOR:
        raise BadDiskChange(name, f"{wanted} bytes are not a number of sectors")


def _moves(disk: DiskFile, opened: Disk, wanted: int) -> tuple[_Write, ...]:
    label = read_label(opened)
    if label is None or wanted == disk.size:
        return ()
    try:
        new = moved(label, wanted)
    except ValueError as error:
        raise BadDiskChange(disk.name, str(error)) from None
    writes = [_Write(disk.id, label_place(wanted), encode_label(new))]
    if new.ring != label.ring:
        writes.append(_Write(disk.id, new.ring[0], opened.read(*label.ring)))
    return tuple(writes)


def _with(folder: MachineFolder, disk: DiskFile, look: Callable[[Disk], Answer]) -> Answer:
    try:
        with contextlib.closing(folder.open_disk(disk.id, False)) as opened:
            return look(opened)
    except OSError as error:
        raise BadDiskChange(disk.name, str(error)) from error


def _gather(folder: MachineFolder, plan: _Plan) -> None:
    """All that may fail for want of space or rights, where it changes nothing yet; durable."""
    new = folder.path / _GATHERED
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    writes: list[dict[str, Any]] = []
    for number, write in enumerate(plan.writes):
        replace_file(new / f"{number}.data", write.data)
        writes.append({"disk": write.disk, "offset": write.offset, "data": f"{number}.data"})
    words = {"disks": [asdict(disk) for disk in plan.disks], "writes": writes}
    replace_file(new / _CHANGE, json.dumps(words, indent=1).encode())
    before = {disk.id: disk for disk in folder.disks}
    for disk in plan.disks:
        if disk.layers and before[disk.id].size != disk.size:
            layers = [Path(layer) for layer in disk.layers]
            overlay.stage_resize(folder.path / disk.file, disk.size, layers, boot=this_boot())


def _decide(path: Path) -> None:
    (path / _GATHERED).rename(path / _DECIDED)
    sync_folder(path)


def _read(path: Path) -> tuple[tuple[DiskFile, ...], tuple[_Write, ...]]:
    words = json.loads((path / _DECIDED / _CHANGE).read_bytes())
    return (
        tuple(DiskFile(**disk | {"layers": tuple(disk["layers"])}) for disk in words["disks"]),
        tuple(
            _Write(write["disk"], write["offset"], (path / _DECIDED / write["data"]).read_bytes())
            for write in words["writes"]
        ),
    )


def _finish(path: Path) -> dict[str, Disk]:
    """Of what was decided; the disks, opened to be written. Repeatable from any point on."""
    disks, writes = _read(path)
    folder = MachineFolder.open(path, path.name)
    for disk in disks:
        _shape(path, disk, [write for write in writes if write.disk == disk.id])
    folder.rewrite(disks)
    names = {disk.file for disk in disks}
    for gone in (disk for disk in folder.disks if disk.file not in names):
        (path / gone.file).unlink(missing_ok=True)
        if gone.layers:
            overlay.present_path(path / gone.file).unlink(missing_ok=True)
    opened: dict[str, Disk] = {}
    try:
        changed = MachineFolder.open(path, folder.spec.id)
        for disk in changed.disks:
            opened[disk.id] = changed.open_disk(disk.id, True)
        (path / _DECIDED).rename(path / _GATHERED)
        _forget(path)
    except OSError:
        for one in opened.values():
            one.close()
        raise
    return opened


def _shape(path: Path, disk: DiskFile, writes: list[_Write]) -> None:
    place = path / disk.file
    if disk.layers:
        overlay.publish_resize(place)
    elif not writes and place.exists() and place.stat().st_size == disk.size:
        return  # it stays as it is, its file's times too
    with descriptor(place, os.O_RDWR | os.O_CREAT) as file:
        if os.fstat(file).st_size != disk.size:
            os.ftruncate(file, disk.size)
            os.fsync(file)
    if writes:
        with contextlib.closing(open_file(path, disk, writable=True)) as opened:
            for write in writes:
                opened.write(write.offset, write.data)
            opened.sync()


def _forget(path: Path) -> None:
    """What was gathered and not decided, or is finished."""
    forget_reshape(path)
    for top in path.glob("*.top"):
        overlay.forget_resize(top)
    shutil.rmtree(path / _GATHERED, ignore_errors=True)
    sync_folder(path)
