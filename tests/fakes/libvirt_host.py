"""libvirt hosts of one test: each with its own libvirtd, without a trace afterwards, whatever happens.

A conftest.py imports the fixtures: `from tests.fakes.libvirt_host import libvirt_host, libvirt_hosts`.
"""

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest

from deploy.lab.libvirt_host import LibvirtHost, hindrance
from deploy.lab.machine import connect, run, until
from twinsite.units import KiB, MiB

_RESULT: Final = re.compile(r"^(?:(?:wrote|read|discard) [0-9]+/|.*failed: |command .* not found)", re.MULTILINE)
_FAILURE: Final = re.compile(r"failed: |not found")
_DOMAIN: Final = """\
<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<on_reboot>restart</on_reboot>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
<serial type='null'/><memballoon model='none'/></devices></domain>"""
_DISK: Final = """\
<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/><source file='{path}'/>\
<target dev='{target}' bus='virtio'/></disk>"""


@contextmanager
def libvirt_host_running(name: str = "a1") -> Iterator[LibvirtHost]:
    """A host that runs inside the block. Raises LabFailed."""
    root = Path(tempfile.mkdtemp(prefix="tsl-"))  # short: it holds sockets
    host = LibvirtHost(root, name)
    try:
        host.boot()
        yield host
    finally:
        host.remove()


def need_libvirt() -> None:
    """Skip the test, with the reason, where no libvirt host can run."""
    if reason := hindrance():
        pytest.skip(reason)


@pytest.fixture
def libvirt_host() -> Iterator[LibvirtHost]:
    need_libvirt()
    with libvirt_host_running() as host:
        yield host


@pytest.fixture
def libvirt_hosts() -> Iterator[Callable[[], tuple[LibvirtHost, LibvirtHost]]]:
    """Two hosts, a cable between them: 10.99.0.1 is the first, 10.99.0.2 the second."""
    need_libvirt()
    with ExitStack() as stack:

        def two() -> tuple[LibvirtHost, LibvirtHost]:
            first, second = (stack.enter_context(libvirt_host_running(name)) for name in ("a1", "b1"))
            connect(first.machine, "wire0=10.99.0.1/24", second.machine, "wire0=10.99.0.2/24")
            return first, second

        yield two


