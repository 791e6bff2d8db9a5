"""What every hypervisor promises; each adapter runs this suite."""

import uuid
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from hyperv_host_agent.hypervisors.base import (
    Hypervisor,
    MachineExists,
    MachineFailed,
    MachineFenced,
    MachineMissing,
    MachineSpec,
    MachineState,
    Power,
    Purpose,
)
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from twinsite.api.types.v1 import types_pb2
from twinsite.units import MiB

DISKS: Final = (DiskGeometry("disk-0", 4 * MiB, "vda"), DiskGeometry("disk-1", 2 * MiB + 512, "vdb"))


def new_spec(name: str = "web01") -> MachineSpec:
    return MachineSpec(str(uuid.uuid4()), name, 2, 1 << 30, DISKS, (("52:54:00:00:00:01", "lan"),))


class Rig(ABC):
    hypervisor: Hypervisor
    stop_seconds = 10.0  # that a guest has to shut down in

    @abstractmethod
    def add_ordinary(self, name: str) -> str:
        """A VM that belongs to the host's user, stopped; its id."""

    @abstractmethod
    def layers(self, size: int) -> tuple[Path, ...]:
        """Layers of a recovery point."""

    def attached(self) -> tuple[AttachedDisk, ...]:
        return tuple(AttachedDisk(disk.id, disk.name, disk.size, self.layers(disk.size)) for disk in DISKS)


