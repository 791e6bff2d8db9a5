"""The documents libvirt wants for a backup and its checkpoint. Pure."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

from hyperv_host_agent.hypervisors.libvirt.tracking.bitmaps import TrackedDisk


def backup(socket: Path, scratch: Mapping[str, Path], since: Mapping[str, str], targets: Iterable[str]) -> str:
    """`since`: by target the checkpoint whose changes are named too; without one the disk is there as a whole."""
    root = ET.Element("domainbackup", mode="pull")
    ET.SubElement(root, "server", transport="unix", socket=str(socket))
    disks = ET.SubElement(root, "disks")
    for target in targets:
        disk = ET.SubElement(disks, "disk", name=target, backup="yes", type="file", exportname=target)
        if target in since:
            disk.attrib |= {"backupmode": "incremental", "incremental": since[target], "exportbitmap": since[target]}
        else:
            disk.set("backupmode", "full")
        ET.SubElement(disk, "driver", type="qcow2")
        ET.SubElement(disk, "scratch", file=str(scratch[target]))
    return ET.tostring(root, encoding="unicode")


def checkpoint(name: str, disks: Iterable[TrackedDisk], *, created: float | None = None) -> str | None:
    """Of the disks that hold bitmaps; None when there is none. `created`: the bitmaps are in the images already."""
    root = ET.Element("domaincheckpoint")
    ET.SubElement(root, "name").text = name
    if created is not None:
        ET.SubElement(root, "creationTime").text = str(int(created))
    listed = ET.SubElement(root, "disks")
    any_bitmap = False
    for disk in disks:
        element = ET.SubElement(listed, "disk", name=disk.target, checkpoint="no" if disk.untracked else "bitmap")
        if not disk.untracked:
            any_bitmap = True
            if created is not None:
                element.set("bitmap", name)
    return ET.tostring(root, encoding="unicode") if any_bitmap else None


def socket_of(backup_xml: str) -> str:
    """Of a backup job that runs: tells ours from another tool's."""
    server = ET.fromstring(backup_xml).find("server")  # noqa: S314  # libvirt's own answer
    return server.get("socket", "") if server is not None else ""
