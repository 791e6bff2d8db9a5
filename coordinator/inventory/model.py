"""What a provider may say of its site, checked; names people use for things. No I/O."""

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from twinsite import names
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Aborted, InvalidInput, NotFound, Precondition

# Of one report; a real site is far below, a defective or hostile provider is stopped here.
CLOUDS: Final = 256
HOSTS: Final = 1024
MACHINES_PER_HOST: Final = 4096
DISKS_PER_MACHINE: Final = 64  # and as many network cards
LONGEST_NAME: Final = 255
POINTS: Final = 8192  # of one VM, in one message of some 120 bytes each
STATUSES: Final = 8192
LARGEST: Final = 2**63 - 1  # what both databases keep in an integer
LARGEST_DISK: Final = 2**50
PREFIX: Final = 8  # characters of an id that are enough to mean it
LATEST: Final = 4_102_444_800.0  # 2100-01-01: a later instant is a defect of the sender

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")


class Unknown(NotFound):
    public = "there is no {error.noun} {error.name}"
    still_works = "nothing was changed"
    next_step = "twinsite {error.noun} list"

    def __init__(self, noun: str, name: str) -> None:
        self.noun, self.name = noun, shown(name)


class Ambiguous(NotFound):
    public = "{error.name} may mean several {error.noun}s: {error.candidates}"
    still_works = "nothing was changed"
    next_step = "use one of these ids"

    def __init__(self, noun: str, name: str, candidates: Sequence[str]) -> None:
        self.noun, self.name, self.candidates = noun, shown(name), ", ".join(candidates)


class ServerPaired(Precondition):
    public = "server {error.server} cannot be removed: its cloud {error.cloud} is in pair {error.pair}"
    still_works = "nothing was changed; replication goes on"
    next_step = "twinsite pair remove {error.pair}"

    def __init__(self, server: str, cloud: str, pair: str) -> None:
        self.server, self.cloud, self.pair = server, cloud, pair


class SessionReplaced(Aborted):
    public = "another session of this server took over"
    next_step = "check that one provider only runs with this identity"


class HelloMissing(InvalidInput):
    public = "the first message of a session must be hello"
    next_step = "update the provider"


class Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


Thing = TypeVar("Thing", bound=Named)


def resolve(noun: str, name: str, things: Iterable[Thing], *, qualifier: str = "") -> Thing:
    """The thing a person means by a name, an id, or the first PREFIX or more characters of one id.

    `qualifier` is the attribute a name may be told apart by, as in `server/cloud`. Raises Unknown, Ambiguous.
    """
    known = list(things)
    for thing in known:
        if thing.id == name:
            return thing
    found = [thing for thing in known if thing.name == name]
    if not found and qualifier and "/" in name:
        found = [thing for thing in known if f"{getattr(thing, qualifier)}/{thing.name}" == name]
    if not found and len(name) >= PREFIX:
        found = [thing for thing in known if thing.id.startswith(name)]
    if not found:
        raise Unknown(noun, name)
    if len(found) > 1:
        raise Ambiguous(noun, name, [f"{thing.id} ({thing.name})" for thing in found[:10]])
    return found[0]


@dataclass(frozen=True, slots=True)
class ReportedHost:
    """One host as its provider sees it; every string and number is checked."""

    id: str
    name: str
    connected: bool
    agent_version: str
    hypervisor: str
    replication_address: str  # "host:port", empty: unknown
    free_bytes: int
    total_bytes: int
    machines: tuple[types_pb2.Machine, ...]
    present: frozenset[str]  # ids of all VMs it named, also of those that were refused


