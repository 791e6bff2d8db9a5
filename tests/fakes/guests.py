"""VMs of the embedded hypervisor with real guest processes."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hyperv_host_agent.hypervisors.base import Power
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.creation import NewDisk, create_machine
from hyperv_host_agent.hypervisors.embedded.machine_folder import folder_name
from hyperv_host_agent.hypervisors.embedded.records import RecordsReport, verify_records
from twinsite.units import MiB


def eventually(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


class Guests:
    def __init__(self, folder: Path) -> None:
        self.vms, self.run = folder / "vms", folder / "run"
        self.hypervisor = EmbeddedHypervisor(self.vms, self.run)

    def new(self, name: str = "web01", *, interval: float = 0.002, load: int = 2 * MiB) -> str:
        """Two disks, the second one busy; running."""
        disks = [NewDisk("vda", 2 * MiB), NewDisk("vdb", 6 * MiB)]
        vm_id = create_machine(self.hypervisor, name, disks, interval_seconds=interval, load_bytes_per_second=load)
        self.hypervisor.start(vm_id)
        return vm_id

    def folder(self, vm_id: str) -> Path:
        return self.vms / folder_name(vm_id)

    def log(self, vm_id: str) -> list[dict[str, Any]]:
        try:
            lines = (self.folder(vm_id) / "guest.log").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def acknowledged(self, vm_id: str) -> int:
        return max((entry["sequence"] for entry in self.log(vm_id) if entry["event"] == "record"), default=0)

    def boots(self, vm_id: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log(vm_id) if entry["event"] == "boot"]

    def writes_more(self, vm_id: str, records: int = 5) -> int:
        """Wait until the guest has written that many more; its newest record then."""
        goal = self.acknowledged(vm_id) + records
        eventually(lambda: self.acknowledged(vm_id) >= goal)
        return self.acknowledged(vm_id)

    def kill(self, vm_id: str) -> None:
        """SIGKILL to the guest, by its pid."""
        os.kill(self.pid(vm_id), signal.SIGKILL)
        eventually(lambda: self.hypervisor.machine(vm_id).power is Power.STOPPED)

    def pid(self, vm_id: str) -> int:
        return int(json.loads((self.folder(vm_id) / "guest.json").read_bytes())["pid"])

    def verify(self, vm_id: str) -> RecordsReport:
        """Of the disks as they are; stop, kill or freeze the guest first."""
        with contextlib.ExitStack() as stack:
            spec = self.hypervisor.machine(vm_id).spec
            return verify_records(
                [
                    stack.enter_context(contextlib.closing(self.hypervisor.open_disk(vm_id, disk.id)))
                    for disk in spec.disks
                ]
            )

    def stop_all(self) -> None:
        for state in self.hypervisor.machines():
            self.hypervisor.stop(state.spec.id, timeout=0)


@contextlib.contextmanager
def guests(folder: Path) -> Iterator[Guests]:
    made = Guests(folder)
    try:
        yield made
    finally:
        made.stop_all()