@dataclass(frozen=True, slots=True)
class IdleGuest:
    """A domain that boots nothing: QEMU runs, its firmware finds no system; the test writes to its disks instead."""

    host: LibvirtHost
    name: str
    uuid: str
    disks: Mapping[str, Path]  # by target: vda, vdb …

    @classmethod
    def define(
        cls,
        host: LibvirtHost,
        name: str = "web01",
        *,
        disks: Mapping[str, int] | None = None,
        disk_format: str = "qcow2",
        options: Sequence[str] = (),
        extra: str = "",
        memory_mib: int = 32,
    ) -> "IdleGuest":
        """With blank disks of so many bytes (vda and vdb of 16 MiB).

        `options` go to `qemu-img create -o`, `extra` is device XML.
        """
        sizes = disks or {"vda": 16 * MiB, "vdb": 16 * MiB}
        paths = {target: host.images / f"{name}-{target}.{disk_format}" for target in sizes}
        for target, size in sizes.items():
            words = [word for option in options for word in ("-o", option)]
            run("qemu-img", "create", "-q", "-f", disk_format, *words, str(paths[target]), str(size))
        devices = "".join(_DISK.format(format=disk_format, path=path, target=at) for at, path in paths.items())
        guest = cls(host, name, str(uuid.uuid4()), paths)
        guest.redefine(_DOMAIN.format(name=name, uuid=guest.uuid, devices=devices + extra, memory=memory_mib))
        return guest

    def redefine(self, xml: str) -> None:
        file = self.host.root / f"{self.name}.xml"
        file.write_text(xml)
        self.host.virsh("define", str(file))

    def start(self) -> "IdleGuest":
        self.host.virsh("start", self.name)
        return self

    def destroy(self) -> None:
        """In the way that lets QEMU close its images."""
        self.host.virsh("destroy", self.name)

    def kill(self) -> None:
        """SIGKILL to its QEMU."""
        self.host.kill_qemu(self.name)

    def write(self, disk: str, pattern: int, offset: int, length: int) -> None:
        """So many bytes of a value (1 to 255), through the device as a guest does: an open backup job sees it."""
        self._io(disk, f"write -P {pattern} {offset} {length}")

    def zero(self, disk: str, offset: int, length: int) -> None:
        """With a write-zeroes request, as mkfs does."""
        self._io(disk, f"write -z -u {offset} {length}")

    def discard(self, disk: str, offset: int, length: int) -> None:
        """As fstrim does."""
        self._io(disk, f"discard {offset} {length}")

    def fill(self, disk: str, seed: int, *, size: int, step: int = 64 * KiB) -> None:
        """A value of its own in every `step` bytes of the first `size`."""
        places = range(0, size, step)
        self._io(disk, *(f"write -P {1 + (seed + at // step) % 255} {at} {min(step, size - at)}" for at in places))

    def holds(self, disk: str, pattern: int, offset: int, length: int) -> bool:
        """Whether a running guest would read that value everywhere in the range."""
        return "verification failed" not in self._io(disk, f"read -P {pattern} {offset} {length}")

    def flush(self, disk: str) -> None:
        self.host.monitor(self.name, self._line(self._alias(disk), "flush"))

    def content(self, disk: str) -> bytes:
        """The whole disk as a guest sees it; what it holds now when the guest is suspended or off (flushed first)."""
        if self.host.state(self.name) != "shut off":
            self.flush(disk)
        target = self.host.root / f"content-{uuid.uuid4()}"
        try:
            run("qemu-img", "convert", "-U", "-O", "raw", str(self._top(disk)), str(target))
            return target.read_bytes()
        finally:
            target.unlink(missing_ok=True)

    def _top(self, disk: str) -> Path:
        """The file on top of the chain now; snapshots by others change it."""
        lines = self.host.virsh("domblklist", self.name).splitlines()
        return Path(next(line.split(maxsplit=1)[1] for line in lines if line.split()[0] == disk))

    def _io(self, disk: str, *commands: str) -> str:
        """What qemu-io said to them: in the domain's log, where QEMU's standard output goes."""
        alias, log = self._alias(disk), self.host.root / "log" / "qemu" / f"{self.name}.log"
        said = log.stat().st_size
        for at in range(0, len(commands), 200):
            lines = (self._line(alias, command) for command in commands[at : at + 200])
            self.host.virsh("; ".join(f"qemu-monitor-command --hmp {self.name} '{line}'" for line in lines))

        def answer() -> str | None:
            text = log.read_bytes()[said:].decode()
            return text if len(_RESULT.findall(text)) >= len(commands) else None

        text = until(f"qemu-io on {self.name}", answer)
        assert not _FAILURE.search(text), text
        return text

    def _line(self, alias: str, command: str) -> str:
        return f'qemu-io -d /machine/peripheral/{alias}/virtio-backend "{command}"'

    def _alias(self, disk: str) -> str:
        """QEMU's name of the device behind a target."""
        tree = ET.fromstring(self.host.virsh("dumpxml", self.name))
        return next(
            found.attrib["name"]
            for entry in tree.iterfind("devices/disk")
            if (target := entry.find("target")) is not None
            and target.get("dev") == disk
            and (found := entry.find("alias")) is not None
        )


def traces(root: Path) -> list[str]:
    """What a host left behind on this machine: processes, mounts, files that name its directory."""
    found = [f"file {root}"] if root.exists() else []
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if str(root) in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(root) in line and "pytest" not in line:
            found.append(f"process {process.name} {line}")
    return found
