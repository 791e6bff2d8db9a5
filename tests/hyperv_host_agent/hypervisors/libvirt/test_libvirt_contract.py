"""libvirt keeps the contract of hypervisors."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from tests.contracts.hypervisor import HypervisorContract, Rig
from tests.fakes.libvirt_rig import LibvirtRig


class TestLibvirt(HypervisorContract):
    @pytest.fixture
    def rig(self, kvm_host: LibvirtHost, connection: Connection, tmp_path: Path) -> Iterator[Rig]:
        rig = LibvirtRig(kvm_host, connection, tmp_path)
        yield rig
        rig.close()
