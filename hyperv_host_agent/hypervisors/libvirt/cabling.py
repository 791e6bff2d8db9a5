"""Where NICs are plugged in on this host."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.rewrite import Cable

_INTERFACES: Final = Path("/sys/class/net")


class Cabling:
    """`mapping`: network at the source → libvirt network or bridge here; one that is not in it keeps its name."""

    def __init__(self, connection: Connection, mapping: Mapping[str, str]) -> None:
        self._connection, self._mapping = connection, mapping

    def cable(self, mac: str, network: str) -> Cable:
        """Unplugged when the network is not here."""
        name = self._mapping.get(network, network)
        active = self._networks()
        if active.get(name):
            return Cable(mac, "network", name)
        if name and name not in active and _bridge(name):
            return Cable(mac, "bridge", name)
        return Cable(mac)

    def problem(self, network: str) -> str:
        """Why a NIC of the network would be unplugged, a phrase; empty: it would not, or it was at the source too."""
        name = self._mapping.get(network, network)
        active = self._networks()
        if not name or active.get(name) or (name not in active and _bridge(name)):
            return ""
        shown = f"{name!r} for {network!r}" if name != network else repr(name)
        return f"the network {shown} is not active here" if name in active else f"this host has no network {shown}"

    def _networks(self) -> dict[str, bool]:
        return {network.name: network.active for network in self._connection.networks()}


def _bridge(name: str) -> bool:
    return "/" not in name and (_INTERFACES / name / "bridge").is_dir()
