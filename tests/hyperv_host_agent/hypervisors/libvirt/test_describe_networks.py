"""Which network a NIC is said to be on: the one its owner named, so that the target's mapping finds it."""

import pytest

from hyperv_host_agent.hypervisors.libvirt.describe import describe

DOMAIN = """<domain type='kvm'><name>web01</name><uuid>06c67b4a-1bfd-45dd-8952-4b52449028cd</uuid><devices>
<interface type='{kind}'><mac address='52:54:00:00:00:01'/><source {source}/></interface></devices></domain>"""


@pytest.mark.parametrize(
    ("kind", "source", "network"),
    [
        ("network", "network='lan'", "lan"),
        # What libvirt shows of a running VM on a network whose forward mode is "bridge".
        ("bridge", "network='lan' portid='f0ba8e3c-8ab0-4a3c-9ee5-a4e4cf6cd6a0' bridge='br0'", "lan"),
        ("bridge", "bridge='br0'", "br0"),
        ("user", "dev='lo'", ""),
    ],
)
def test_a_nic_is_on_the_network_its_owner_named(kind, source, network):
    (nic,) = describe(DOMAIN.format(kind=kind, source=source)).nics
    assert nic.network == network
