"""Two sites on one machine: a coordinator, and per site a provider and a host agent, with own folders and ports."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from demo.ports import free_port
from demo.process import BIN, Program, ProgramFailed

T = TypeVar("T")
SITES: Final = ("a", "b")
_FABRIC: Final = """\
[[clouds]]
name = "gold-{site}"
networks = ["vmnet-{site}"]
storage_classifications = ["fast-{site}"]

[[clouds.host_groups]]
name = "group-{site}"
hosts = ["host-{site}1"]

[[networks]]
name = "vmnet-{site}"
logical_network = "corp"
subnets = ["10.20.0.0/24"]

[[storage_classifications]]
name = "fast-{site}"
description = "local disks"
"""


class CommandFailed(Exception):  # named for the fact
    """A CLI command ended with another status than expected."""

    def __init__(self, arguments: tuple[str, ...], status: int, text: str) -> None:
        super().__init__(f"{' '.join(arguments)}: exit status {status}\n{text.strip()}")
        self.status, self.text = status, text


def until(what: str, check: Callable[[], T | None], *, timeout: float = 60.0, every: float = 0.1) -> T:
    """Poll until `check` gives something true. Raises ProgramFailed naming what was waited for."""
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise ProgramFailed(f"waited {timeout:.0f} s for {what}")
        time.sleep(every)  # real processes, real time


@dataclass(slots=True)
class Lab:
    """Everything below `root`; nothing of it is shared between the programs but loopback."""

    root: Path
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    ports: dict[str, int] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)

    def lay_out(self, *, host_settings: Mapping[str, Mapping[str, object]] | None = None) -> None:
        """Write settings files; `host_settings` adds lines to a site's host agent, by site."""
        names = (
            "enrollment",
            "link",
            *(f"{port}-{site}" for site in SITES for port in ("join", "hosts", "replication")),
        )
        self.ports = {name: free_port() for name in names}
        self.root.mkdir(parents=True, exist_ok=True)
        self._settings(
            "coordinator",
            state=self.root / "coordinator",
            listen_enrollment=self.address("enrollment"),
            listen=self.address("link"),
        )
        self._program("coordinator", "twinsite-coordinator")
        for site in SITES:
            provider, host = f"provider-{site}", f"host-{site}"
            (self.root / f"fabric-{site}.toml").write_text(_FABRIC.format(site=site))
            self._settings(
                provider,
                state=self.root / provider,
                fabric=self.root / f"fabric-{site}.toml",
                listen_join=self.address(f"join-{site}"),
                listen=self.address(f"hosts-{site}"),
            )
            self._program(provider, "twinsite-provider")
            settings: dict[str, object] = {
                "state": self.root / host,
                "join_file": self.root / f"join-{site}.json",
                "store": self.root / host / "store",
                "vms": self.vms(site),
                "listen": self.address(f"replication-{site}"),
            }
            self._settings(host, **{**settings, **(host_settings or {}).get(site, {})})
            self._program(host, "twinsite-host")
        (self.root / "password").write_text(self.password)
        (self.root / "password").chmod(0o600)

    def address(self, port: str) -> str:
        return f"127.0.0.1:{self.ports[port]}"

    def vms(self, site: str) -> Path:
        return self.root / f"host-{site}" / "vms"

    def config(self, name: str) -> Path:
        return self.root / f"{name}.toml"

    def __getitem__(self, name: str) -> Program:
        return self.programs[name]

    # ---- the programs' own commands ------------------------------------------------------------------------------

    def run(self, *arguments: str, status: int = 0, timeout: float = 120.0) -> str:
        """One command of ours to its end; stdout. Raises CommandFailed when it ends with another status."""
        environment = {**os.environ, "TWINSITE_HOME": str(self.root / "login"), "TWINSITE_NO_INPUT": "1"}
        done = subprocess.run(
            [str(BIN / arguments[0]), *arguments[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != status:
            raise CommandFailed(arguments, done.returncode, done.stdout + done.stderr)
        return done.stdout if status == 0 else done.stdout + done.stderr

    def cli(self, *arguments: str, status: int = 0, timeout: float = 600.0) -> str:
        """`twinsite …`"""
        return self.run("twinsite", *arguments, status=status, timeout=timeout)

    def json(self, *arguments: str) -> dict[str, Any]:
        """`twinsite … -o json`; the last line, which is the result."""
        lines = self.cli(*arguments, "-o", "json").splitlines()
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def login(self) -> None:
        self.cli(
            "login",
            "--coordinator",
            self.address("enrollment"),
            "--ca-file",
            str(self.root / "coordinator" / "roots.pem"),
            "--user",
            "admin",
            "--password-file",
            str(self.root / "password"),
        )

    # ---- the walk to two connected sites -------------------------------------------------------------------------

    def start_coordinator(self) -> None:
        """With its first administrator, logged in."""
        config = str(self.config("coordinator"))
        password = str(self.root / "password")
        self.run("twinsite-coordinator", "--config", config, "admin", "create", "admin", "--password-file", password)
        self["coordinator"].start()
        self.login()

    def create_key(self, *, ttl: str = "5d") -> Path:
        path = self.root / "registration.json"
        self.cli("key", "create", "--ttl", ttl, "-O", str(path))
        return path

    def register(self, site: str, key: Path) -> None:
        config = str(self.config(f"provider-{site}"))
        name = ("--name", f"vmm-{site}", "--vault-name", "demo", "--sync-clouds", "all")
        self.run("twinsite-provider", "--config", config, "register", "--key-file", str(key), *name)

    def start_site(self, site: str) -> None:
        """Provider and host agent; the host joins with its own key."""
        config = str(self.config(f"provider-{site}"))
        join = self.root / f"join-{site}.json"
        if not join.exists():
            self.run(
                "twinsite-provider",
                "--config",
                config,
                "host-key",
                "create",
                "--host",
                f"host-{site}1",
                "-O",
                str(join),
            )
        self[f"provider-{site}"].start()
        self[f"host-{site}"].start()

    def sites_connected(self) -> bool:
        """Whether the coordinator sees every host and both clouds."""
        hosts = self.json("host", "list")["items"]
        clouds = {cloud["name"] for cloud in self.json("cloud", "list")["items"]}
        return sum(host["connected"] for host in hosts) == len(SITES) and {"gold-a", "gold-b"} <= clouds

    def up(self, *, frequency: str = "5s") -> None:
        """From nothing to two paired clouds, in one go."""
        self.start_coordinator()
        self.cli("vault", "create", "demo")
        key = self.create_key()
        for site in SITES:
            self.register(site, key)
            self.start_site(site)
        until("both sites", lambda: self.sites_connected() or None)
        self.cli("pair", "create", "gold-a", "gold-b", "--frequency", frequency)

    # ---- what is known about a VM --------------------------------------------------------------------------------

    def vm(self, name: str = "web01") -> dict[str, Any]:
        return self.json("vm", "show", name)

    def protection(self, name: str = "web01") -> dict[str, Any]:
        found: dict[str, Any] = self.vm(name).get("protection", {})
        return found

    def points(self, name: str = "web01") -> list[dict[str, Any]]:
        """Newest first."""
        items: list[dict[str, Any]] = self.json("point", "list", name)["items"]
        return items

    # ---- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """All programs, in an orderly way where they still run."""
        for name in reversed(self.programs):
            if self.programs[name].running:
                self.programs[name].stop()

    def kill(self) -> None:
        """All programs, at once; for the end of a test whatever happened."""
        for program in self.programs.values():
            if program.running:
                program.kill()

    def _settings(self, name: str, **values: object) -> None:
        tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
        lines = [_line(key, value) for key, value in values.items() if key not in tables]
        for table, entries in tables.items():
            lines += [f"[{table}]", *(_line(key, value) for key, value in entries.items())]
        self.config(name).write_text("\n".join(lines) + "\n")

    def _program(self, name: str, program: str) -> None:
        state = self.root / name
        state.mkdir(exist_ok=True)
        arguments = (program, "--config", str(self.config(name)), "serve")
        self.programs[name] = Program(name, arguments, state, self.root / f"{name}.log")


def _line(key: str, value: object) -> str:
    """Of a TOML file; what JSON writes of these types, TOML reads."""
    return f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
