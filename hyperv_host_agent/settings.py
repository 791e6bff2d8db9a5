"""Settings of the host agent; `deploy/config/host.toml` shows every one at its default."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hyperv_host_agent.replication import rates
from twinsite.schedules import parse_days
from twinsite.units import GiB, MiB, parse_rate

PROGRAM: Final = "host"
BACKENDS: Final = ("embedded", "libvirt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSettings:
    """A cap on all that this host sends, in a part of the week by its local time."""

    days: str = "mon-sun"
    from_: str = "00:00"
    to: str = "24:00"  # not after `from`: on the next day
    rate: str

    def __post_init__(self) -> None:
        self.rule()

    def rule(self) -> rates.Rule:
        """Raises ValueError."""
        days = parse_days(self.days.replace(" ", ""))
        made = rates.Rule(days, _minute("from", self.from_), _minute("to", self.to), parse_rate(self.rate))
        if problem := rates.problem(made):
            raise ValueError(f"a rule of transfer.rates has {problem.removeprefix('a rate ')}: {self.rate}")
        return made


def _minute(name: str, text: str) -> int:
    found = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00", text, re.ASCII)
    if found is None or (text == "24:00" and name == "from"):
        raise ValueError(f'{name} {text!r} is not a time of the day such as "08:00"')
    return 24 * 60 if found[1] is None else int(found[1]) * 60 + int(found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    spool_memory_bytes: int = 64 * MiB  # of a cycle waiting to be sent; what is beyond goes to a file in state/spool
    compressors: int = 2  # threads that hash and compress, for all VMs of this host
    copies: int = 2  # whole copies (initial, resynchronization) at one time; ordinary cycles never wait for them
    silent_seconds: int = 1800  # a source that says nothing for so long is given up; the least cap needs 180
    concurrency: int = 0  # cycles of all VMs at one time; 0: as many as raise the throughput
    rates: tuple[RateSettings, ...] = ()  # the first that covers a moment caps what this host sends

    def __post_init__(self) -> None:
        if self.spool_memory_bytes < 0:
            raise ValueError("transfer.spool_memory_bytes must not be negative")
        if not 1 <= self.compressors <= 16:
            raise ValueError("transfer.compressors must be 1 to 16")
        if self.copies < 1:
            raise ValueError("transfer.copies must be at least 1")
        if not 1 <= self.silent_seconds <= 86400:
            raise ValueError("transfer.silent_seconds must be 1 to 86400")
        if not 0 <= self.concurrency <= 256:
            raise ValueError("transfer.concurrency must be 0 to 256")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """VMs that were on network `from` at their source are plugged into network or bridge `to` here."""

    from_: str
    to: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSettings:
    """After a failover the guest's NIC with this MAC gets the address, through the guest agent."""

    mac: str
    address: str  # 10.1.0.7/24
    gateway: str = ""  # empty: its default route stays

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", self.mac, re.ASCII | re.IGNORECASE):
            raise ValueError(f"mac {self.mac!r} is not of the form 52:54:00:aa:bb:01")
        if "/" not in self.address:
            raise ValueError(f"address {self.address!r} is without its prefix, such as 10.1.0.7/24")
        ipaddress.ip_interface(self.address)
        if self.gateway:
            ipaddress.ip_address(self.gateway)


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorSettings:
    kind: str = "embedded"
    uri: str = "qemu:///system"  # of libvirt, on this host
    scratch: Path = Path("/var/lib/twinsite/scratch")  # what guests overwrite while a point is read
    networks: tuple[NetworkSettings, ...] = ()  # a network that is not named keeps its name
    guest_seconds: int = 60  # a started copy is waited for until its guest agent answers; 0: not at all
    addresses: tuple[AddressSettings, ...] = ()  # that guests get here after a failover
    test_network: str = ""  # for test copies, cut off from all others; empty: they are unplugged

    def __post_init__(self) -> None:
        if self.kind not in BACKENDS:
            raise ValueError(f"hypervisor.kind must be one of: {', '.join(BACKENDS)}")
        if not 0 <= self.guest_seconds <= 3600:
            raise ValueError("hypervisor.guest_seconds must be 0 to 3600")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state: Path = Path("/var/lib/twinsite/host")  # identity, journal, assignments, spool
    join_file: Path = Path("/etc/twinsite/join.json")  # from `twinsite-provider host-key create`; read on first start
    store: Path = Path("/var/lib/twinsite/replicas")  # what this host holds of other hosts' VMs
    store_reserve_bytes: int = 1 * GiB  # replication stops before the store's file system has less than this
    maintain_bytes_per_second: int = 200 * 10**6  # what merging of recovery points may write, for all replicas together
    scrub_bytes_per_second: int = 20 * MiB  # at which replicas are read and checked, again and again
    scrub_days: int = 7  # every replica is checked whole in so many days, at a higher rate if need be
    vms: Path = Path("/var/lib/twinsite/vms")  # VMs of the embedded hypervisor; overlays of replicas that run
    listen: str = "127.0.0.1:8084"  # replication server
    advertise: str = ""  # host:port the peer dials; empty: the listen address
    log_level: str = "info"
    log_json: bool = False
    hypervisor: HypervisorSettings = field(default_factory=HypervisorSettings)
    transfer: TransferSettings = field(default_factory=TransferSettings)

    def __post_init__(self) -> None:
        if self.store_reserve_bytes < 0:
            raise ValueError("store_reserve_bytes must not be negative")
        if self.maintain_bytes_per_second < 10**6:
            raise ValueError("maintain_bytes_per_second must be at least 1000000")
        if self.scrub_bytes_per_second < 1 * MiB:
            raise ValueError("scrub_bytes_per_second must be at least 1048576")
        if not 1 <= self.scrub_days <= 365:
            raise ValueError("scrub_days must be 1 to 365")
        for name, address in (("listen", self.listen), ("advertise", self.advertise)):
            host, colon, port = address.rpartition(":")
            if address and not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
                raise ValueError(f"{name} must be host:port")
        if self.log_level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("log_level must be debug, info, warning or error")
