"""Would a VM run on this host? Looks, and changes nothing."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperv_host_agent.hypervisors.base import Finding, MachineSpec, Native, Severity
from hyperv_host_agent.hypervisors.libvirt import capabilities, describe, rewrite, tree
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.cabling import Cabling
from hyperv_host_agent.hypervisors.libvirt.capabilities import Processors
from hyperv_host_agent.hypervisors.libvirt.errors import LibvirtFailed
from twinsite import units

FORMAT = "libvirt-domain"


def findings(
    connection: Connection, cabling: Cabling, spec: MachineSpec, native: Native | None, zstd_problem: Callable[[], str]
) -> Iterator[Finding]:
    """Raises BadDescription, ConnectionLost."""
    if native is None:
        yield _note("hardware", "its hardware is not described: it becomes a plain machine with virtio devices")
    elif native.format != FORMAT:
        yield _obstacle("hypervisor", f"it is described in words of another hypervisor ({native.format})")
        return
    else:
        yield from _hardware(connection, tree.parse(native.document))
        yield from rewrite.losses(native.document)
    problem = zstd_problem()
    if problem:
        yield _obstacle("qcow2", f"QEMU here cannot read recovery points: {problem}")
    memory = connection.memory_bytes()
    if spec.memory_bytes > memory:
        yield _obstacle(
            "memory", f"it needs {units.size(spec.memory_bytes)} of memory, this host has {units.size(memory)}"
        )
    for mac, network in spec.nics:
        problem = cabling.problem(network)
        if problem:
            yield _warning("network", f"{problem}: the NIC {mac} stays unplugged")


def _hardware(connection: Connection, root: ET.Element) -> Iterator[Finding]:
    told = describe.described(root)
    arch = capabilities.host(connection.capabilities()).get(told.arch)
    if arch is None:
        yield _obstacle("architecture", f"this host has no QEMU for {told.arch or 'a VM without an architecture'}")
        return
    if told.machine and told.machine not in arch.machines:
        yield _obstacle("machine type", f"this host's QEMU has no machine type {told.machine}")
        return
    if told.kind == "kvm" and not arch.accelerated:
        yield _warning("acceleration", "this host has no KVM: the VM runs many times slower")
    kind = "kvm" if arch.accelerated and told.kind == "kvm" else "qemu"
    try:
        words = connection.domain_capabilities(emulator=None, arch=told.arch, machine=told.machine or None, kind=kind)
    except LibvirtFailed as error:
        yield _obstacle("hardware", error.problem)
        return
    processors = capabilities.processors(words)
    if told.cpus > processors.most > 0:
        yield _obstacle("processors", f"it has {told.cpus} processors, a {told.machine} has {processors.most} at most")
    yield from _model(root.find("cpu"), processors)
    yield from _boot(root, processors)


def _model(cpu: ET.Element | None, processors: Processors) -> Iterator[Finding]:
    if cpu is None:
        return
    mode = cpu.get("mode", "custom")
    if mode in {"host-passthrough", "host-model"}:
        yield _note("processor", "it sees this host's processor, which may differ from the one it ran on")
        return
    model = cpu.find("model")
    name = (model.text or "") if model is not None else ""
    if not name or processors.models.get(name):
        return
    if model is not None and model.get("fallback", "allow") == "allow" and name not in processors.models:
        yield _warning("processor", f"this host does not know the processor model {name} and takes a similar one")
    else:
        yield _obstacle("processor", f"this host's processor cannot be a {name}")


def _boot(root: ET.Element, processors: Processors) -> Iterator[Finding]:
    os_element = tree.child(root, "os")
    firmware = os_element.get("firmware", "")
    if firmware and processors.firmware and firmware not in processors.firmware:
        yield _obstacle("firmware", f"this host has no {firmware.upper()} firmware for it")
    for tag in ("loader", "kernel", "initrd", "dtb"):
        path = (os_element.findtext(tag) or "").strip()
        if path.startswith("/") and not Path(path).is_file():
            yield _obstacle("boot", f"it boots with {path}, which is not on this host")


def _note(what: str, text: str) -> Finding:
    return Finding(Severity.NOTE, what, text)


def _warning(what: str, text: str) -> Finding:
    return Finding(Severity.WARNING, what, text)


def _obstacle(what: str, text: str) -> Finding:
    return Finding(Severity.OBSTACLE, what, text)
