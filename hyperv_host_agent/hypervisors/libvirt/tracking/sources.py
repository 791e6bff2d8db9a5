"""The change sources of a host's VMs: one of each VM, however often it is asked for."""

import threading
from pathlib import Path

from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.hypervisor import LibvirtHypervisor
from hyperv_host_agent.hypervisors.libvirt.identity import libvirt_uuid
from hyperv_host_agent.hypervisors.libvirt.tracking.freezing import FREEZE_SECONDS, HOLD_SECONDS, GuardProcess
from hyperv_host_agent.hypervisors.libvirt.tracking.places import Places
from hyperv_host_agent.hypervisors.libvirt.tracking.source import LibvirtChangeSource


class LibvirtSources:
    """Thread-safe."""

    def __init__(self, connection: Connection, state: Path, scratch: Path) -> None:
        """`scratch` is a folder that QEMU may write to; sockets are made there, too."""
        self._connection = connection
        self._places = Places(state, scratch, scratch)
        self._lock = threading.Lock()
        self._made: dict[str, LibvirtChangeSource] = {}

    def __call__(self, hypervisor: LibvirtHypervisor, vm_id: str) -> LibvirtChangeSource:
        uuid = libvirt_uuid(vm_id)
        with self._lock:
            if vm_id not in self._made:
                self._made[vm_id] = LibvirtChangeSource(
                    vm_id,
                    lambda: self._connection.domain(uuid),
                    self._places,
                    machine=lambda: hypervisor.travelling(vm_id),
                    guard=self._guard,
                )
            return self._made[vm_id]

    def _guard(self, uuid: str) -> GuardProcess:
        return GuardProcess(self._connection.uri, uuid, freeze=FREEZE_SECONDS, hold=HOLD_SECONDS)
