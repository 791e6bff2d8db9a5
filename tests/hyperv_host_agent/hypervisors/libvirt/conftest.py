import os
from collections.abc import Iterator

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent.hypervisors.libvirt import library
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from tests.fakes.libvirt_host import libvirt_host_running, need_libvirt

_LAN = "<network><name>lan</name><bridge name='virlan'/></network>"


@pytest.fixture(scope="session", autouse=True)
def libvirt_python() -> None:
    if not library.available() and os.environ.get("TWINSITE_NO_SKIPS") != "1":
        pytest.skip("libvirt-python is not installed")


@pytest.fixture(scope="module")
def kvm_host() -> Iterator[LibvirtHost]:
    """A libvirt host with a network "lan", for all tests of a module."""
    need_libvirt()
    with libvirt_host_running() as host:
        file = host.root / "lan.xml"
        file.write_text(_LAN)
        host.virsh("net-define", str(file))
        host.virsh("net-start", "lan")
        yield host


@pytest.fixture
def connection(kvm_host: LibvirtHost) -> Iterator[Connection]:
    made = Connection(kvm_host.uri)
    yield made
    made.close()
    for name in kvm_host.virsh("list", "--all", "--name").split("\n"):
        if name.strip():
            kvm_host.virsh("destroy", name.strip(), check=False)
            kvm_host.virsh("undefine", name.strip(), "--nvram", "--managed-save", "--checkpoints-metadata", check=False)
