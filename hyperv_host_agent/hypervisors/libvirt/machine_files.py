"""The folder of a VM this host defined: overlays, firmware variables, what its serial ports write."""

import os
import shutil
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.durable import descriptor, sync_folder
from hyperv_host_agent.hypervisors.base import MachineFailed, Native
from hyperv_host_agent.hypervisors.libvirt.images import create_overlay
from hyperv_host_agent.store.base import AttachedDisk

NVRAM: Final = "nvram"  # the name of the firmware's variables among a description's files
_PASSABLE: Final = 0o711  # QEMU runs as another user and must come through


class MachineFiles:
    """`vms` holds one folder a VM, named for libvirt's id of it."""

    def __init__(self, vms: Path) -> None:
        self._vms = vms
        vms.mkdir(parents=True, exist_ok=True)
        vms.chmod(_PASSABLE)

    def folder(self, uuid: str) -> Path:
        return self._vms / uuid

    def disk(self, uuid: str, target: str) -> Path:
        return self.folder(uuid) / f"{target}.qcow2"

    def nvram(self, uuid: str, native: Native | None) -> Path | None:
        """Where `create` puts the firmware's variables, if the description has some."""
        return self.folder(uuid) / "nvram.fd" if native is not None and dict(native.files).get(NVRAM) else None

    def create(self, vm_id: str, uuid: str, disks: tuple[AttachedDisk, ...], native: Native | None) -> None:
        """Anew; what was left of a VM that was never defined goes. Raises MachineFailed, with nothing left behind."""
        folder = self.folder(uuid)
        for disk in disks:
            if not disk.name or "/" in disk.name or not disk.layers:
                raise MachineFailed(vm_id, f"its disk {disk.id} has no usable name or no content")
        self.remove(uuid)
        try:
            folder.mkdir(mode=_PASSABLE)
            for disk in disks:
                create_overlay(self.disk(uuid, disk.name), disk.size, disk.layers[-1])
            variables = self.nvram(uuid, native)
            if variables is not None and native is not None:
                with descriptor(variables, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                    os.write(file, dict(native.files)[NVRAM])
                    os.fsync(file)
            sync_folder(self._vms)
        except OSError as error:
            self.remove(uuid)
            raise MachineFailed(vm_id, f"its disks cannot be made: {error}") from error

    def remove(self, uuid: str) -> None:
        shutil.rmtree(self.folder(uuid), ignore_errors=True)
