"""What the owner of a VM should know before it is replicated from this host."""

from collections.abc import Iterator

from hyperv_host_agent.hypervisors.base import Finding, Severity
from hyperv_host_agent.hypervisors.libvirt import describe
from hyperv_host_agent.hypervisors.libvirt.describe import DomainDisk
from hyperv_host_agent.hypervisors.libvirt.domain import Domain

_DRIVES = frozenset({"cdrom", "floppy"})


def findings(domain: Domain) -> Iterator[Finding]:
    """Raises BadDescription."""
    told = describe.describe(domain.xml())
    for disk in told.disks:
        if disk.problem:
            severity = Severity.NOTE if disk.device in _DRIVES else Severity.WARNING
            yield Finding(severity, "disk", f"{disk.target or 'a disk'} is not replicated: {disk.problem}")
        else:
            yield from _tracking(disk)
    if not told.replicated():
        yield Finding(Severity.OBSTACLE, "disk", "it has no disk that can be replicated")
    if not domain.is_persistent():
        yield Finding(Severity.OBSTACLE, "definition", "it is not persistent: make it so with virsh define")
    if domain.has_internal_snapshots():
        text = "it has internal snapshots: going back to one ends the VM and the knowledge of what changed"
        yield Finding(Severity.WARNING, "snapshots", text)


def _tracking(disk: DomainDisk) -> Iterator[Finding]:
    if disk.format == "raw":
        text = f"{disk.target} is raw: QEMU cannot keep track of its changes, each cycle reads it whole and compares"
        yield Finding(Severity.WARNING, "disk", text)
