"""Which bitmaps a VM's disks really have: QEMU's word, or the images' own while it does not run."""

import enum
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.hypervisors.libvirt import tree
from hyperv_host_agent.hypervisors.libvirt.describe import Description, described
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.tracking.memory import PREFIX, Marked

_TOOL_SECONDS: Final = 60.0


class DiskTracking(enum.Enum):
    OK = "ok"
    NEW = "new"  # it came after the anchor
    LOST = "lost"  # it was part of the anchor, and its bitmap is gone or not to be trusted
    UNTRACKED = "untracked"  # its format holds no bitmap


@dataclass(frozen=True, slots=True)
class Bitmap:
    sound: bool  # not left behind by a crash
    dirty: int  # bytes; 0 where nobody runs who counts


@dataclass(frozen=True, slots=True)
class TrackedDisk:
    id: str
    target: str
    path: Path
    format: str
    size: int  # bytes
    untracked: str = ""  # why it holds no bitmap, a phrase; empty: it does
    node: str = ""  # QEMU's name of it; empty while it does not run
    bitmaps: Mapping[str, Bitmap] = field(default_factory=dict)  # that are ours

    def tracking(self, anchor: Marked) -> DiskTracking:
        if self.untracked:
            return DiskTracking.UNTRACKED
        if self.id not in anchor.sizes:
            return DiskTracking.NEW
        bitmap = self.bitmaps.get(anchor.checkpoint)
        return DiskTracking.OK if bitmap is not None and bitmap.sound else DiskTracking.LOST


def of_running(domain: Domain) -> list[TrackedDisk]:
    """Raises the errors of `Domain`, BadDescription."""
    root = tree.parse(domain.xml())
    numbers = {
        tree.get(disk.find("target"), "dev"): tree.get(disk.find("source"), "index")
        for disk in tree.devices(root, "disk")
    }
    answer = domain.qmp({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
    nodes: dict[str, dict[str, Any]] = {node["node-name"]: node for node in answer}
    found = []
    for disk in described(root).replicated():
        name = f"libvirt-{numbers[disk.target]}-format"
        node = nodes.get(name, {})
        image = node.get("image", {})
        bitmaps = {
            bitmap["name"]: Bitmap(not bitmap.get("inconsistent"), bitmap["count"])
            for bitmap in node.get("dirty-bitmaps", ())
            if bitmap.get("name", "").startswith(PREFIX) and bitmap["persistent"]
        }
        path = disk.path or Path()
        untracked = _untracked(disk.target, disk.format, image)
        size = int(image.get("virtual-size", 0))
        found.append(TrackedDisk(disk.id, disk.target, path, disk.format, size, untracked, name, bitmaps))
    return found


def of_stopped(description: Description) -> list[TrackedDisk]:
    """Raises OSError."""
    found = []
    for disk in description.replicated():
        path = disk.path or Path()
        image = json.loads(_tool("qemu-img", "info", "-U", "--output=json", "-f", disk.format, str(path)))
        said = image.get("format-specific", {}).get("data", {}).get("bitmaps", ())
        bitmaps = {
            bitmap["name"]: Bitmap("in-use" not in bitmap["flags"], 0)
            for bitmap in said
            if bitmap["name"].startswith(PREFIX)
        }
        untracked = _untracked(disk.target, disk.format, image)
        size = int(image["virtual-size"])
        found.append(TrackedDisk(disk.id, disk.target, path, disk.format, size, untracked, "", bitmaps))
    return found


def add(disk: TrackedDisk, name: str) -> None:
    """To the image of a VM that does not run; QEMU's own lock keeps it from one that does. Raises OSError."""
    _tool("qemu-img", "bitmap", "--add", "-g", "65536", "-f", disk.format, str(disk.path), name)


def remove(domain: Domain, disk: TrackedDisk, name: str) -> None:
    """Raises OSError, and the errors of `Domain`."""
    if disk.node:
        domain.qmp({"execute": "block-dirty-bitmap-remove", "arguments": {"node": disk.node, "name": name}})
    else:
        _tool("qemu-img", "bitmap", "--remove", "-f", disk.format, str(disk.path), name)


def strays(disks: list[TrackedDisk], needed: set[str]) -> Iterator[tuple[TrackedDisk, str]]:
    """Ours, of no more use: of no checkpoint that is needed, or broken."""
    for disk in disks:
        for name, bitmap in disk.bitmaps.items():
            if name not in needed or not bitmap.sound:
                yield disk, name


def _untracked(target: str, form: str, image: Mapping[str, Any]) -> str:
    if form != "qcow2":
        return f"{target} is {form}: what changed on it is not known, so all of it is read and compared each time"
    if image.get("format-specific", {}).get("data", {}).get("compat") == "0.10":
        return f"{target} is qcow2 of version 2, without room for change tracking: all of it is read and compared"
    return ""


def _tool(*command: str) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_TOOL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise OSError(str(error)) from error
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip() or f"{command[0]} failed")
    return done.stdout
