"""What Twinsite writes into the metadata of a VM it defines: whose copy it is, and how it is known outside libvirt."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.hypervisors.base import Purpose
from hyperv_host_agent.hypervisors.libvirt.tree import MARK, child, drop

_MACHINE: Final = f"{{{MARK}}}machine"
_DISK: Final = f"{{{MARK}}}disk"


@dataclass(frozen=True, slots=True)
class Mark:
    """`disks`: target device → the disk's id."""

    id: str
    name: str
    purpose: Purpose
    disks: tuple[tuple[str, str], ...]
    made_of: str  # a fingerprint of what was asked for when it was defined


def read(root: ET.Element) -> Mark | None:
    """None: a VM of the host's user, or one whose mark nobody here can read."""
    found = root.find(f"metadata/{_MACHINE}")
    if found is None:
        return None
    try:
        purpose = Purpose(found.get("purpose", ""))
        disks = tuple((disk.attrib["target"], disk.attrib["id"]) for disk in found.findall(_DISK))
        return Mark(found.attrib["id"], found.attrib["name"], purpose, disks, found.attrib["made-of"])
    except (KeyError, ValueError):
        return None


def remove(root: ET.Element) -> None:
    metadata = root.find("metadata")
    if metadata is not None:
        drop(metadata, _MACHINE)


def write(root: ET.Element, mark: Mark) -> None:
    remove(root)
    words = {"id": mark.id, "name": mark.name, "purpose": mark.purpose.value, "made-of": mark.made_of}
    element = ET.SubElement(child(root, "metadata"), _MACHINE, words)
    for target, disk_id in mark.disks:
        ET.SubElement(element, _DISK, {"target": target, "id": disk_id})
