"""QEMU runs as a user of its own, as distributions have it: it comes to what it needs and to nothing else."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.base import Native, Power, Purpose
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.store.base import AttachedDisk
from hyperv_host_agent.store.chain import ChainStore
from tests.contracts.hypervisor import DISKS, new_spec
from tests.fakes.layers import chain
from tests.fakes.libvirt_host import libvirt_host_running, need_libvirt
from tests.fakes.libvirt_rig import LibvirtRig

QEMU_CONF = """
security_driver = "none"
user = "+64055"
group = "+64055"
dynamic_ownership = 1
namespaces = [ ]
cgroup_controllers = [ ]
"""

PLAIN = Native(
    "libvirt-domain",
    "<domain type='qemu'><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>",
)


@pytest.fixture
def host() -> Iterator[LibvirtHost]:
    need_libvirt()
    with libvirt_host_running() as host:
        (host.root / "etc" / "qemu.conf").write_text(QEMU_CONF)
        host.root.chmod(0o711)
        host.restart_libvirtd()
        yield host


def test_a_copy_runs_on_a_point_of_the_store(host: LibvirtHost):
    store = host.root / "store"
    ChainStore(store, reserve=0).create("vm-1", term=0).close()
    folders = [path for path in (store, *store.rglob("*")) if path.is_dir()]
    assert all(path.stat().st_mode & stat.S_IXOTH and not path.stat().st_mode & stat.S_IROTH for path in folders)
    connection = Connection(host.uri)
    rig = LibvirtRig(host, connection, host.root)
    disks = []
    for disk in DISKS:
        folder = store / disk.id
        folder.mkdir(mode=0o711)
        layers = chain(folder, [bytes(disk.size), b"\1" * disk.size])
        assert not any(Path(layer).stat().st_mode & 0o077 for layer in layers)
        disks.append(AttachedDisk(disk.id, disk.name, disk.size, layers))
    spec = new_spec()
    spec = type(spec)(spec.id, spec.name, 1, 32 << 20, DISKS, ())
    rig.hypervisor.define(spec, tuple(disks), purpose=Purpose.REPLICA, native=PLAIN)
    rig.hypervisor.start(spec.id)
    assert rig.hypervisor.machine(spec.id).power is Power.RUNNING
    pid = host.qemu_pid(spec.name)
    assert "\nUid:\t64055\t" in Path(f"/proc/{pid}/status").read_text()
    rig.hypervisor.stop(spec.id, timeout=0)
    rig.hypervisor.undefine(spec.id)
    connection.close()
