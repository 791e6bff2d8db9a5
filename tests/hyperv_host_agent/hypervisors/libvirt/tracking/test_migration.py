"""A VM that moves to another host while it runs: its disks are compared there once, and then changes count again."""

from collections.abc import Callable
from dataclasses import replace

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.changes.base import Tracking
from tests.fakes.libvirt_host import libvirt_hosts
from tests.fakes.libvirt_tracked import TrackedDomain
from twinsite.extents import CLUSTER
from twinsite.units import MiB

__all__ = ["libvirt_hosts"]


def migrate(source: LibvirtHost, target: LibvirtHost, name: str, address: str) -> None:
    options = ("--live", "--persistent", "--unsafe", "--migrateuri", f"tcp://{address}")
    source.virsh("migrate", name, target.uri, *options)


def test_replication_follows_a_vm_that_migrates_there_and_back(
    libvirt_hosts: Callable[[], tuple[LibvirtHost, LibvirtHost]],
):
    here, there = libvirt_hosts()
    made = TrackedDomain(here, "moving", disks={"vda": 4 * MiB, "vdb": 1 * MiB})
    made.guest.start()
    replica = made.begin()
    made.guest.write("vda", 1, 0, CLUSTER)
    migrate(here, there, "moving", "10.99.0.2")
    moved = TrackedDomain(there, guest=replace(made.guest, host=there))
    moved.source.start()
    assert moved.source.status() == (None, Tracking.OK)
    moved.guest.write("vda", 2, CLUSTER, CLUSTER)
    assert len(moved.cycle(2, replica)) == 2
    moved.guest.write("vdb", 3, CLUSTER, CLUSTER)
    assert moved.cycle(3, replica) == set()
    assert moved.same(replica)
    migrate(there, here, "moving", "10.99.0.1")
    made.guest.write("vdb", 4, 2 * CLUSTER, CLUSTER)
    made.source.start()
    assert made.source.status()[1] is Tracking.LOST
    assert len(made.cycle(4, replica)) == 2
    made.guest.write("vda", 5, 3 * CLUSTER, CLUSTER)
    assert made.cycle(5, replica) == set()
    assert made.same(replica)
    assert made.leftovers() == []
    made.close()
    moved.close()
