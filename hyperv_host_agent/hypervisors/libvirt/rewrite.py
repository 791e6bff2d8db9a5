"""The XML of a replica, made from the XML of its source. Pure.

What names something of the source's host is replaced or left out; what makes up the hardware the guest sees stays.
Of the target's files it opens what `Placement` names, the firmware, and a kernel if the VM is booted with one.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent.hypervisors.base import Finding, Severity
from hyperv_host_agent.hypervisors.libvirt import mark, tree
from hyperv_host_agent.hypervisors.libvirt.mark import Mark

_KEPT: Final = frozenset(
    {"controller", "input", "graphics", "video", "audio", "sound", "watchdog", "memballoon", "rng"}
) | {
    *("panic", "iommu", "hub", "channel", "serial", "console", "parallel", "disk", "interface", "tpm", "vsock"),
}
_HOST_BOUND: Final = (  # of the domain itself: placement on the source's processors, memory, labels
    *("numatune", "cputune", "blkiotune", "memtune", "resource", "seclabel", "keywrap", "launchSecurity"),
)
_NIC_KEPT: Final = frozenset({"mac", "model", "address", "boot", "rom", "driver", "mtu", "coalesce", "alias"})
_DISK_DROPPED: Final = ("backingStore", "mirror", "auth", "encryption", "iotune", "source")
_LOCAL: Final = frozenset({"127.0.0.1", "::1", "0.0.0.0", "::", "localhost"})  # noqa: S104  # what the XML may say


@dataclass(frozen=True, slots=True)
class Cable:
    """Where a NIC is plugged in at the target. Kind "network" or "bridge"; "" is nowhere."""

    mac: str
    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """All that is decided by the target."""

    uuid: str
    name: str
    mark: Mark
    kind: str  # "kvm" or "qemu"
    disks: tuple[tuple[str, Path], ...]  # target device → qcow2 file
    cables: tuple[Cable, ...]  # in the order of the VM's NICs
    folder: Path  # for what its serial ports write
    nvram: Path | None  # the file of the firmware's variables


def rewrite(document: str, placement: Placement) -> str:
    """Raises BadDescription."""
    root = tree.parse(document)
    _identity(root, placement)
    tree.drop(root, *_HOST_BOUND, f"{{{tree.QEMU}}}commandline", f"{{{tree.QEMU}}}override")
    tree.drop(root, f"{{{tree.QEMU}}}capabilities")
    _firmware(root, placement)
    _processor(root, placement)
    devices = tree.child(root, "devices")
    tree.drop(devices, "emulator")
    for element in list(devices):
        if not _stays(element):
            devices.remove(element)
    _disks(devices, dict(placement.disks))
    _nics(devices, placement.cables)
    _ports(devices, placement.folder)
    for graphics in devices.findall("graphics"):
        _graphics(graphics)
    mark.write(root, placement.mark)
    return tree.text_of(root)


def losses(document: str) -> tuple[Finding, ...]:
    """What of the VM does not go with it to another host. Raises BadDescription."""
    root = tree.parse(document)
    found = []
    for element in tree.child(root, "devices"):
        if element.tag != "emulator" and not _stays(element):
            kind = " ".join(filter(None, (element.tag, element.get("type", ""), element.get("model", ""))))
            found.append(Finding(Severity.WARNING, "device", f"the device {kind!r} stays behind"))
    if root.find(f"{{{tree.QEMU}}}commandline") is not None:
        found.append(Finding(Severity.WARNING, "command line", "its own arguments for QEMU stay behind"))
    if any(tree.get(tpm.find("backend"), "type") == "emulator" for tpm in tree.devices(root, "tpm")):
        found.append(
            Finding(Severity.WARNING, "tpm", "the content of its TPM stays behind: the copy begins with an empty one")
        )
    if any(root.find(tag) is not None for tag in ("numatune", "cputune", "memoryBacking")):
        found.append(Finding(Severity.NOTE, "placement", "its placement on processors and memory is not repeated"))
    return tuple(found)


def _stays(element: ET.Element) -> bool:
    if element.tag == "input":
        return element.get("type") not in {"passthrough", "evdev"}
    if element.tag == "tpm":
        return tree.get(element.find("backend"), "type") == "emulator"
    if element.tag == "rng":
        return tree.get(element.find("backend"), "model") in {"random", "builtin"}
    if element.tag == "graphics":
        return element.get("type") in {"vnc", "spice"}
    return element.tag in _KEPT


def _identity(root: ET.Element, placement: Placement) -> None:
    root.attrib.pop("id", None)
    root.set("type", placement.kind)
    tree.child(root, "name").text = placement.name
    tree.child(root, "uuid").text = placement.uuid
    for entry in root.findall("sysinfo/system/entry[@name='uuid']"):
        entry.text = placement.uuid  # libvirt refuses one that differs
    if root.find("genid") is not None:
        tree.child(root, "genid").text = None  # a new one: the guest shall notice that time went back
    mark.remove(root)


def _firmware(root: ET.Element, placement: Placement) -> None:
    os_element = tree.child(root, "os")
    tree.drop(os_element, "acpi")
    nvram = os_element.find("nvram")
    if nvram is None:
        return
    if placement.nvram is None:
        nvram.text = None  # libvirt makes one from its template
        return
    for source in nvram.findall("source"):
        nvram.remove(source)
    nvram.attrib.pop("type", None)
    nvram.text = str(placement.nvram)


def _processor(root: ET.Element, placement: Placement) -> None:
    tree.drop(root, "memoryBacking")
    vcpu = root.find("vcpu")
    if vcpu is not None:
        vcpu.attrib.pop("cpuset", None)
    cpu = root.find("cpu")
    if placement.kind == "qemu" and cpu is not None and cpu.get("mode") in {"host-passthrough", "host-model"}:
        # Without hardware acceleration there is no host's processor to hand through.
        cpu.attrib = {"mode": "maximum"}
        tree.drop(cpu, "model", "vendor", "feature", "cache", "maxphysaddr")


def _disks(devices: ET.Element, files: dict[str, Path]) -> None:
    present = set()
    for disk in devices.findall("disk"):
        target = tree.get(disk.find("target"), "dev")
        if target in files:
            present.add(target)
            _disk(disk, files[target])
        elif disk.get("device") in {"cdrom", "floppy"}:
            disk.set("type", "file")  # an empty drive, so that the guest finds its hardware as it was
            tree.drop(disk, *_DISK_DROPPED)
        else:
            devices.remove(disk)
    for target, path in files.items():
        if target not in present:  # plugged in while the VM ran, and not in its lasting definition
            bus = "sata" if target.startswith("sd") else "virtio"
            disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
            ET.SubElement(disk, "target", {"dev": target, "bus": bus})
            _disk(disk, path)


def _disk(disk: ET.Element, path: Path) -> None:
    tree.drop(disk, *_DISK_DROPPED)
    disk.set("type", "file")
    driver = tree.child(disk, "driver")
    # Not how the host does I/O: io="native" needs a cache mode that the copy's layers may not allow.
    kept = {
        key: value for key, value in driver.attrib.items() if key in {"discard", "detect_zeroes", "queues", "cache"}
    }
    driver.attrib = {"name": "qemu", "type": "qcow2", **kept}
    tree.drop(driver, "metadata_cache")
    disk.insert(1, ET.Element("source", {"file": str(path)}))


def _nics(devices: ET.Element, cables: tuple[Cable, ...]) -> None:
    nics = devices.findall("interface")
    for nic in nics[len(cables) :]:
        devices.remove(nic)
    for number, cable in enumerate(cables):
        if number < len(nics):
            nic = nics[number]
        else:
            nic = ET.SubElement(devices, "interface")
            ET.SubElement(nic, "model", {"type": "virtio"})
        for part in list(nic):
            if part.tag not in _NIC_KEPT:
                nic.remove(part)
        nic.attrib = {}
        tree.child(nic, "mac").set("address", cable.mac)
        if cable.kind:
            nic.set("type", cable.kind)
            ET.SubElement(nic, "source", {cable.kind: cable.name})
        else:
            unplugged(nic)


def unplugged(nic: ET.Element) -> None:
    """A NIC whose cable ends nowhere: every QEMU can do this one, and with the link down nothing is ever sent."""
    nic.set("type", "udp")
    source = ET.SubElement(nic, "source", {"address": "127.0.0.1", "port": "9"})
    ET.SubElement(source, "local", {"address": "127.0.0.1", "port": "0"})
    ET.SubElement(nic, "link", {"state": "down"})


def _ports(devices: ET.Element, folder: Path) -> None:
    for kind in ("serial", "console", "parallel", "channel"):
        for number, port in enumerate(devices.findall(kind)):
            to_file = port.get("type") == "file" or port.find("log") is not None
            tree.drop(port, "source", "log", "protocol")
            port.attrib.pop("tty", None)
            if kind == "channel":
                if port.get("type") not in {"unix", "spicevmc"}:
                    port.set("type", "unix")
            elif to_file:
                # What a port wrote to a file it goes on writing to one, of the VM's own.
                port.set("type", "file")
                port.insert(0, ET.Element("source", {"path": str(folder / f"{_twin(kind)}{number}.log")}))
            else:
                port.set("type", "pty")


def _twin(kind: str) -> str:
    return "serial" if kind == "console" else kind  # libvirt shows the first serial port as a console too


def _graphics(graphics: ET.Element) -> None:
    for attribute in ("port", "tlsPort", "websocket", "socket", "passwd", "passwdValidTo"):
        graphics.attrib.pop(attribute, None)
    graphics.set("autoport", "yes")
    address = graphics.get("listen", "127.0.0.1")
    listens = graphics.findall("listen")
    if listens and listens[0].get("type", "address") == "address":
        address = listens[0].get("address", "127.0.0.1")
    tree.drop(graphics, "listen", "gl")
    graphics.set("listen", address if address in _LOCAL else "127.0.0.1")


def blank(cpus: int, memory_bytes: int, arch: str) -> str:
    """A plain VM for `rewrite`, when its source has no words of libvirt's: it gets its disks and NICs there."""
    root = ET.Element("domain")
    ET.SubElement(root, "memory", {"unit": "KiB"}).text = str(max(memory_bytes >> 10, 1 << 10))
    ET.SubElement(root, "vcpu").text = str(max(1, cpus))
    ET.SubElement(ET.SubElement(root, "os"), "type", {"arch": arch}).text = "hvm"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    devices = ET.SubElement(root, "devices")
    channel = ET.SubElement(devices, "channel", {"type": "unix"})
    ET.SubElement(channel, "target", {"type": "virtio", "name": "org.qemu.guest_agent.0"})
    return tree.text_of(root)
