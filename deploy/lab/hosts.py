"""Libvirt hosts of a laboratory on one machine: a, b, … with a cable between all of them and two networks on each.

`lan` is the network production guests are plugged into, `isolated` the one for test failovers. Both end at their host.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Final

from deploy.lab.libvirt_host import LibvirtHost, hindrance
from deploy.lab.machine import LabFailed, Machine, command_line, connect
from deploy.lab.network import LabNetwork

LAN: Final = "lan"
ISOLATED: Final = "isolated"
_LONGEST: Final = 107 - len("/host-a/run/libvirt/libvirt-sock-ro")  # of a path to a unix socket
_SUBNETS: Final = {LAN: "10.20.0.0/24", ISOLATED: "10.21.0.0/24"}


@dataclass(slots=True)
class Hosts:
    """Below `root`. `held`: they end when this process does; else they run until `remove`, in whatever process."""

    root: Path
    held: bool = True
    _hosts: dict[str, LibvirtHost] = field(default_factory=dict)
    _switch: Machine | None = None

    def __getitem__(self, letter: str) -> LibvirtHost:
        return self._hosts[letter]

    def __iter__(self) -> Iterator[LibvirtHost]:
        return iter(self._hosts.values())

    def network(self, letter: str, name: str) -> LabNetwork:
        return LabNetwork.of(self[letter], name)

    def boot(self, number: int = 2) -> None:
        """Raises LabFailed; what came up until then is taken down again."""
        if reason := hindrance():
            raise LabFailed(reason)
        if len(str(self.root)) > _LONGEST:
            raise LabFailed(f"{self.root} is too long: sockets are kept there, it may have {_LONGEST} characters")
        with contextlib.ExitStack() as undo:
            undo.callback(self.remove)
            self._switch = Machine("switch", binds={}, held=self.held)
            self._switch.boot()
            (self.root / "switch").mkdir(parents=True)
            (self.root / "switch" / "pid").write_text(str(self._switch.pid))
            self._switch.run("ip", "link", "add", "wire", "type", "bridge")
            self._switch.run("ip", "link", "set", "wire", "up")
            for at, letter in enumerate(ascii_lowercase[:number], 1):
                host = self._hosts[letter] = LibvirtHost(self.root / f"host-{letter}", f"host-{letter}", held=self.held)
                host.boot()
                self._plug(at, host)
            undo.pop_all()

    def _plug(self, at: int, host: LibvirtHost) -> None:
        assert self._switch is not None  # noqa: S101  # booted first
        connect(host.machine, f"wire0=10.99.0.{at}/24", self._switch, f"port{at}")
        self._switch.run("ip", "link", "set", f"port{at}", "master", "wire")
        for name, subnet in _SUBNETS.items():
            LabNetwork.create(host, name, subnet)

    def reboot(self, letter: str) -> None:
        """After a power cut: libvirtd, cable and networks are there again; guests that do not start with it are not."""
        host = self[letter]
        host.power_off()
        host.boot()
        self._plug(sorted(self._hosts).index(letter) + 1, host)

    @classmethod
    def found(cls, root: Path) -> "Hosts":
        """Those that another process left running below `root`, and those that do not run any more."""
        hosts = cls(root, held=False)
        for folder in sorted(root.glob("host-?")):
            host = hosts._hosts[folder.name[-1]] = LibvirtHost(folder, folder.name, held=False)
            host.resume()
        with contextlib.suppress(FileNotFoundError, ValueError):
            hosts._switch = Machine("switch", binds={}, held=False, pid=int((root / "switch" / "pid").read_text()))
        return hosts

    def remove(self) -> None:
        """Without a trace of them; repeatable."""
        for host in self._hosts.values():
            host.remove()
        self._hosts.clear()
        if self._switch is not None:
            self._switch.power_off()
        shutil.rmtree(self.root / "switch", ignore_errors=True)
        with contextlib.suppress(OSError):  # it may hold what is not of hosts
            self.root.rmdir()


def running_below(root: Path) -> list[int]:
    """Pids of whatever names a path below `root` on its command line, the one who asks and its parents aside."""
    asking, pid = set(), os.getpid()
    while pid:
        asking.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    running = {int(process.name) for process in Path("/proc").glob("[0-9]*")} - asking
    return sorted(pid for pid in running if any(f"{root}/" in word for word in command_line(pid)))
