"""A domain's XML in our words. Pure: it looks at the document only."""

import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent.hypervisors.base import Purpose
from hyperv_host_agent.hypervisors.libvirt import mark, tree
from hyperv_host_agent.hypervisors.libvirt.mark import Mark

_TRACKED: Final = "file", "block"
_FORMATS: Final = "qcow2", "raw"


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """`problem` says why it is not replicated, a phrase; empty: it is."""

    id: str
    target: str  # vda
    device: str  # "disk", "cdrom", "floppy", "lun"
    path: Path | None  # of the top file or block device
    format: str  # "qcow2", "raw"
    problem: str


@dataclass(frozen=True, slots=True)
class DomainNic:
    mac: str
    network: str  # libvirt's network, or the bridge; empty: neither


@dataclass(frozen=True, slots=True)
class Description:
    uuid: str
    name: str
    kind: str  # "kvm", "qemu"
    arch: str
    machine: str  # pc-q35-7.2
    cpus: int
    memory_bytes: int
    disks: tuple[DomainDisk, ...]  # all of them, replicated or not
    nics: tuple[DomainNic, ...]
    nvram: Path | None
    mark: Mark | None

    @property
    def id(self) -> str:
        return self.mark.id if self.mark is not None else self.uuid

    @property
    def shown_name(self) -> str:
        return self.mark.name if self.mark is not None else self.name

    @property
    def purpose(self) -> Purpose:
        return self.mark.purpose if self.mark is not None else Purpose.ORDINARY

    def replicated(self) -> tuple[DomainDisk, ...]:
        return tuple(disk for disk in self.disks if not disk.problem)


def disk_id(vm_uuid: str, target: str) -> str:
    return str(uuid.uuid5(uuid.UUID(vm_uuid), target))


def describe(xml: str) -> Description:
    """Raises BadDescription."""
    return described(tree.parse(xml))


def described(root: ET.Element) -> Description:
    kind = root.find("os/type")
    found = mark.read(root)
    vm_uuid = (root.findtext("uuid") or "").strip()
    known = dict(found.disks) if found is not None else {}
    vcpu = root.find("vcpu")
    nvram = (root.findtext("os/nvram") or "").strip()
    return Description(
        uuid=vm_uuid,
        name=root.findtext("name") or "",
        kind=root.get("type", ""),
        arch=tree.get(kind, "arch"),
        machine=tree.get(kind, "machine"),
        cpus=tree.number(tree.get(vcpu, "current") or (vcpu.text if vcpu is not None else "")) or 1,
        memory_bytes=tree.size(root.find("memory")),
        disks=tuple(_disk(element, vm_uuid, known) for element in tree.devices(root, "disk")),
        nics=tuple(_nic(element) for element in tree.devices(root, "interface")),
        nvram=Path(nvram) if nvram else None,
        mark=found,
    )


def _disk(element: ET.Element, vm_uuid: str, known: dict[str, str]) -> DomainDisk:
    source = element.find("source")
    target = tree.get(element.find("target"), "dev")
    path = tree.get(source, "file") or tree.get(source, "dev")
    return DomainDisk(
        id=known.get(target) or disk_id(vm_uuid, target),
        target=target,
        device=element.get("device", "disk"),
        path=Path(path) if path else None,
        format=tree.get(element.find("driver"), "type") or "raw",
        problem=_problem(element, path),
    )


def _problem(element: ET.Element, path: str) -> str:
    device, kind = element.get("device", "disk"), element.get("type", "")
    form = tree.get(element.find("driver"), "type") or "raw"
    checks = (
        (device != "disk", f"it is a {device}"),
        (element.find("readonly") is not None, "it is read-only"),
        (element.find("shareable") is not None, "it is shared with other VMs"),
        (element.find("transient") is not None, "it is thrown away when the VM stops"),
        (kind not in _TRACKED, f"it is of type {kind}"),
        (not path, "it has no medium"),
        (form not in _FORMATS, f"its format is {form}"),
    )
    return next((problem for found, problem in checks if found), "")


def _nic(element: ET.Element) -> DomainNic:
    source = element.find("source")
    # Of a running VM on a network that is a bridge of the host, libvirt shows the bridge beside the network.
    network = tree.get(source, "network")
    if not network and element.get("type") == "bridge":
        network = tree.get(source, "bridge")
    return DomainNic(tree.get(element.find("mac"), "address"), network)
