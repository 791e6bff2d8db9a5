"""The libvirt backend as the agent uses it: over its connection, with its change sources."""

from collections.abc import Mapping
from pathlib import Path

from hyperv_host_agent.changes.base import ChangeSource, SourceUnavailable
from hyperv_host_agent.hypervisors.libvirt import library
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.hypervisor import LibvirtHypervisor


def open_libvirt(
    uri: str, vms: Path, state: Path, *, networks: Mapping[str, str], test_network: str
) -> LibvirtHypervisor:
    """It need not answer yet. Raises LibvirtMissing."""
    library.libvirt()
    return LibvirtHypervisor(Connection(uri), vms, state, source=_source, networks=networks, test_network=test_network)


def _source(_: LibvirtHypervisor, vm_id: str) -> ChangeSource:
    raise SourceUnavailable(vm_id, "this version does not track changes of VMs under libvirt")
