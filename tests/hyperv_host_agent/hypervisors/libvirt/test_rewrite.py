"""What becomes of a VM's XML on its way to another host."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from hyperv_host_agent.hypervisors.base import Purpose, Severity
from hyperv_host_agent.hypervisors.description import BadDescription
from hyperv_host_agent.hypervisors.libvirt import describe, mark
from hyperv_host_agent.hypervisors.libvirt.mark import Mark
from hyperv_host_agent.hypervisors.libvirt.rewrite import Cable, Placement, losses, rewrite

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
SOURCE = f"""<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>web01</name><uuid>{UUID}</uuid><genid>b1c9d2ac-3c2f-4f3e-9a39-222222222222</genid>
<metadata><other:note xmlns:other='urn:other'>kept</other:note></metadata>
<memory unit='GiB'>2</memory><vcpu placement='static' cpuset='0-3'>4</vcpu>
<cputune><vcpupin vcpu='0' cpuset='1'/></cputune><numatune><memory mode='strict' nodeset='0'/></numatune>
<memoryBacking><hugepages/></memoryBacking><resource><partition>/production</partition></resource>
<sysinfo type='smbios'><system><entry name='uuid'>{UUID}</entry></system></sysinfo>
<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
<loader readonly='yes' type='pflash'>/usr/share/OVMF/CODE.fd</loader>
<nvram template='/usr/share/OVMF/VARS.fd'>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram>
<acpi><table type='slic'>/etc/shadow</table></acpi></os>
<features><acpi/></features><cpu mode='host-passthrough' check='none' migratable='on'/>
<devices><emulator>/opt/qemu/bin/qemu</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
 <source file='/images/web01-a.raw' index='3'/><backingStore/><target dev='vda' bus='virtio'/><serial>disk-a</serial>
 <boot order='1'/><address type='pci' domain='0' bus='4' slot='0' function='0'/></disk>
<disk type='block' device='disk'><driver name='qemu' type='qcow2'/><source dev='/dev/vg/web01-b'/>
 <target dev='vdb' bus='scsi'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/iso/debian.iso'/>
 <target dev='sda' bus='sata'/><readonly/></disk>
<disk type='network' device='disk'><source protocol='rbd' name='pool/image'/><target dev='vdc' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/shared/quorum'/><target dev='vdd' bus='virtio'/><shareable/></disk>
<interface type='network'><mac address='52:54:00:aa:bb:01'/><source network='lan' portgroup='x'/><target dev='vnet3'/>
 <model type='virtio'/><filterref filter='clean-traffic'/>
 <address type='pci' domain='0' bus='1' slot='0' function='0'/></interface>
<interface type='bridge'><mac address='52:54:00:aa:bb:02'/><source bridge='br0'/><model type='e1000e'/></interface>
<serial type='file'><source path='/var/log/web01.ser'/><target port='0'/></serial>
<parallel type='dev'><source path='/dev/parport0'/><target port='0'/></parallel>
<channel type='unix'><source mode='bind' path='/var/lib/x.sock'/>
 <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<graphics type='vnc' port='5907' autoport='no' listen='10.1.2.3' passwd='secret'>
 <listen type='address' address='10.1.2.3'/></graphics>
<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='5' slot='0' function='0'/></source></hostdev>
<filesystem type='mount'><source dir='/etc'/><target dir='etc'/></filesystem>
<input type='passthrough' bus='virtio'><source evdev='/dev/input/event1'/></input><input type='tablet' bus='usb'/>
<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>
<seclabel type='static' model='dac' relabel='yes'><label>+107:+107</label></seclabel>
<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/etc/shadow'/></qemu:commandline></domain>"""

FOLDER = Path("/vms/x")


def placement(**changes: object) -> Placement:
    told: dict[str, object] = {
        "uuid": UUID,
        "name": "web01",
        "mark": Mark(UUID, "web01", Purpose.REPLICA, (("vda", "id-a"), ("vdb", "id-b")), "f"),
        "kind": "kvm",
        "disks": (("vda", FOLDER / "vda.qcow2"), ("vdb", FOLDER / "vdb.qcow2")),
        "cables": (Cable("52:54:00:aa:bb:01", "network", "lan"), Cable("52:54:00:aa:bb:02")),
        "folder": FOLDER,
        "nvram": FOLDER / "nvram.fd",
    } | changes
    return Placement(**told)  # type: ignore[arg-type]


def made(**changes: object) -> ET.Element:
    return ET.fromstring(rewrite(SOURCE, placement(**changes)))


def test_nothing_of_the_source_host_is_left():
    text = rewrite(SOURCE, placement())
    for word in (
        *("/images", "/dev/vg", "/iso", "/shared", "rbd", "/var/log", "/dev/parport0", "x.sock", "/etc", "/opt"),
        *("vnet3", "10.1.2.3", "5907", "secret", "clean-traffic", "portgroup", "hostdev", "evdev", "+107", "hugepages"),
        *("cpuset", "partition", "io=", "b1c9d2ac", "-drive", 'id="7"'),
    ):
        assert word not in text


