"""Domain XML as a tree, and back."""

import xml.etree.ElementTree as ET
from typing import Final

from hyperv_host_agent.hypervisors.description import BadDescription

QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
MARK: Final = "https://twinsite.dev/libvirt/1"

ET.register_namespace("qemu", QEMU)
ET.register_namespace("twinsite", MARK)

_UNITS: Final = {"b": 1, "bytes": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30} | {
    "gib": 1 << 30,
    "t": 1 << 40,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}


def parse(text: str) -> ET.Element:
    """Of a domain. Raises BadDescription."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # libvirt writes none; from elsewhere they could only do harm
        raise BadDescription("its domain XML has a document type")
    try:
        root = ET.fromstring(text)  # noqa: S314  # without a document type there is nothing that expands
    except ET.ParseError as error:
        raise BadDescription(f"its domain XML cannot be read: {error}") from None
    if root.tag != "domain":
        raise BadDescription(f"its domain XML begins with {root.tag!r}")
    return root


def text_of(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def devices(root: ET.Element, kind: str) -> list[ET.Element]:
    return root.findall(f"devices/{kind}")


def get(parent: ET.Element | None, attribute: str) -> str:
    """Empty when the element or the attribute is not there."""
    return parent.get(attribute, "") if parent is not None else ""


def number(text: str | None) -> int:
    return int(text) if text is not None and text.strip().isdigit() else 0


def size(element: ET.Element | None) -> int:
    """Bytes of `<memory unit='KiB'>`."""
    if element is None:
        return 0
    return number(element.text) * _UNITS.get(element.get("unit", "KiB").lower(), 1 << 10)


def child(parent: ET.Element, tag: str) -> ET.Element:
    """The one there is, or a new one."""
    found = parent.find(tag)
    return found if found is not None else ET.SubElement(parent, tag)


def drop(parent: ET.Element, *tags: str) -> None:
    for tag in tags:
        for found in parent.findall(tag):
            parent.remove(found)
