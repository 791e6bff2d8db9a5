"""Libvirt hosts with the laboratory's guest."""

import pytest

from deploy.lab import guest_image
from deploy.lab.guest import Guest
from deploy.lab.guest_image import GuestImage
from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.network import LabNetwork
from tests.fakes.libvirt_host import libvirt_host, need_libvirt
from twinsite.units import MiB

__all__ = ["libvirt_host"]


@pytest.fixture(scope="session")
def image() -> GuestImage:
    need_libvirt()
    return guest_image.build()


@pytest.fixture
def lan(libvirt_host: LibvirtHost) -> LabNetwork:
    return LabNetwork.create(libvirt_host, "lan", "10.20.0.0/24")


@pytest.fixture
def guest(libvirt_host: LibvirtHost, image: GuestImage, lan: LabNetwork) -> Guest:
    """It runs and writes records."""
    sizes = {"vda": 32 * MiB, "vdb": 32 * MiB}
    return Guest.define(libvirt_host, image, network=lan, sizes=sizes, interval=0.05).up()
