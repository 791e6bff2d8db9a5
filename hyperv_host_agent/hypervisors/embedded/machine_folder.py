"""A VM as a folder.

machine.json     what it is: id, name, CPUs, memory, NICs, disks, purpose
<disk>.raw       a flat disk, or <disk>.top and <disk>.present: an overlay on a recovery point
geometry/        a change of its disks that is not finished, see `geometry`
fence.json       another host owns it in this term: it may not start
stopped          it was stopped on purpose and does not start with its host
guest.json       the guest process: pid, when it started, its control socket; left behind when it was killed
guest.log        what the guest did, as JSON lines
owner.lock, tracking/    see `hyperv_host_agent.changes.tracked_disks`
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.changes.change_map import this_boot
from hyperv_host_agent.changes.disk import Disk, RawDisk
from hyperv_host_agent.changes.durable import replace, safe_name, sync_folder
from hyperv_host_agent.hypervisors.base import MachineFailed, MachineMissing, MachineSpec, Purpose
from hyperv_host_agent.hypervisors.embedded.overlay import OverlayDisk
from hyperv_host_agent.replication.cycle import DiskGeometry

FORMAT: Final = 1
_PLAIN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class DiskFile:
    """How a disk is stored: `layers` empty means flat."""

    id: str
    name: str
    size: int
    file: str  # inside the folder
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestProcess:
    pid: int
    started: int  # clock ticks since the host's boot
    boot: str
    socket: str

    def alive(self) -> bool:
        """Whether that very process runs; a pid that another process has now, or a zombie, is not it."""
        return self.boot == this_boot().hex() and started(self.pid) == self.started


def started(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; None: there is none, or it is dead and not reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def open_file(folder: Path, known: DiskFile, *, writable: bool) -> Disk:
    """Raises OSError."""
    path = folder / known.file
    opened: Disk
    if known.layers:
        layers = [Path(layer) for layer in known.layers]
        opened = OverlayDisk(path, layers, writable=writable, boot=this_boot())
    else:
        opened = RawDisk(path, writable=writable)
    if opened.size != known.size:
        opened.close()
        raise OSError(f"{path} has {opened.size} bytes, its machine.json says {known.size}")
    return opened


def folder_name(vm_id: str) -> str:
    return vm_id if _PLAIN_ID.fullmatch(vm_id) else f"x-{safe_name(vm_id)}"


class MachineFolder:
    def __init__(self, path: Path, words: dict[str, Any]) -> None:
        self.path = path
        self.purpose = Purpose(words["purpose"])
        self._autostart = bool(words["autostart"])
        self.disks = tuple(
            DiskFile(disk["id"], disk["name"], disk["size"], disk["file"], tuple(disk["layers"]))
            for disk in words["disks"]
        )
        self.spec = MachineSpec(
            id=words["id"],
            name=words["name"],
            cpus=words["cpus"],
            memory_bytes=words["memory_bytes"],
            disks=tuple(DiskGeometry(disk.id, disk.size, disk.name) for disk in self.disks),
            nics=tuple((mac, network) for mac, network in words["nics"]),
        )

    @classmethod
    def open(cls, path: Path, vm_id: str) -> "MachineFolder":
        """Raises MachineMissing; MachineFailed when its description is unreadable."""
        try:
            text = (path / "machine.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise MachineMissing(vm_id) from None
        try:
            words = json.loads(text)
            if words["format"] != FORMAT or any("/" in disk["file"] for disk in words["disks"]):
                raise MachineFailed(vm_id, "its machine.json is of another format")
            return cls(path, words)
        except (ValueError, KeyError, TypeError) as error:
            raise MachineFailed(vm_id, f"its machine.json is unreadable: {error!r}") from error

    @staticmethod
    def write(path: Path, spec: MachineSpec, disks: tuple[DiskFile, ...], purpose: Purpose, *, autostart: bool) -> None:
        words = {
            "format": FORMAT,
            "id": spec.id,
            "name": spec.name,
            "purpose": purpose.value,
            "autostart": autostart,
            "cpus": spec.cpus,
            "memory_bytes": spec.memory_bytes,
            "nics": [list(nic) for nic in spec.nics],
            "disks": [
                {"id": disk.id, "name": disk.name, "size": disk.size, "file": disk.file, "layers": list(disk.layers)}
                for disk in disks
            ],
        }
        replace(path / "machine.json", json.dumps(words, indent=1).encode())

    def rewrite(self, disks: tuple[DiskFile, ...]) -> None:
        """The VM has these disks now; all else stays. Atomic and durable."""
        self.write(self.path, self.spec, disks, self.purpose, autostart=self._autostart)

    def disk_file(self, disk: str) -> DiskFile:
        """Raises MachineFailed."""
        for known in self.disks:
            if known.id == disk:
                return known
        raise MachineFailed(self.spec.id, f"it has no disk {disk}")

    def open_disk(self, disk: str, writable: bool) -> Disk:
        """Raises OSError."""
        return open_file(self.path, self.disk_file(disk), writable=writable)

    def fenced(self) -> int | None:
        """The term in which another host owns it; an unreadable mark is one of a term nobody knows, 0."""
        try:
            return int(json.loads((self.path / "fence.json").read_bytes())["term"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return 0

    def autostart(self) -> bool:
        """Whether it is to run whenever its host does."""
        return self._autostart and not (self.path / "stopped").exists() and self.fenced() is None

    def stopped_on_purpose(self, stopped: bool) -> None:
        """Durable before it returns."""
        if stopped:
            (self.path / "stopped").touch()
        else:
            (self.path / "stopped").unlink(missing_ok=True)
        sync_folder(self.path)

    def fence(self, term: int) -> None:
        replace(self.path / "fence.json", json.dumps({"term": max(term, self.fenced() or 0)}).encode())

    def unfence(self) -> None:
        (self.path / "fence.json").unlink(missing_ok=True)
        sync_folder(self.path)

    def guest(self) -> GuestProcess | None:
        """The guest that was started last and did not end in an orderly way: it runs, or was killed."""
        try:
            return GuestProcess(**json.loads((self.path / "guest.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise MachineFailed(self.spec.id, f"its guest.json is unreadable: {error!r}") from error

    def guest_starts(self, socket: Path) -> bytes | None:
        """The calling process is the guest. What is to be handed to `guest_failed` if it cannot start."""
        path = self.path / "guest.json"
        before = path.read_bytes() if path.exists() else None
        pid = os.getpid()
        words = {"pid": pid, "started": started(pid), "boot": this_boot().hex(), "socket": str(socket)}
        beside = self.path / "guest.json.new"
        beside.write_text(json.dumps(words))
        beside.rename(path)
        return before

    def guest_failed(self, before: bytes | None) -> None:
        """It wrote nothing: the guest before it is the last one still."""
        if before is None:
            self.guest_ended()
        else:
            (self.path / "guest.json").write_bytes(before)

    def guest_ended(self) -> None:
        (self.path / "guest.json").unlink(missing_ok=True)
