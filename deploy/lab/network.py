"""A network of a laboratory host: a bridge inside the machine with DHCP, known to libvirt; nothing leads outside."""

import ipaddress
from dataclasses import dataclass

from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import LabFailed, find

_XML = "<network><name>{name}</name><forward mode='bridge'/><bridge name='{bridge}'/></network>"


@dataclass(frozen=True, slots=True)
class LabNetwork:
    host: LibvirtHost
    name: str
    bridge: str

    @classmethod
    def of(cls, host: LibvirtHost, name: str) -> "LabNetwork":
        """One that was created before."""
        return cls(host, name, f"br-{name}"[:15])

    @classmethod
    def create(cls, host: LibvirtHost, name: str, subnet: str) -> "LabNetwork":
        """On a running host; guests get addresses of the subnet, its first is the bridge's own. Raises LabFailed."""
        network = ipaddress.ip_network(subnet)
        addresses = list(network.hosts())
        made = cls.of(host, name)
        inside = host.machine.run
        inside("ip", "link", "add", made.bridge, "type", "bridge")
        inside("ip", "addr", "add", f"{addresses[0]}/{network.prefixlen}", "dev", made.bridge)
        inside("ip", "link", "set", made.bridge, "up")
        if find("dnsmasq") is None:
            raise LabFailed("not installed: apt-get install dnsmasq-base")
        inside(
            "dnsmasq",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            f"--interface={made.bridge}",
            "--bind-interfaces",
            "--no-ping",  # whether an address is in use: only guests that ask here are on it
            f"--dhcp-leasefile=/run/leases-{name}",
            f"--dhcp-range={addresses[1]},{addresses[-1]},1h",
            f"--pid-file=/run/dnsmasq-{name}.pid",
        )
        file = host.root / f"network-{name}.xml"
        file.write_text(_XML.format(name=name, bridge=made.bridge))
        if name not in host.virsh("net-list", "--all", "--name").split():
            host.virsh("net-define", str(file))
        host.virsh("net-start", name)
        return made

    def address(self, mac: str) -> str | None:
        """What a guest was given; None: it did not ask yet."""
        try:
            leases = (self.host.root / "run" / f"leases-{self.name}").read_text().splitlines()
        except FileNotFoundError:
            return None
        return next((lease.split()[2] for lease in leases if lease.split()[1].lower() == mac.lower()), None)
