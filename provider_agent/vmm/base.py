"""The fabric of a site, and the port through which the provider sees it."""

import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from twinsite import names
from twinsite.errors import TwinsiteError


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGroup:
    name: str
    hosts: tuple[str, ...] = ()  # names of hosts; one that has not joined yet may be among them

    def __post_init__(self) -> None:
        _check((self.name,), "host group")
        _check(self.hosts, "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    name: str
    host_groups: tuple[HostGroup, ...] = ()
    networks: tuple[str, ...] = ()
    storage_classifications: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check((self.name,), "cloud")
        _check((group.name for group in self.host_groups), "host group")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    name: str
    logical_network: str = ""
    subnets: tuple[str, ...] = ()  # CIDR

    def __post_init__(self) -> None:
        _check((self.name,), "network")
        if self.logical_network:
            _check((self.logical_network,), "logical network")
        for subnet in self.subnets:
            ipaddress.ip_network(subnet)  # its ValueError says what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageClassification:
    name: str
    description: str = ""

    def __post_init__(self) -> None:
        _check((self.name,), "storage classification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Raises ValueError when names clash, or a cloud names what is not there."""

    clouds: tuple[Cloud, ...] = ()
    networks: tuple[Network, ...] = ()
    storage_classifications: tuple[StorageClassification, ...] = ()

    def __post_init__(self) -> None:
        networks = _check((network.name for network in self.networks), "network")
        classes = _check((one.name for one in self.storage_classifications), "storage classification")
        _check((cloud.name for cloud in self.clouds), "cloud")
        for cloud in self.clouds:
            for what, wanted, known in (
                ("network", cloud.networks, networks),
                ("storage classification", cloud.storage_classifications, classes),
            ):
                missing = sorted(set(wanted) - known)
                if missing:
                    raise ValueError(f"cloud {cloud.name} names the {what} {missing[0]}, which is not defined")
        # A host in two clouds would be paired with two sites' policies at once.
        _check(
            (host for cloud in self.clouds for group in cloud.host_groups for host in group.hosts),
            "host in more than one group:",
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """What is in force; `problem` when newer content exists and cannot be used."""

    fabric: Fabric
    problem: TwinsiteError | None = None


class Vmm(Protocol):
    """The thing that manages a site's clouds. Only this port knows which kind it is."""

    async def read(self) -> Reading:
        """What is in force now. Cheap enough to be called every second. Raises TwinsiteError if nothing ever was."""
        ...


def _check(given: Iterable[str], what: str) -> frozenset[str]:
    counted = Counter(given)
    for name, count in counted.items():
        try:
            names.check(name, what)
        except names.InvalidName as error:
            raise ValueError(f"{error}: {error.text('next_step')}") from None
        if count > 1:
            raise ValueError(f"{what} {name} is there {count} times")
    return frozenset(counted)
