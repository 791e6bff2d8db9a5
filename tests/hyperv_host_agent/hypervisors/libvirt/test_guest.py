"""A guest that runs a system is asked, and given addresses."""

import time
from pathlib import Path

import pytest

from deploy.lab import guest_image
from deploy.lab.guest import Guest as LabGuest
from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.base import Address, Guest, MachineFailed, Power
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from tests.fakes.libvirt_host import IdleGuest
from tests.fakes.libvirt_rig import LibvirtRig
from twinsite.units import MiB

NIC = "52:54:00:00:00:21"


@pytest.fixture
def rig(kvm_host: LibvirtHost, connection: Connection, tmp_path: Path) -> LibvirtRig:
    return LibvirtRig(kvm_host, connection, tmp_path)


def test_a_vm_without_a_device_for_an_agent_is_not_waited_for(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01").start()
    assert rig.hypervisor.guest(guest.uuid) is None


def test_a_guest_that_is_silent_is_said_to_be(rig: LibvirtRig):
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    guest = IdleGuest.define(rig.host, "web01", extra=channel).start()
    assert rig.hypervisor.guest(guest.uuid) == Guest(answers=False)


@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_guest_tells_its_addresses_takes_new_ones_and_shuts_down_when_asked(rig: LibvirtRig):
    made = LabGuest.define(
        rig.host, guest_image.build(), "web07", network=None, sizes={"vda": 16 * MiB, "vdb": 16 * MiB}
    )
    vm_id = next(state.spec.id for state in rig.hypervisor.machines())
    xml = rig.connection.domain(vm_id).xml(inactive=True)
    nic = f"<interface type='network'><mac address='{NIC}'/><source network='lan'/><model type='virtio'/></interface>"
    rig.connection.define(xml.replace("</devices>", nic + "</devices>"))
    made.up()
    rig.hypervisor.set_address(vm_id, Address(NIC, "10.1.0.7/24", "10.1.0.1"))
    rig.hypervisor.set_address(vm_id, Address(NIC, "10.1.0.7/24", "10.1.0.1"))
    told = rig.hypervisor.guest(vm_id)
    assert told is not None
    assert told.answers
    assert "10.1.0.7/24" in told.addresses
    with pytest.raises(MachineFailed, match="no interface"):
        rig.hypervisor.set_address(vm_id, Address("52:54:00:99:99:99", "10.1.0.8/24"))
    with pytest.raises(MachineFailed, match="failed in its guest"):
        rig.hypervisor.set_address(vm_id, Address(NIC, "10.1.0.7/24", "192.0.2.1"))
    begun = time.monotonic()
    rig.hypervisor.stop(vm_id, timeout=120)
    assert rig.hypervisor.machine(vm_id).power is Power.STOPPED
    assert time.monotonic() - begun < 100
