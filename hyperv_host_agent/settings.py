"""Settings of the host agent; `deploy/config/host.toml` shows every one at its default."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from twinsite.units import GiB, MiB

PROGRAM: Final = "host"
BACKENDS: Final = ("embedded",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    spool_memory_bytes: int = 64 * MiB  # of a cycle waiting to be sent; what is beyond goes to a file in state/spool
    compressors: int = 2  # threads that hash and compress, for all VMs of this host
    copies: int = 2  # whole copies (initial, resynchronization) at one time; ordinary cycles never wait for them

    def __post_init__(self) -> None:
        if self.spool_memory_bytes < 0:
            raise ValueError("transfer.spool_memory_bytes must not be negative")
        if not 1 <= self.compressors <= 16:
            raise ValueError("transfer.compressors must be 1 to 16")
        if self.copies < 1:
            raise ValueError("transfer.copies must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state: Path = Path("/var/lib/twinsite/host")  # identity, journal, assignments, spool
    join_file: Path = Path("/etc/twinsite/join.json")  # from `twinsite-provider host-key create`; read on first start
    store: Path = Path("/var/lib/twinsite/replicas")  # what this host holds of other hosts' VMs
    store_reserve_bytes: int = 1 * GiB  # replication stops before the store's file system has less than this
    vms: Path = Path("/var/lib/twinsite/vms")  # of the embedded hypervisor
    hypervisor: str = "embedded"
    listen: str = "127.0.0.1:8084"  # replication server
    advertise: str = ""  # host:port the peer dials; empty: the listen address
    log_level: str = "info"
    log_json: bool = False
    transfer: TransferSettings = field(default_factory=TransferSettings)

    def __post_init__(self) -> None:
        if self.hypervisor not in BACKENDS:
            raise ValueError(f"hypervisor must be one of: {', '.join(BACKENDS)}")
        if self.store_reserve_bytes < 0:
            raise ValueError("store_reserve_bytes must not be negative")
        for name, address in (("listen", self.listen), ("advertise", self.advertise)):
            host, colon, port = address.rpartition(":")
            if address and not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
                raise ValueError(f"{name} must be host:port")
        if self.log_level.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("log_level must be debug, info, warning or error")
