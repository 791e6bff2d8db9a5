"""Settings of the coordinator; `deploy/config/coordinator.toml` shows every one at its default."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PROGRAM: Final = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state: Path = Path("/var/lib/twinsite/coordinator")  # holds the vault's authority: back it up
    listen_enrollment: str = "127.0.0.1:9443"  # registration and login: TLS that asks for no client certificate
    listen: str = "127.0.0.1:9444"  # everything else: mutual TLS
    advertise_enrollment: str = ""  # host:port written into registration keys; empty: the listen address
    advertise: str = ""  # host:port told to members who enrolled; empty: the listen address
    database: str = field(
        default="", repr=False
    )  # postgresql://USER:PASSWORD@HOST/NAME; empty: SQLite at STATE/coordinator.db
    reflection: bool = False  # lets tools such as grpcurl list the services
    log_level: str = "info"
    log_json: bool = False

    def __post_init__(self) -> None:
        for name in ("listen_enrollment", "listen", "advertise_enrollment", "advertise"):
            address = getattr(self, name)
            host, colon, port = address.rpartition(":")
            optional = name.startswith("advertise") and not address
            if not optional and not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
                raise ValueError(f"{name} must be HOST:PORT, it is {address!r}")
        if self.database and not self.database.startswith(("postgresql://", "postgres://")):
            raise ValueError("database must begin with postgresql://, or be empty for SQLite")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level must be debug, info, warning or error, it is {self.log_level!r}")

    @property
    def database_url(self) -> str:
        """For `coordinator.store.engine.Database`. May hold a password: never logged."""
        if not self.database:
            return f"sqlite+aiosqlite:///{self.state.absolute() / 'coordinator.db'}"
        return "postgresql+psycopg://" + self.database.partition("://")[2]
