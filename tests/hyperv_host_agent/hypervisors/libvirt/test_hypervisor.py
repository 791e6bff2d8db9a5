"""VMs under a real libvirt: described on one host, run on another, fenced, started and stopped."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from demo.lab import until
from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.base import MachineFailed, MachineFenced, Native, Obstacles, Power, Purpose, Severity
from hyperv_host_agent.hypervisors.description import from_proto, native_of
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.describe import disk_id
from hyperv_host_agent.store.base import AttachedDisk
from tests.contracts.hypervisor import new_spec
from tests.fakes.libvirt_host import IdleGuest
from tests.fakes.libvirt_rig import LibvirtRig
from twinsite.api.types.v1 import types_pb2
from twinsite.units import MiB

NIC = """<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/>
<model type='virtio'/></interface>"""


@pytest.fixture
def rig(kvm_host: LibvirtHost, connection: Connection, tmp_path: Path) -> Iterator[LibvirtRig]:
    made = LibvirtRig(kvm_host, connection, tmp_path)
    yield made
    made.close()


def attached(rig: LibvirtRig, vm_id: str) -> tuple[AttachedDisk, ...]:
    return tuple(
        AttachedDisk(disk.id, disk.name, disk.size, rig.layers(disk.size))
        for disk in rig.hypervisor.machine(vm_id).spec.disks
    )


def test_a_vm_is_described_as_its_host_knows_it(rig: LibvirtRig):
    drive = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>"
    guest = IdleGuest.define(rig.host, "web01", disks={"vda": 8 * MiB, "vdb": 3 * MiB}, extra=NIC + drive)
    spec = rig.hypervisor.machine(guest.uuid).spec
    assert [(disk.id, disk.name, disk.size) for disk in spec.disks] == [
        (disk_id(guest.uuid, "vda"), "vda", 8 * MiB),
        (disk_id(guest.uuid, "vdb"), "vdb", 3 * MiB),
    ]
    assert (spec.name, spec.cpus, spec.memory_bytes) == ("web01", 1, 32 * MiB)
    assert spec.nics == (("52:54:00:00:00:01", "lan"),)
    found = rig.hypervisor.examine(guest.uuid)
    assert [(one.severity, one.text) for one in found] == [(Severity.NOTE, "sda is not replicated: it is a cdrom")]


def test_a_disk_grown_while_the_vm_runs_is_told_with_its_new_size(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01", disks={"vda": 8 * MiB}).start()
    rig.connection.domain(guest.uuid).block_resize("vda", 12 * MiB)
    assert [disk.size for disk in rig.hypervisor.machine(guest.uuid).spec.disks] == [12 * MiB]


def test_raw_disks_and_what_else_costs_is_said_before_protection(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01", disks={"vda": 8 * MiB}, disk_format="raw")
    assert ["vda is raw" in one.text for one in rig.hypervisor.examine(guest.uuid)] == [True]


def test_a_vm_that_is_not_persistent_is_not_protected(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01").start()
    rig.host.virsh("undefine", "web01")
    found = rig.hypervisor.examine(guest.uuid)
    assert [one.what for one in found if one.severity is Severity.OBSTACLE] == ["definition"]


def test_what_travels_is_enough_to_run_the_vm_elsewhere_as_itself(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01", extra=NIC).start()
    machine = types_pb2.Machine.FromString(rig.libvirt.travelling(guest.uuid))
    layers = attached(rig, guest.uuid)
    guest.destroy()
    rig.host.virsh("undefine", "web01")

    spec, native = from_proto(machine), native_of(machine)
    assert rig.hypervisor.preflight(spec, native) == ()
    rig.hypervisor.define(spec, layers, purpose=Purpose.REPLICA, native=native)
    rig.hypervisor.define(spec, layers, purpose=Purpose.REPLICA, native=native)
    rig.hypervisor.start(spec.id)
    state = rig.hypervisor.machine(guest.uuid)
    assert (state.spec, state.power, state.purpose) == (spec, Power.RUNNING, Purpose.REPLICA)
    assert not rig.connection.domain(guest.uuid).autostart()
    path = rig.hypervisor.disk_path(guest.uuid, spec.disks[0].id)
    assert path.is_file()
    rig.hypervisor.stop(guest.uuid, timeout=0)
    rig.hypervisor.undefine(guest.uuid)
    assert not path.parent.exists()
    assert rig.hypervisor.machines() == []


def test_a_test_copy_runs_beside_its_original_and_is_unplugged(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01", extra=NIC).start()
    machine = types_pb2.Machine.FromString(rig.libvirt.travelling(guest.uuid))
    copy = replace(from_proto(machine), id=str(uuid.uuid4()), nics=(("52:54:00:00:00:77", ""),))
    rig.hypervisor.define(copy, attached(rig, guest.uuid), purpose=Purpose.TEST, native=native_of(machine))
    rig.hypervisor.start(copy.id)
    states = {state.spec.name: state for state in rig.hypervisor.machines()}
    assert set(states) == {"web01", "web01 - Test"}
    test = states["web01 - Test"]
    assert (test.power, test.purpose) == (Power.RUNNING, Purpose.TEST)
    assert test.spec.nics == (("52:54:00:00:00:77", ""),)
    assert [disk.id for disk in test.spec.disks] == [disk.id for disk in copy.disks]


def test_a_test_network_takes_test_copies_in(kvm_host: LibvirtHost, connection: Connection, tmp_path: Path):
    rig = LibvirtRig(kvm_host, connection, tmp_path, test_network="lan", networks={"prod": "lan"})
    spec = replace(new_spec(), nics=(("52:54:00:00:00:05", ""),))
    rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.TEST)
    assert rig.hypervisor.machine(spec.id).spec.nics == (("52:54:00:00:00:05", "lan"),)
    moved = replace(new_spec("web02"), nics=(("52:54:00:00:00:06", "prod"),))
    rig.hypervisor.define(moved, rig.attached(), purpose=Purpose.REPLICA)
    assert rig.hypervisor.machine(moved.id).spec.nics == (("52:54:00:00:00:06", "lan"),)


def test_a_nic_whose_network_is_not_here_is_unplugged_and_said_so(rig: LibvirtRig):
    spec = replace(new_spec(), nics=(("52:54:00:00:00:05", "elsewhere"),))
    warned = [one.text for one in rig.hypervisor.preflight(spec, None) if one.severity is Severity.WARNING]
    assert warned == ["this host has no network 'elsewhere': the NIC 52:54:00:00:00:05 stays unplugged"]
    rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA)
    rig.hypervisor.start(spec.id)
    assert rig.hypervisor.machine(spec.id).spec.nics == (("52:54:00:00:00:05", ""),)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("machine='q35'", "machine='pc-q35-99.0'", "no machine type pc-q35-99.0"),
        ("arch='x86_64'", "arch='s390x'", "no QEMU for s390x"),
        (
            "<features>",
            "<cpu mode='custom'><model fallback='forbid'>Cray-1</model></cpu><features>",
            "cannot be a Cray-1",
        ),
        ("</os>", "<kernel>/nowhere/vmlinuz</kernel></os>", "boots with /nowhere/vmlinuz"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_made(rig: LibvirtRig, before, after, said):
    xml = (
        "<domain type='qemu'><os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features></domain>"
    )
    native = Native("libvirt-domain", xml.replace(before, after))
    spec = new_spec()
    found = rig.hypervisor.preflight(spec, native)
    assert [said in one.text for one in found if one.severity is Severity.OBSTACLE] == [True]
    with pytest.raises(Obstacles, match=said):
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA, native=native)
    assert rig.hypervisor.machines() == []
    assert list((rig.folder / "vms").iterdir()) == []


def test_too_much_memory_and_foreign_words_are_obstacles(rig: LibvirtRig):
    large = replace(new_spec(), memory_bytes=1 << 50)
    assert [one.what for one in rig.hypervisor.preflight(large, None) if one.severity is Severity.OBSTACLE] == [
        "memory"
    ]
    foreign = rig.hypervisor.preflight(new_spec(), Native("hyper-v", "…"))
    assert [one.what for one in foreign] == ["hypervisor"]


def test_the_firmwares_variables_travel(rig: LibvirtRig):
    code, template, variables = (rig.folder / name for name in ("code.fd", "template.fd", "vars.fd"))
    code.write_bytes(b"\xf4" * (256 << 10))  # a firmware that halts
    template.write_bytes(b"\xff" * (528 << 10))
    variables.write_bytes(b"mine" + template.read_bytes()[4:])
    guest = IdleGuest.define(rig.host, "web01")
    xml = rig.connection.domain(guest.uuid).xml(inactive=True)
    loader = f"<loader readonly='yes' type='pflash'>{code}</loader><nvram template='{template}'>{variables}</nvram>"
    rig.connection.define(xml.replace("</os>", loader + "</os>"))
    machine = types_pb2.Machine.FromString(rig.libvirt.travelling(guest.uuid))
    assert len(machine.SerializeToString()) < 100_000
    copy = replace(from_proto(machine), id=str(uuid.uuid4()))
    rig.hypervisor.define(copy, attached(rig, guest.uuid), purpose=Purpose.TEST, native=native_of(machine))
    restored = rig.libvirt.description(copy.id).nvram
    assert restored is not None
    assert restored.read_bytes() == variables.read_bytes()
    rig.hypervisor.start(copy.id)
    rig.hypervisor.stop(copy.id, timeout=0)
    rig.hypervisor.undefine(copy.id)
    assert not restored.exists()
    assert variables.exists()


def test_a_fenced_vm_that_somebody_starts_is_stopped_at_once(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01")
    rig.hypervisor.fence(guest.uuid, 3)
    rig.host.virsh("start", "web01", check=False)  # it may be stopped before it has started
    until("the stop", lambda: rig.hypervisor.machine(guest.uuid).power is Power.STOPPED)
    rig.hypervisor.unfence(guest.uuid)
    guest.start()
    assert rig.hypervisor.machine(guest.uuid).power is Power.RUNNING


def test_a_fence_outlives_the_agent_and_libvirt(kvm_host: LibvirtHost, connection: Connection, tmp_path: Path):
    before = LibvirtRig(kvm_host, connection, tmp_path)
    guest = IdleGuest.define(kvm_host, "web01")
    before.hypervisor.fence(guest.uuid, 3)
    connection.close()
    guest.start()
    again = Connection(kvm_host.uri)
    hypervisor = LibvirtRig(kvm_host, again, tmp_path).hypervisor
    until("the stop", lambda: hypervisor.machine(guest.uuid).power is Power.STOPPED)
    kvm_host.restart_libvirtd()
    kvm_host.virsh("start", "web01", check=False)
    until("the stop", lambda: kvm_host.state("web01") == "shut off")
    hypervisor.close()


def test_a_guarded_vm_starts_only_by_the_agent_and_once_a_boot(rig: LibvirtRig):
    vm_id = rig.add_ordinary("web01")
    domain = rig.connection.domain(vm_id)
    rig.hypervisor.guard(vm_id)
    rig.hypervisor.guard(vm_id)
    assert not domain.autostart()
    assert rig.hypervisor.machine(vm_id).autostart
    rig.hypervisor.start(vm_id)
    domain.destroy()  # somebody else shuts it down: that is no reason to start it again
    assert not rig.hypervisor.machine(vm_id).autostart
    rig.hypervisor.unguard(vm_id)
    rig.hypervisor.unguard(vm_id)
    assert domain.autostart()


def test_a_vm_that_is_paused_is_stopped_without_waiting_for_its_guest(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01").start()
    rig.connection.domain(guest.uuid).suspend()
    begun = time.monotonic()
    rig.hypervisor.stop(guest.uuid, timeout=60)
    assert time.monotonic() - begun < 30
    assert rig.hypervisor.machine(guest.uuid).power is Power.STOPPED


def test_a_copy_that_libvirt_does_not_take_leaves_nothing(rig: LibvirtRig):
    xml = "<domain type='qemu'><os><type arch='x86_64' machine='q35'>hvm</type></os><on_crash>fly</on_crash></domain>"
    with pytest.raises(Exception, match="definition"):
        rig.hypervisor.define(new_spec(), rig.attached(), purpose=Purpose.REPLICA, native=Native("libvirt-domain", xml))
    assert list((rig.folder / "vms").iterdir()) == []


def test_a_vm_whose_disk_cannot_be_read_is_no_reason_not_to_see_the_others(rig: LibvirtRig):
    lost, whole = IdleGuest.define(rig.host, "lost"), IdleGuest.define(rig.host, "whole")
    lost.disks["vda"].unlink()
    assert [state.spec.id for state in rig.hypervisor.machines()] == [whole.uuid]
    with pytest.raises(MachineFailed, match="lost-vda"):
        rig.hypervisor.machine(lost.uuid)


def test_a_decision_that_cannot_be_read_any_more_is_taken_as_a_fence(rig: LibvirtRig):
    guest = IdleGuest.define(rig.host, "web01")
    rig.hypervisor.fence(guest.uuid, 3)
    for file in (rig.folder / "state").glob("*.json"):
        file.write_bytes(b"{")
    again = LibvirtRig(rig.host, rig.connection, rig.folder).hypervisor
    with pytest.raises(MachineFenced, match="term 0"):
        again.start(guest.uuid)
    again.fence(guest.uuid, 4)
    with pytest.raises(MachineFenced, match="term 4"):
        again.start(guest.uuid)
    again.unfence(guest.uuid)
    again.start(guest.uuid)
