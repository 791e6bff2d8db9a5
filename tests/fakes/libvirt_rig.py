"""The libvirt backend on a libvirt host of the test."""

import tempfile
from pathlib import Path
from typing import Any

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.hypervisor import LibvirtHypervisor
from hyperv_host_agent.hypervisors.libvirt.tracking.sources import LibvirtSources
from tests.contracts.hypervisor import Rig
from tests.fakes.layers import chain
from tests.fakes.libvirt_host import IdleGuest


class LibvirtRig(Rig):
    stop_seconds = 1.0  # a guest without a system never answers

    def __init__(self, host: LibvirtHost, connection: Connection, folder: Path, **settings: Any) -> None:
        self.host, self.folder = host, folder
        self.connection = connection
        self.sources = LibvirtSources(connection, folder / "state" / "tracking", folder / "scratch")
        self.hypervisor = self.libvirt = LibvirtHypervisor(
            connection, folder / "vms", folder / "state", source=self.sources, **settings
        )

    def add_ordinary(self, name: str) -> str:
        guest = IdleGuest.define(self.host, name)
        self.host.virsh("autostart", name)
        return guest.uuid

    def layers(self, size: int) -> tuple[Path, ...]:
        return chain(Path(tempfile.mkdtemp(dir=self.folder)), [bytes(size)])

    def close(self) -> None:
        for state in self.hypervisor.machines():
            self.hypervisor.stop(state.spec.id, timeout=0)
