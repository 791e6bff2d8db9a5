"""A domain that runs the laboratory's guest: its disks, what it answers over HTTP, what it wrote."""

import json
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.lab.guest_image import GuestImage
from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import LabFailed, find, run, until
from deploy.lab.network import LabNetwork

BOOT_SECONDS: Final = 120.0  # without KVM on a busy machine; seconds on an idle one
_DOMAIN: Final = """\
<domain type='{accelerator}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>192</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
<cmdline>console=ttyS0 panic=1 quiet {options}</cmdline></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}{nics}
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<serial type='file'><source path='{console}'/></serial><memballoon model='none'/></devices></domain>"""
_DISK: Final = """\
<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{path}'/>\
<target dev='{target}' bus='virtio'/></disk>"""
_NIC: Final = """\
<interface type='network'><mac address='{mac}'/><source network='{network}'/><model type='virtio'/>\
<rom enabled='no'/></interface>"""
_GET: Final = """\
import sys, urllib.request
sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read())
"""


@dataclass(frozen=True, slots=True)
class Guest:
    """A domain on a host, by name: one that was made here, or one that Twinsite made there of a replica."""

    host: LibvirtHost
    name: str

    @classmethod
    def define(
        cls,
        host: LibvirtHost,
        image: GuestImage,
        name: str = "web01",
        *,
        network: LabNetwork | None,
        sizes: Mapping[str, int],
        interval: float = 0.2,
        load: int = 0,
        first: Path | None = None,
        accelerator: str = "qemu",
    ) -> "Guest":
        """With new ext4 disks of so many bytes (vda, vdb); a record every `interval` seconds, `load` bytes with it.

        `first` is a raw image of an ext4 for vda, instead of an empty one. Raises LabFailed.
        """
        paths = {target: host.images / f"{name}-{target}.qcow2" for target in sizes}
        for target, size in sizes.items():
            if first is not None and target == "vda":
                run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(first), str(paths[target]))
            else:
                ext4_disk(paths[target], size)
        mac = "52:54:00:{:02x}:{:02x}:{:02x}".format(*uuid.uuid4().bytes[:3])
        document = _DOMAIN.format(
            accelerator=accelerator,
            name=name,
            uuid=uuid.uuid4(),
            kernel=image.kernel,
            initrd=image.initrd,
            options=f"lab.interval={interval} lab.load={load // 1024}",
            disks="".join(_DISK.format(path=path, target=target) for target, path in paths.items()),
            nics=_NIC.format(mac=mac, network=network.name) if network else "",
            console=host.images / f"{name}.console",
        )
        file = host.root / f"{name}.xml"
        file.write_text(document)
        host.virsh("define", str(file))
        return cls(host, name)

    def start(self) -> "Guest":
        self.host.virsh("start", self.name)
        return self

    def up(self) -> "Guest":
        """Started, and waited for until it writes and its guest agent answers. Raises LabFailed."""
        self.start()
        self.said("GUEST ready")
        ping = ("qemu-agent-command", self.name, '{"execute": "guest-ping"}')
        until("the guest agent", lambda: self.host.virsh(*ping, check=False), timeout=BOOT_SECONDS, every=0.2)
        return self

    def console_path(self) -> Path:
        """Where its serial port writes to. Raises LabFailed when it writes to no file."""
        source = self._xml().find("devices/serial/source")
        path = source.get("path") if source is not None else None
        if not path:
            raise LabFailed(f"the serial port of {self.name} writes to no file")
        return Path(path)

    def console(self) -> str:
        """All it wrote to its serial port since its domain started."""
        path = self.console_path()
        return path.read_text(errors="replace") if path.is_file() else ""

    def disks(self) -> dict[str, Path]:
        """File on top of each disk now, by the disk's name."""
        lines = [line.split(maxsplit=1) for line in self.host.virsh("domblklist", self.name).splitlines()]
        return {target: Path(path) for target, path in lines}

    def said(self, word: str, *, timeout: float = BOOT_SECONDS) -> str:
        """The first line of the console that holds it, waited for. Raises LabFailed with the console's end."""
        try:
            return until(
                f"{self.name} to say {word!r}",
                lambda: next((line for line in self.console().splitlines() if word in line), None),
                timeout=timeout,
            )
        except LabFailed as error:
            end = "\n".join(self.console().splitlines()[-25:])
            raise LabFailed(f"{error}; {self.host.state(self.name)}; the console's end:\n{end}") from None

    def at_boot(self) -> dict[str, Any]:
        """What it found on its disks when it booted: `first`, `second` (newest records), `problems`. Waits for it."""
        line = self.said('"event": "boot"')
        found: dict[str, Any] = json.loads(line[line.index("{") :])
        return found

    def address(self, network: LabNetwork) -> str:
        """Its lease on a network it is plugged into, waited for. Raises LabFailed."""
        macs = [found.get("address", "") for found in self._xml().iterfind("devices/interface/mac")]
        return until(
            f"{self.name} to get an address on {network.name} of {self.host.name}",
            lambda: next(filter(None, (network.address(mac) for mac in macs)), None),
            timeout=BOOT_SECONDS,
        )

    def get(self, network: LabNetwork, path: str = "/", *, timeout: float = 5.0) -> bytes:
        """What it answers over HTTP: /cgi-bin/state, /first and /second (its records), /log. Raises LabFailed."""
        url = f"http://{self.address(network)}{path}"
        inside = self.host.machine.run
        return inside(sys.executable, "-I", "-c", _GET, url, str(timeout), timeout=timeout + 10).encode()

    def answer(self, network: LabNetwork, *, timeout: float = BOOT_SECONDS) -> dict[str, Any]:
        """Its state over HTTP: `record` (newest on both disks), `at_boot`; asked until it answers. Raises LabFailed."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                found: dict[str, Any] = json.loads(self.get(network, "/cgi-bin/state"))
            except LabFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)  # a real guest that boots
            else:
                return found

    def _xml(self) -> ET.Element:
        return ET.fromstring(self.host.virsh("dumpxml", self.name))


def ext4_disk(path: Path, size: int) -> None:
    """A qcow2 image with an empty ext4. Raises LabFailed."""
    mkfs = find("mke2fs")
    if mkfs is None:
        raise LabFailed("not installed: apt-get install e2fsprogs")
    raw = path.with_suffix(".raw")
    try:
        with raw.open("wb") as file:
            file.truncate(size)
        run(mkfs, "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", str(raw))
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    finally:
        raw.unlink(missing_ok=True)
