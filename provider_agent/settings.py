"""Settings of the provider agent; `deploy/config/provider.toml` shows every one at its default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAM: Final = "provider"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state: Path = Path("/var/lib/twinsite/provider")
    fabric: Path = Path("/etc/twinsite/fabric.toml")
    listen_join: str = "127.0.0.1:9445"  # hosts join here, once: TLS that asks for no client certificate
    listen: str = "127.0.0.1:9446"  # hosts keep their session here: mutual TLS
    advertise_join: str = ""  # host:port written into join files; empty: the listen address
    advertise: str = ""  # host:port told to hosts that joined; empty: the listen address
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        for name in ("listen_join", "listen", "advertise_join", "advertise"):
            address = getattr(self, name)
            host, colon, port = address.rpartition(":")
            if address and not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
                raise ValueError(f"{name} must be HOST:PORT, it is {address!r}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level must be debug, info, warning or error, it is {self.log_level!r}")