def test_the_guest_finds_its_hardware_where_it_was():
    root = made()
    assert root.find("os/type").attrib == {"arch": "x86_64", "machine": "pc-q35-7.2"}
    assert (root.findtext("uuid"), root.findtext("name"), root.findtext("vcpu")) == (UUID, "web01", "4")
    first, second = root.findall("devices/disk")[:2]
    assert first.find("source").attrib == {"file": "/vms/x/vda.qcow2"}
    assert first.find("driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "discard": "unmap"}
    assert (first.findtext("serial"), first.find("boot").get("order")) == ("disk-a", "1")
    assert first.find("address").get("bus") == "4"
    assert (second.get("type"), second.find("source").attrib) == ("file", {"file": "/vms/x/vdb.qcow2"})
    assert second.find("target").get("bus") == "scsi"
    assert root.findtext("metadata/{urn:other}note") == "kept"


def test_a_drive_stays_and_is_empty_and_disks_that_are_not_replicated_are_gone():
    targets = [disk.find("target").get("dev") for disk in made().findall("devices/disk")]
    assert targets == ["vda", "vdb", "sda"]
    assert made().findall("devices/disk")[2].find("source") is None


def test_a_disk_that_was_plugged_in_while_the_vm_ran_comes_along():
    files = (("vda", FOLDER / "vda.qcow2"), ("vde", FOLDER / "vde.qcow2"))
    disks = {disk.find("target").get("dev"): disk for disk in made(disks=files).findall("devices/disk")}
    assert list(disks) == ["vda", "sda", "vde"]
    assert disks["vde"].find("source").get("file") == "/vms/x/vde.qcow2"


def test_nics_are_plugged_in_where_the_target_says_or_nowhere():
    first, second = made().findall("devices/interface")
    assert (first.get("type"), first.find("source").attrib) == ("network", {"network": "lan"})
    assert first.find("mac").get("address") == "52:54:00:aa:bb:01"
    assert first.find("address") is not None
    assert second.find("link").get("state") == "down"
    assert second.find("model").get("type") == "e1000e"


def test_ports_write_where_the_vm_lives():
    root = made()
    assert root.find("devices/serial").get("type") == "file"
    assert root.find("devices/serial/source").get("path") == "/vms/x/serial0.log"
    assert root.find("devices/parallel").get("type") == "pty"
    assert root.find("devices/channel/target").get("name") == "org.qemu.guest_agent.0"


def test_the_firmware_finds_its_variables():
    nvram = made().find("os/nvram")
    assert (nvram.text, nvram.get("template")) == ("/vms/x/nvram.fd", "/usr/share/OVMF/VARS.fd")
    assert not made(nvram=None).find("os/nvram").text


def test_a_test_copy_has_an_identity_of_its_own():
    copy = made(
        uuid=OTHER,
        name="web01 - Test",
        mark=Mark(OTHER, "web01 - Test", Purpose.TEST, (), "f"),
        cables=(Cable("52:54:00:00:00:07"), Cable("52:54:00:00:00:08")),
    )
    text = ET.tostring(copy, encoding="unicode")
    assert UUID not in text
    assert "aa:bb" not in text
    assert copy.findtext("sysinfo/system/entry") == OTHER


def test_without_acceleration_there_is_no_host_processor_to_pass_through():
    root = made(kind="qemu")
    assert (root.get("type"), root.find("cpu").attrib) == ("qemu", {"mode": "maximum"})


def test_the_mark_says_whose_copy_it_is_and_is_never_passed_on():
    told = describe.describe(rewrite(SOURCE, placement()))
    assert (told.purpose, told.id) == (Purpose.REPLICA, UUID)
    assert [(disk.target, disk.id) for disk in told.replicated()] == [("vda", "id-a"), ("vdb", "id-b")]
    again = rewrite(rewrite(SOURCE, placement()), placement(mark=Mark(OTHER, "x", Purpose.TEST, (), "g")))
    assert again.count("<twinsite:machine") == 1
    root = ET.fromstring(again)
    assert mark.read(root) == Mark(OTHER, "x", Purpose.TEST, (), "g")


def test_what_stays_behind_is_said():
    found = losses(SOURCE)
    assert [one.text for one in found if one.severity is Severity.WARNING] == [
        "the device 'hostdev pci' stays behind",
        "the device 'filesystem mount' stays behind",
        "the device 'input passthrough' stays behind",
        "its own arguments for QEMU stay behind",
        "the content of its TPM stays behind: the copy begins with an empty one",
    ]


@pytest.mark.parametrize("text", ["", "<domain", "<network/>", "<!DOCTYPE x [<!ENTITY a 'b'>]><domain/>"])
def test_what_is_no_domain_is_refused(text):
    with pytest.raises(BadDescription):
        rewrite(text, placement())


def test_each_disk_that_is_not_replicated_has_a_reason():
    reasons = {disk.target: disk.problem for disk in describe.describe(SOURCE).disks}
    assert reasons == {
        "vda": "",
        "vdb": "",
        "sda": "it is a cdrom",
        "vdc": "it is of type network",
        "vdd": "it is shared with other VMs",
    }
