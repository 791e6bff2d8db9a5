"""What this host's QEMU can do, from libvirt's words about it. Pure."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from hyperv_host_agent.hypervisors.libvirt import tree


@dataclass(frozen=True, slots=True)
class Arch:
    """Of one architecture."""

    machines: frozenset[str]  # machine types and their short names
    accelerated: bool  # KVM


@dataclass(frozen=True, slots=True)
class Processors:
    """Of one machine type and accelerator. `models`: name → whether this host's processor can be it."""

    models: dict[str, bool]
    firmware: frozenset[str]  # "efi", "bios"
    most: int  # processors


def host(xml: str) -> dict[str, Arch]:
    """By architecture, from `capabilities`."""
    found = {}
    for guest in _parse(xml).findall("guest"):
        arch = guest.find("arch")
        if guest.findtext("os_type") != "hvm" or arch is None:
            continue
        everywhere = [*arch.findall("machine"), *arch.findall("domain/machine")]
        names = {machine.text or "" for machine in everywhere} | {
            machine.get("canonical", "") for machine in everywhere
        }
        accelerated = arch.find("domain[@type='kvm']") is not None
        found[arch.get("name", "")] = Arch(frozenset(names - {""}), accelerated)
    return found


def processors(xml: str) -> Processors:
    """From `domain_capabilities`."""
    root = _parse(xml)
    models = {
        model.text or "": model.get("usable", "unknown") != "no"
        for model in root.findall("cpu/mode[@name='custom']/model")
    }
    firmware = {value.text or "" for value in root.findall("os/enum[@name='firmware']/value")}
    return Processors(models, frozenset(firmware), tree.number(tree.get(root.find("vcpu"), "max")))


def _parse(xml: str) -> ET.Element:
    return ET.fromstring(xml)  # noqa: S314  # libvirt's own words, from this host
