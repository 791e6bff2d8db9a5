"""The libvirt backend as the agent uses it: over its connection, with its change sources."""

from collections.abc import Mapping
from pathlib import Path

from hyperv_host_agent.hypervisors.libvirt import library
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.hypervisor import LibvirtHypervisor
from hyperv_host_agent.hypervisors.libvirt.tracking.sources import LibvirtSources


def open_libvirt(
    uri: str, vms: Path, state: Path, scratch: Path, *, networks: Mapping[str, str], test_network: str
) -> LibvirtHypervisor:
    """`scratch`: for what guests overwrite while they are read. libvirt need not answer yet. Raises LibvirtMissing."""
    library.libvirt()
    connection = Connection(uri)
    sources = LibvirtSources(connection, state / "tracking", scratch)
    return LibvirtHypervisor(connection, vms, state, source=sources, networks=networks, test_network=test_network)