@dataclass(frozen=True, slots=True)
class Report:
    """One whole inventory; what was refused in it is in `refused`, a sentence each."""

    version: int
    clouds: tuple[link_pb2.Cloud, ...]
    networks: tuple[link_pb2.Network, ...]
    classifications: tuple[link_pb2.StorageClassification, ...]
    hosts: tuple[ReportedHost, ...]
    refused: tuple[str, ...] = ()

    @classmethod
    def from_proto(cls, inventory: link_pb2.Inventory) -> "Report":
        """Never raises: one bad entry does not hide the others."""
        refused: list[str] = []
        clouds = {cloud.name: cloud for cloud in inventory.clouds[:CLOUDS] if _cloud_is_good(cloud, refused)}
        networks = {item.name: item for item in inventory.networks if _good_free_name("network", item.name, refused)}
        classes = {
            item.name: item
            for item in inventory.storage_classifications
            if _good_free_name("storage classification", item.name, refused)
        }
        hosts: dict[str, ReportedHost] = {}
        for presence in inventory.hosts[:HOSTS]:
            host = _host(presence, refused)
            if host is not None:
                hosts[host.id] = host
        for kind, sent, limit in (("clouds", len(inventory.clouds), CLOUDS), ("hosts", len(inventory.hosts), HOSTS)):
            if sent > limit:
                refused.append(f"{sent} {kind} were reported, {limit} are read")
        return cls(
            version=min(inventory.version, LARGEST),
            clouds=tuple(clouds.values()),
            networks=tuple(networks.values()),
            classifications=tuple(classes.values()),
            hosts=tuple(hosts.values()),
            refused=tuple(refused),
        )

    def place(self, host_name: str) -> tuple[str, str]:
        """(cloud, host group) a host is in; empty strings: in none."""
        for cloud in self.clouds:
            for group in cloud.host_groups:
                if host_name in group.hosts:
                    return cloud.name, group.name
        return "", ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What applying a report changed, for those who depend on it."""

    addresses: frozenset[str] = frozenset()  # ids of hosts whose replication address changed
    machines: frozenset[str] = frozenset()  # ids of VMs that came, went, or whose disks changed

    def __bool__(self) -> bool:
        return bool(self.addresses or self.machines)


def machine_is_good(machine: types_pb2.Machine) -> bool:
    """May this VM description be kept: its ids are UUIDs, its names are names, its disks have a possible size."""
    return (
        is_uuid(machine.id)
        and _free_name(machine.name)
        and len(machine.disks) <= DISKS_PER_MACHINE
        and len(machine.nics) <= DISKS_PER_MACHINE
        and len({disk.id for disk in machine.disks}) == len(machine.disks)
        and all(len(text) <= LONGEST_NAME for text in _texts(machine))
        and all(is_uuid(disk.id) and 0 < disk.size_bytes <= LARGEST_DISK for disk in machine.disks)
        and machine.memory_bytes <= LARGEST
    )


def _texts(machine: types_pb2.Machine) -> list[str]:
    nics = [text for nic in machine.nics for text in (nic.mac, nic.network)]
    return [machine.purpose, *(disk.name for disk in machine.disks), *nics]


def is_uuid(text: str) -> bool:
    """Is it a UUID in its canonical form? Ids become parts of keys, so that there is one way to write each."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def address(text: str) -> str:
    """A `host:port` as it came, or empty when it is none."""
    match = _ADDRESS.fullmatch(text)
    return text if match and 0 < int(match[2]) < 65536 else ""


def instant(stamp: Timestamp) -> float:
    """Seconds since 1970, or 0 for an absent or impossible one."""
    seconds = stamp.seconds + stamp.nanos / 1e9
    return seconds if 0 < seconds < LATEST else 0.0


def stamp(seconds: float) -> Timestamp | None:
    """The other way; None for 0 (never)."""
    if not seconds:
        return None
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


def disks_of(machine: types_pb2.Machine) -> tuple[tuple[str, int], ...]:
    """(id, size in bytes) of every disk, in a stable order."""
    return tuple(sorted((disk.id, disk.size_bytes) for disk in machine.disks))


def shown(text: str) -> str:
    """Text of a peer as it may stand in a table or a log line."""
    cut = text if len(text) <= 40 else text[:40] + "…"
    return cut if cut.isprintable() else ascii(cut)


def _free_name(name: str) -> bool:
    """VMs and networks were named by others' rules, so nearly all is good; but no name is a path or two lines."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and not set(name) & {"/", "\\"}


def _good_free_name(noun: str, name: str, refused: list[str]) -> bool:
    if _free_name(name):
        return True
    refused.append(f"{noun} {shown(name)} has no valid name")
    return False


def _good_name(noun: str, name: str, refused: list[str]) -> bool:
    try:
        names.check(name, noun)
    except names.InvalidName as error:
        refused.append(str(error))
        return False
    return True


def _cloud_is_good(cloud: link_pb2.Cloud, refused: list[str]) -> bool:
    return _good_name("cloud", cloud.name, refused) and all(
        _good_name("host group", group.name, refused) for group in cloud.host_groups
    )


def _host(presence: link_pb2.HostPresence, refused: list[str]) -> ReportedHost | None:
    status = presence.status
    if not re.fullmatch(r"h-[0-9a-f]{12}", status.host_id) or not _good_name("host", status.name, refused):
        refused.append(f"host {shown(status.host_id)} has no valid id or name")
        return None
    machines = {}
    for machine in status.machines[:MACHINES_PER_HOST]:
        if machine_is_good(machine):
            machines[machine.id] = machine
        else:
            refused.append(f"VM {shown(machine.name)} on {status.name} is described wrongly")
    return ReportedHost(
        id=status.host_id,
        name=status.name,
        connected=presence.connected,
        agent_version=shown(status.agent_version),
        hypervisor=shown(status.hypervisor),
        replication_address=address(status.replication_address),
        free_bytes=min(status.store_free_bytes, LARGEST),
        total_bytes=min(status.store_total_bytes, LARGEST),
        machines=tuple(machines.values()),
        present=frozenset(machine.id for machine in status.machines),
    )
