"""A running copy is made independent of its recovery point in slices; what it holds stays what it was."""

import os
import tempfile
from pathlib import Path

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import run
from hyperv_host_agent.hypervisors.base import Purpose
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.errors import NotThere
from hyperv_host_agent.hypervisors.libvirt.flattening import flatten, is_flat
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from tests.contracts.hypervisor import new_spec
from tests.fakes.layers import chain
from tests.fakes.libvirt_rig import LibvirtRig
from twinsite.units import MiB

SIZE = 24 * MiB


@pytest.fixture
def rig(kvm_host: LibvirtHost, connection: Connection, tmp_path: Path) -> LibvirtRig:
    return LibvirtRig(kvm_host, connection, tmp_path)


def test_slices_end_and_the_disk_stands_alone_with_all_it_held(rig: LibvirtRig):
    first = os.urandom(SIZE)
    second = first[: SIZE // 2] + os.urandom(SIZE // 4) + first[3 * SIZE // 4 :]
    layers = chain(Path(tempfile.mkdtemp(dir=rig.folder)), [first, second])
    geometry = DiskGeometry("disk-0", SIZE, "vda")
    spec = new_spec()
    spec = type(spec)(spec.id, spec.name, 1, 32 * MiB, (geometry,), ())
    disk = AttachedDisk(geometry.id, geometry.name, geometry.size, layers)
    rig.hypervisor.define(spec, (disk,), purpose=Purpose.REPLICA)
    rig.hypervisor.start(spec.id)
    domain = rig.connection.domain(spec.id)
    assert not is_flat(domain, "vda")

    slices = [flatten(domain, "vda", seconds=0.3, bandwidth=20 * MiB)]
    assert not slices[0].done
    while not slices[-1].done:
        assert len(slices) < 50
        slices.append(flatten(domain, "vda", seconds=0.6, bandwidth=40 * MiB))
    assert is_flat(domain, "vda")
    assert flatten(domain, "vda", seconds=1, bandwidth=0).done
    with pytest.raises(NotThere):
        flatten(domain, "vdz", seconds=1, bandwidth=0)

    rig.hypervisor.stop(spec.id, timeout=0)
    for layer in layers:
        layer.unlink()
    raw = rig.folder / "raw"
    run("qemu-img", "convert", "-O", "raw", str(rig.hypervisor.disk_path(spec.id, "disk-0")), str(raw))
    assert raw.read_bytes() == second
