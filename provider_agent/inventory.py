"""The site as the coordinator sees it: fabric merged with the hosts that joined. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from provider_agent.vmm.base import Fabric
from twinsite.api.coordinator.v1 import link_pb2 as pb
from twinsite.api.types.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class Presence:
    """The newest a host said about itself; of one that is away it is what was last known, never nothing."""

    status: types_pb2.HostStatus
    connected: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which clouds are synchronized: all, or those named here or at the coordinator."""

    every: bool
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what `str` made: ``all``, ``none`` or names joined by commas."""
        if text in ("all", "none"):
            return cls(text == "all")
        return cls(every=False, names=frozenset(text.split(",")))

    def __str__(self) -> str:
        return "all" if self.every else ",".join(sorted(self.names)) or "none"

    def admits(self, cloud: str) -> bool:
        return self.every or cloud in self.names

    def also(self, names: Iterable[str]) -> "Selection":
        return Selection(self.every, self.names.union(names))


def merge(fabric: Fabric, hosts: Iterable[Presence], selection: Selection) -> pb.Inventory:
    """Without version. Networks and classifications go out with a cloud that has them; hosts always do."""
    clouds = [cloud for cloud in fabric.clouds if selection.admits(cloud.name)]
    networks = {name for cloud in clouds for name in cloud.networks}
    classes = {name for cloud in clouds for name in cloud.storage_classifications}
    return pb.Inventory(
        clouds=[
            pb.Cloud(
                name=cloud.name,
                host_groups=[pb.HostGroup(name=group.name, hosts=group.hosts) for group in cloud.host_groups],
                networks=cloud.networks,
                storage_classifications=cloud.storage_classifications,
            )
            for cloud in clouds
        ],
        networks=[
            pb.Network(name=one.name, logical_network=one.logical_network, subnets=one.subnets)
            for one in fabric.networks
            if one.name in networks
        ],
        storage_classifications=[
            pb.StorageClassification(name=one.name, description=one.description)
            for one in fabric.storage_classifications
            if one.name in classes
        ],
        hosts=[
            pb.HostPresence(status=host.status, connected=host.connected)
            for host in sorted(hosts, key=lambda host: host.status.host_id)
        ],
    )