class HypervisorContract:
    def test_a_vm_nobody_has_is_missing(self, rig: Rig):
        hypervisor = rig.hypervisor
        assert hypervisor.machines() == []
        for act in (
            hypervisor.machine,
            hypervisor.change_source,
            hypervisor.start,
            hypervisor.unfence,
            lambda vm: hypervisor.stop(vm, timeout=1),
            lambda vm: hypervisor.fence(vm, 1),
            lambda vm: hypervisor.disk_path(vm, "disk-0"),
        ):
            with pytest.raises(MachineMissing):
                act("../../etc")
        hypervisor.undefine("never-was")

    def test_a_defined_vm_is_listed_and_defining_it_again_changes_nothing(self, rig: Rig):
        spec, disks = new_spec(), rig.attached()
        rig.hypervisor.define(spec, disks, purpose=Purpose.REPLICA)
        rig.hypervisor.define(spec, disks, purpose=Purpose.REPLICA)
        assert rig.hypervisor.machines() == [MachineState(spec, Power.STOPPED, Purpose.REPLICA)]
        assert rig.hypervisor.machine(spec.id).spec == spec
        assert rig.hypervisor.change_source(spec.id).disks() == DISKS

    def test_a_test_vm_says_so_in_its_name(self, rig: Rig):
        spec = new_spec()
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.TEST)
        assert rig.hypervisor.machine(spec.id).spec == replace(spec, name="web01 - Test")

    def test_several_tests_of_one_vm_stand_beside_each_other(self, rig: Rig):
        (first, second), disks = (new_spec(), new_spec()), rig.attached()
        for spec in (first, second, second):
            rig.hypervisor.define(spec, disks, purpose=Purpose.TEST)
        assert rig.hypervisor.machine(second.id).spec.name == "web01 - Test 2"
        rig.hypervisor.undefine(first.id)
        rig.hypervisor.define(second, disks, purpose=Purpose.TEST)
        assert [state.spec.name for state in rig.hypervisor.machines()] == ["web01 - Test 2"]

    def test_a_name_or_id_that_is_taken_is_refused(self, rig: Rig):
        mine = rig.add_ordinary("web01")
        with pytest.raises(MachineExists, match="web01"):
            rig.hypervisor.define(new_spec("web01"), rig.attached(), purpose=Purpose.REPLICA)
        with pytest.raises(MachineExists):
            rig.hypervisor.define(replace(new_spec("web02"), id=mine), rig.attached(), purpose=Purpose.REPLICA)
        rig.hypervisor.define(new_spec("web01"), rig.attached(), purpose=Purpose.TEST)
        assert len(rig.hypervisor.machines()) == 2

    def test_a_name_is_never_a_path(self, rig: Rig):
        spec = replace(new_spec("../../x\n" + "y" * 300), id="../../" + "z" * 300)
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA)
        assert rig.hypervisor.machine(spec.id).spec == spec
        rig.hypervisor.undefine(spec.id)
        assert rig.hypervisor.machines() == []

    def test_a_vm_starts_and_stops_however_often_it_is_asked(self, rig: Rig):
        spec = new_spec()
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA)
        for _ in range(2):
            rig.hypervisor.start(spec.id)
            rig.hypervisor.start(spec.id)
            assert rig.hypervisor.machine(spec.id).power is Power.RUNNING
            rig.hypervisor.stop(spec.id, timeout=rig.stop_seconds)
            rig.hypervisor.stop(spec.id, timeout=rig.stop_seconds)
            assert rig.hypervisor.machine(spec.id).power is Power.STOPPED

    def test_a_vm_of_the_host_starts_with_it_unless_it_was_stopped_or_fenced(self, rig: Rig):
        vm_id = rig.add_ordinary("web01")
        rig.hypervisor.start(vm_id)
        assert rig.hypervisor.machine(vm_id).autostart
        rig.hypervisor.stop(vm_id, timeout=rig.stop_seconds)
        assert not rig.hypervisor.machine(vm_id).autostart
        rig.hypervisor.start(vm_id)
        assert rig.hypervisor.machine(vm_id).autostart
        rig.hypervisor.fence(vm_id, 2)
        assert not rig.hypervisor.machine(vm_id).autostart

    def test_a_fenced_vm_is_stopped_and_does_not_start(self, rig: Rig):
        vm_id = rig.add_ordinary("web01")
        rig.hypervisor.start(vm_id)
        rig.hypervisor.fence(vm_id, 7)
        rig.hypervisor.fence(vm_id, 6)
        assert rig.hypervisor.machine(vm_id).power is Power.STOPPED
        with pytest.raises(MachineFenced, match="term 7"):
            rig.hypervisor.start(vm_id)
        rig.hypervisor.unfence(vm_id)
        rig.hypervisor.unfence(vm_id)
        rig.hypervisor.start(vm_id)
        rig.hypervisor.stop(vm_id, timeout=rig.stop_seconds)

    def test_only_what_was_defined_here_and_does_not_run_is_removed(self, rig: Rig):
        spec, mine = new_spec("replica"), rig.add_ordinary("web01")
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA)
        rig.hypervisor.start(spec.id)
        with pytest.raises(MachineFailed, match="stop it first"):
            rig.hypervisor.undefine(spec.id)
        with pytest.raises(MachineFailed, match="not defined by Twinsite"):
            rig.hypervisor.undefine(mine)
        rig.hypervisor.stop(spec.id, timeout=rig.stop_seconds)
        rig.hypervisor.undefine(spec.id)
        rig.hypervisor.undefine(spec.id)
        assert [state.spec.id for state in rig.hypervisor.machines()] == [mine]

    def test_a_point_carries_the_description_of_the_vm(self, rig: Rig):
        spec = new_spec()
        rig.hypervisor.define(spec, rig.attached(), purpose=Purpose.REPLICA)
        source = rig.hypervisor.change_source(spec.id)
        source.start()
        point = source.open_point(1, b"1" * 16, consistency="crash")
        described = types_pb2.Machine.FromString(point.machine)
        point.close()
        assert (described.id, described.name, described.cpus) == (spec.id, "web01", 2)
        assert [(disk.id, disk.name, disk.size_bytes) for disk in described.disks] == [
            (disk.id, disk.name, disk.size) for disk in DISKS
        ]
        assert described.power == types_pb2.POWER_STATE_STOPPED
        assert described.purpose == "replica"

    def test_a_disk_that_is_not_the_vms_is_refused(self, rig: Rig):
        vm_id = rig.add_ordinary("web01")
        with pytest.raises(MachineFailed, match="no disk other"):
            rig.hypervisor.disk_path(vm_id, "other")
