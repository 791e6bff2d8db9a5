"""The change source of libvirt keeps the contract of all change sources, against a real libvirtd and QEMU."""

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import run, until
from hyperv_host_agent.changes.base import SourcePoint
from hyperv_host_agent.hypervisors.base import Purpose
from hyperv_host_agent.hypervisors.libvirt import mark, tree
from hyperv_host_agent.hypervisors.libvirt.tracking.source import LibvirtChangeSource
from hyperv_host_agent.replication.cycle import DiskGeometry
from tests.contracts.change_source import DISKS, ChangeSourceContract, Rig
from tests.fakes.libvirt_tracked import TrackedDomain, abandon
from twinsite.extents import CLUSTER

_numbers = itertools.count(1)


class LibvirtRig(Rig):
    def __init__(self, host: LibvirtHost) -> None:
        self.tracked = TrackedDomain(host, f"vm{next(_numbers)}", disks={disk.name: disk.size for disk in DISKS})
        self.geometry = DISKS
        self.define(DISKS)
        self.points: list[SourcePoint] = []
        self.tracked.guest.start()
        self.source = self.tracked.source

    def define(self, disks: tuple[DiskGeometry, ...]) -> None:
        """Ids are the tests' own: as of a VM that was defined by a failover."""
        root = tree.parse(self.tracked.host.virsh("dumpxml", "--inactive", self.tracked.guest.name))
        devices = root.find("devices")
        assert devices is not None
        known = {tree.get(disk.find("target"), "dev"): disk for disk in tree.devices(root, "disk")}
        for element in known.values():
            devices.remove(element)
        for disk in disks:
            devices.append(known.get(disk.name) or ET.fromstring(self.added(disk)))
        ids = tuple((disk.name, disk.id) for disk in disks)
        mark.write(root, mark.Mark(self.tracked.guest.uuid, "vm", Purpose.REPLICA, disks=ids, made_of=""))
        self.tracked.guest.redefine(tree.text_of(root))

    def added(self, disk: DiskGeometry) -> str:
        path = self.tracked.host.images / f"{self.tracked.guest.name}-{disk.name}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(disk.size))
        self.tracked.guest.disks[disk.name] = path  # type: ignore[index]
        return (
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
            f"<source file='{path}'/><target dev='{disk.name}' bus='virtio'/></disk>"
        )

    def name(self, disk: str) -> str:
        return next(known.name for known in self.geometry if known.id == disk)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        source = self.tracked.host.root / "written"
        source.write_bytes(data)
        self.tracked.guest._io(self.name(disk), f"write -s {source} {offset} {len(data)}")

    def content(self, disk: str) -> bytes:
        return self.tracked.guest.content(self.name(disk))

    def reshape(self, *disks: DiskGeometry) -> None:
        before = {disk.id: disk for disk in self.geometry}
        self.geometry = disks
        for disk in disks:
            if disk.id in before and before[disk.id] != disk:
                if disk.size < before[disk.id].size:  # QEMU shows what it cut off of the last cluster when it grows
                    self.tracked.guest.zero(disk.name, disk.size, -disk.size % CLUSTER)
                self.tracked.domain().block_resize(disk.name, disk.size)
        if set(before) != {disk.id for disk in disks}:
            self.tracked.guest.destroy()
            self.define(disks)
            self.tracked.guest.start()

    def lose_tracking(self) -> None:
        self.tracked.guest.kill()
        until("libvirt to notice", lambda: not self.tracked.domain().is_active() or None)
        self.tracked.guest.start()

    def restart_agent(self) -> None:
        point = self.tracked.source._point
        if point is not None and not point.closed:
            abandon(point)
        self.source = self.tracked.source = self.tracked.new_source()


class TestLibvirt(ChangeSourceContract):
    @pytest.fixture
    def rig(self, host: LibvirtHost) -> Iterator[Rig]:
        rig = LibvirtRig(host)
        yield rig
        assert isinstance(rig.source, LibvirtChangeSource)
        rig.source.stop()
        assert rig.tracked.leftovers() == []
        host.virsh("destroy", rig.tracked.guest.name)
        host.virsh("undefine", "--checkpoints-metadata", rig.tracked.guest.name)
        rig.tracked.close()
