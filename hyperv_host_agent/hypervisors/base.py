"""The port every hypervisor backend implements. Synchronous and thread-safe; calls may block: run them in threads."""

import enum
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hyperv_host_agent.changes.base import ChangeSource
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from twinsite.errors import Conflict, Failed, NotFound, Precondition


class MachineMissing(NotFound):
    public = "there is no VM {error.vm_id} on this host"
    next_step = "twinsite vm list"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class MachineExists(Conflict):
    public = "there is a VM named {error.name} on this host already"
    still_works = "it was not touched"
    next_step = "rename or remove it, or choose another target host"

    def __init__(self, name: str) -> None:
        self.name = name


class MachineFenced(Precondition):
    public = "VM {error.vm_id} may not start here: another host owns it in term {error.term}"
    still_works = "its disks are untouched"
    next_step = "twinsite vm show"

    def __init__(self, vm_id: str, term: int) -> None:
        self.vm_id, self.term = vm_id, term


class MachineFailed(Failed):
    public = "VM {error.vm_id}: {error.problem}"

    def __init__(self, vm_id: str, problem: str) -> None:
        self.vm_id, self.problem = vm_id, problem


class Power(enum.Enum):
    RUNNING = "running"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Purpose(enum.Enum):
    ORDINARY = ""
    REPLICA = "replica"  # run by a failover
    TEST = "test"  # run by a test failover


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A VM in words every hypervisor shares."""

    id: str
    name: str
    cpus: int
    memory_bytes: int
    disks: tuple[DiskGeometry, ...]
    nics: tuple[tuple[str, str], ...] = ()  # (mac, network)


@dataclass(frozen=True, slots=True)
class MachineState:
    spec: MachineSpec
    power: Power
    purpose: Purpose
    autostart: bool = False  # to run whenever its host runs, as long as this host owns it


@dataclass(frozen=True, slots=True)
class Native:
    """A VM in the words of its own hypervisor, for another host of the same kind."""

    format: str  # "libvirt-domain"
    document: str
    files: tuple[tuple[str, bytes], ...] = ()  # beside the document: "nvram"


@dataclass(frozen=True, slots=True)
class Guest:
    """What the system inside a running VM says of itself."""

    answers: bool
    hostname: str = ""
    addresses: tuple[str, ...] = ()  # "10.0.0.7/24", those by which others reach it


@dataclass(frozen=True, slots=True)
class Address:
    """What a NIC of a guest shall have."""

    mac: str
    address: str  # "10.1.0.7/24"
    gateway: str = ""  # of the default route; empty: it is left as it is


class Severity(enum.Enum):
    NOTE = "note"  # it is so, and it is as it should be
    WARNING = "warning"  # it works, otherwise than at the source
    OBSTACLE = "obstacle"  # it will not work before somebody changes something


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    what: str  # "machine type", "network", "disk" …
    text: str  # one sentence without a full stop

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.text}"


class Obstacles(Precondition):
    public = "VM {error.name} cannot run on this host: {error.problem}"
    still_works = "nothing was defined"
    next_step = "change what is named, or choose another target host"

    def __init__(self, name: str, findings: Iterable[Finding]) -> None:
        self.name = name
        self.problem = "; ".join(found.text for found in findings if found.severity is Severity.OBSTACLE)


def test_name(name: str, vm_id: str, present: Iterable[MachineSpec]) -> str:
    """What a test copy is called: "NAME - Test", the next one beside it "NAME - Test 2" …; a repeat keeps its name."""
    taken = {spec.id: spec.name for spec in present}
    if vm_id in taken:
        return taken[vm_id]
    names = itertools.chain([f"{name} - Test"], (f"{name} - Test {number}" for number in itertools.count(2)))
    return next(found for found in names if found not in taken.values())


class Hypervisor(Protocol):
    def name(self) -> str:
        """Of the backend: embedded, libvirt …"""
        ...

    def machines(self) -> list[MachineState]: ...

    def machine(self, vm_id: str) -> MachineState:
        """Raises MachineMissing."""
        ...

    def change_source(self, vm_id: str) -> ChangeSource:
        """Raises MachineMissing."""
        ...

    def describe(self, vm_id: str) -> Native | None:
        """The VM in the hypervisor's own words; None when `MachineSpec` says everything. Raises MachineMissing."""
        ...

    def examine(self, vm_id: str) -> tuple[Finding, ...]:
        """What its owner should know before the VM is replicated from here. Raises MachineMissing."""
        ...

    def preflight(self, spec: MachineSpec, native: Native | None) -> tuple[Finding, ...]:
        """What would be otherwise, or would not work, if the VM were to run here. Changes nothing.

        That another VM has its name or id is not among it: `define` refuses that.
        """
        ...

    def define(
        self, spec: MachineSpec, disks: tuple[AttachedDisk, ...], *, purpose: Purpose, native: Native | None = None
    ) -> None:
        """A VM whose disks are overlays on a pinned point; costs one small file a disk. Repeatable.

        `spec` decides over id, name and NICs, `native` over all else. Raises MachineExists for another VM of that name
        or id, Obstacles.
        """
        ...

    def start(self, vm_id: str) -> None:
        """Repeatable. Raises MachineMissing, MachineFenced, MachineFailed."""
        ...

    def stop(self, vm_id: str, *, timeout: float) -> None:
        """In an orderly way, after `timeout` seconds by force. Repeatable."""
        ...

    def undefine(self, vm_id: str) -> None:
        """Forget a VM this agent defined (REPLICA or TEST) and delete its overlays; repeatable. It must be stopped."""
        ...

    def disk_path(self, vm_id: str, disk: str) -> Path:
        """Where the disk's top file is; for people and for proofs."""
        ...

    def fence(self, vm_id: str, term: int) -> None:
        """Stop the VM and refuse to start it until `unfence`; durable; repeatable."""
        ...

    def unfence(self, vm_id: str) -> None: ...

    def guest(self, vm_id: str) -> Guest | None:
        """None: nobody inside can be asked, now or later. Answers within seconds. Raises MachineMissing."""
        ...

    def set_address(self, vm_id: str, address: Address) -> None:
        """In the guest, which must answer. Repeatable. Raises MachineMissing, MachineFailed, Unreachable."""
        ...

    def guard(self, vm_id: str) -> None:
        """From now on only this agent starts the VM with its host, after it has asked who owns it. Durable.

        Repeatable. Raises MachineMissing.
        """
        ...

    def unguard(self, vm_id: str) -> None:
        """The VM starts with its host as it did before `guard`. Repeatable. Raises MachineMissing."""
        ...

    def close(self) -> None:
        """VMs run on; the hypervisor is not asked any more."""
        ...
