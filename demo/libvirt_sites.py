"""Sites of libvirt hosts: real VMs, each site in namespaces of this machine."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo import disk
from demo.lab import SITES, Lab
from demo.process import ProgramFailed
from demo.sites import Machine, Source
from deploy.lab import guest_image
from deploy.lab.accelerator import accelerator
from deploy.lab.guest import Guest
from deploy.lab.hosts import ISOLATED, LAN, Hosts
from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import LabFailed, run
from deploy.lab.network import LabNetwork
from hyperv_host_agent.hypervisors.libvirt.describe import describe
from twinsite.units import MiB

_WATCH: Final = Path(guest_image.__file__).with_name("record_watch.py")
_FILES_BYTES: Final = 96 * MiB  # of this machine's own files on the first disk
_DISK_BYTES: Final = 160 * MiB
_SECOND_BYTES: Final = 64 * MiB
_INTERVAL: Final = 0.1  # seconds between records


class NoImage(Exception):  # named for the fact
    """A disk of the user's has no system that writes records."""


@dataclass(slots=True)
class LibvirtMachine:
    """A VM on a host, plugged into a network there."""

    guest: Guest
    network: LabNetwork

    def boot(self) -> tuple[int, list[str]]:
        with said():
            found = self.guest.at_boot()
        return found["first"], [found["problems"]] if found["problems"] else []

    def answers(self) -> str:
        with said():
            self.guest.answer(self.network)
            return f"answers at {self.guest.address(self.network)} in network {self.network.name}"

    def newest_record(self, *, before: float = float("inf")) -> int:
        if before != float("inf"):
            raise ValueError("only a source is watched")
        with said():
            return int(self.guest.answer(self.network)["record"])

    def log(self) -> str:
        return f"less {self.guest.console_path()}"


@dataclass(slots=True)
class LibvirtSource(LibvirtMachine):
    """The protected VM; a client of its writes down what it acknowledges, and when."""

    watch: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with said():
            self.guest.up()
            url = f"http://{self.guest.address(self.network)}/cgi-bin/state"
        program = (sys.executable, "-I", str(_WATCH), url, str(self._seen()))
        nowhere = subprocess.DEVNULL  # it outlives us when the laboratory stays
        self.watch = subprocess.Popen(
            self.guest.host.machine.inside(*program),
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )

    def newest_record(self, *, before: float = float("inf")) -> int:
        lines = (line.split() for line in self._seen().read_text().splitlines())
        return max((int(record) for at, record in lines if float(at) <= before), default=0)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[int]:
        host, name = self.guest.host, self.guest.name
        with said():
            host.virsh("domfsfreeze", name)
            try:
                yield int(self.guest.get(self.network, "/first").split(b"\n")[-2].split()[0])
            finally:
                host.virsh("domfsthaw", name)

    def digests(self) -> dict[str, str]:
        with said():
            found = {}
            for target, path in self.guest.disks().items():
                raw = self.guest.host.root / f"{target}.raw"
                run("qemu-img", "convert", "-U", "-O", "raw", str(path), str(raw))
                found[target] = disk.sha256(raw)
                raw.unlink()
            return found

    def end(self) -> None:
        """After its host."""
        if self.watch is not None:
            self.watch.wait()

    def _seen(self) -> Path:
        return self.guest.host.root / "acknowledged"


@dataclass(slots=True)
class LibvirtSites:
    """`held`: the hosts end when this process does."""

    lab: Lab
    held: bool = True
    number: int = 2  # of hosts; those after the second are no site's
    hosts: Hosts | None = None
    source: LibvirtSource | None = None

    def running(self) -> list[int]:
        return [host.machine.pid for host in Hosts.found(self._root()) if host.machine.up]

    def prepare(self, name: str, image: Path | None) -> tuple[Source, str]:
        if image is not None:
            raise NoImage("a disk of yours has no guest that writes records: IMAGE goes with the embedded hypervisor")
        with said():
            system = guest_image.build()
            kind = accelerator(system)
            self.hosts = Hosts(self._root(), held=self.held)
            self.hosts.boot(self.number)
            self.lab.lay_out(host_settings={site: host_settings(self.hosts, self.lab, site) for site in SITES})
            network = self.hosts.network("a", LAN)
            first = self.lab.root / "first.img"
            content = disk.ext4_of_real_files(
                first, size=_DISK_BYTES, content=_FILES_BYTES, staging=self.lab.root / "staging"
            )
            guest = Guest.define(
                *(self.hosts["a"], system, name),
                network=network,
                sizes={"vda": _DISK_BYTES, "vdb": _SECOND_BYTES},
                first=first,
                interval=_INTERVAL,
                accelerator=kind,
            )
            first.unlink()
        self.source = LibvirtSource(guest, network)
        return self.source, f"two libvirt hosts ({kind}), Debian's kernel, ext4 with {content // MiB} MiB of files"

    def copies(self, purpose: str) -> list[Machine]:
        hosts = self._hosts()
        network = hosts.network("b", ISOLATED if purpose == "test" else LAN)
        return [LibvirtMachine(guest, network) for guest in guests(hosts["b"], purpose)]

    def kill(self, site: str) -> None:
        self._hosts()[site].power_off()

    def end(self) -> None:
        if self.hosts is not None:
            self.hosts.remove()
        if self.source is not None:
            self.source.end()

    def how_to_end(self) -> str:
        return f"{sys.executable} -m deploy.lab --root {self._root()} down"

    def _root(self) -> Path:
        return self.lab.root / "sites"

    def _hosts(self) -> Hosts:
        if self.hosts is None:
            raise ProgramFailed("the hosts were never booted")
        return self.hosts


def host_settings(hosts: Hosts, lab: Lab, site: str) -> dict[str, object]:
    """Of the site's host agent, beside what every agent of the laboratory has."""
    return {
        "hypervisor": {
            "kind": "libvirt",
            "uri": hosts[site].uri,
            "scratch": lab.root / f"host-{site}" / "scratch",
            "test_network": ISOLATED,
        }
    }


def guests(host: LibvirtHost, purpose: str) -> list[Guest]:
    """VMs that Twinsite made on a host for a purpose: "replica", "test"; "" are all others."""
    names = host.virsh("list", "--all", "--name").splitlines()
    found = ((name, describe(host.virsh("dumpxml", name)).purpose.value) for name in names if name)
    return [Guest(host, name) for name, known in found if known == purpose]


@contextlib.contextmanager
def said() -> Iterator[None]:
    """What fails in a laboratory, in the demonstration's words."""
    try:
        yield
    except LabFailed as error:
        raise ProgramFailed(str(error)) from error
