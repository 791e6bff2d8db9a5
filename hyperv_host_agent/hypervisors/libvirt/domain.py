"""One VM of libvirt. Each call looks it up anew, so that it outlives restarts of the daemon."""

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from hyperv_host_agent.hypervisors.libvirt.errors import LibvirtFailed, NotThere
from hyperv_host_agent.hypervisors.libvirt.library import flag, qemu, word

Answer = TypeVar("Answer")


class State(enum.Enum):
    NONE = "nostate"
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"  # reason "ioerror": a disk is full or broken
    SHUTTING_DOWN = "shutdown"
    OFF = "shutoff"
    CRASHED = "crashed"
    ASLEEP = "pmsuspended"


ACTIVE: Final = frozenset({State.RUNNING, State.BLOCKED, State.PAUSED, State.SHUTTING_DOWN, State.ASLEEP})
_STATES: Final = tuple(State)  # in the order of libvirt's numbers


@dataclass(frozen=True, slots=True)
class Job:
    operation: str  # "backup", "migration_out", "snapshot" …
    kind: str  # "bounded", "unbounded", "completed", "failed", "cancelled"


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """Bytes."""

    capacity: int
    allocation: int
    physical: int


@dataclass(frozen=True, slots=True)
class BlockJob:
    """`current` of `end` in libvirt's own measure; both grow."""

    kind: str  # "pull", "copy", "commit", "active_commit", "backup"
    current: int
    end: int


class Lookup(Protocol):
    """Runs an action with a live virConnect, refusals translated."""

    def run(self, action: Callable[[Any], Answer]) -> Answer: ...


class Domain:
    """Thread-safe. Every method raises NotThere, Busy, ConnectionLost or LibvirtFailed beside what it names."""

    def __init__(self, lookup: Lookup, uuid: str) -> None:
        self._lookup, self.uuid = lookup, uuid

    def _do(self, action: Callable[[Any], Answer]) -> Answer:
        return self._lookup.run(lambda connection: action(connection.lookupByUUIDString(self.uuid)))

    def name(self) -> str:
        return str(self._do(lambda domain: domain.name()))

    def state(self) -> tuple[State, str]:
        """And the reason, in libvirt's word: "ioerror", "migration", "destroyed" …"""
        number, reason = self._do(lambda domain: domain.state())
        state = _STATES[number] if number < len(_STATES) else State.NONE
        return state, word(f"DOMAIN_{state.value.upper()}_", reason)

    def is_active(self) -> bool:
        """A QEMU process exists, whether its CPUs run or not."""
        return bool(self._do(lambda domain: domain.isActive()))

    def is_persistent(self) -> bool:
        return bool(self._do(lambda domain: domain.isPersistent()))

    def xml(self, *, inactive: bool = False, migratable: bool = False, secure: bool = False) -> str:
        asked = (("INACTIVE", inactive), ("MIGRATABLE", migratable), ("SECURE", secure))
        flags = flag(*(f"DOMAIN_XML_{name}" for name, wanted in asked if wanted))
        return str(self._do(lambda domain: domain.XMLDesc(flags)))

    def create(self, *, paused: bool = False) -> None:
        flags = flag("DOMAIN_START_PAUSED") if paused else 0
        self._do(lambda domain: domain.createWithFlags(flags))

    def shutdown(self, mode: str) -> None:
        """Ask the guest to: mode "guest_agent" or "acpi_power_btn". Raises AgentSilent, perhaps after a minute."""
        flags = flag(f"DOMAIN_SHUTDOWN_{mode.upper()}")
        self._do(lambda domain: domain.shutdownFlags(flags))

    def destroy(self) -> None:
        """Power off; QEMU is given the moments it needs to store its bitmaps."""
        self._do(lambda domain: domain.destroyFlags(0))

    def resume(self) -> None:
        self._do(lambda domain: domain.resume())

    def suspend(self) -> None:
        self._do(lambda domain: domain.suspend())

    def undefine(self, *, keep_nvram: bool = False) -> None:
        """With what libvirt keeps of it: managed save, metadata of snapshots and checkpoints, NVRAM."""
        names = ("MANAGED_SAVE", "SNAPSHOTS_METADATA", "CHECKPOINTS_METADATA", "KEEP_NVRAM" if keep_nvram else "NVRAM")
        flags = flag(*(f"DOMAIN_UNDEFINE_{name}" for name in names))
        self._do(lambda domain: domain.undefineFlags(flags))

    def autostart(self) -> bool:
        return bool(self._do(lambda domain: domain.autostart()))

    def set_autostart(self, on: bool) -> None:
        self._do(lambda domain: domain.setAutostart(int(on)))

    def has_managed_save(self) -> bool:
        return bool(self._do(lambda domain: domain.hasManagedSaveImage(0)))

    def has_internal_snapshots(self) -> bool:
        flags = flag("DOMAIN_SNAPSHOT_LIST_INTERNAL")
        return bool(self._do(lambda domain: domain.snapshotNum(flags)))

    def job(self) -> Job | None:
        """What runs now."""
        stats: dict[str, Any] = self._do(lambda domain: domain.jobStats())
        if stats.get("type", 0) == flag("DOMAIN_JOB_NONE"):
            return None
        return Job(word("DOMAIN_JOB_OPERATION_", stats.get("operation", 0)), word("DOMAIN_JOB_", stats["type"]))

    def abort_job(self) -> None:
        """Every NBD client of a backup must have closed its socket before: otherwise the VM takes no job any more."""
        self._do(lambda domain: domain.abortJob())

    def backup_begin(self, backup_xml: str, checkpoint_xml: str | None) -> None:
        """Raises CheckpointBroken."""
        self._do(lambda domain: domain.backupBegin(backup_xml, checkpoint_xml, 0))

    def backup_xml(self) -> str:
        """Of the backup that runs: where it is served tells whose it is. Raises NotThere."""
        return str(self._do(lambda domain: domain.backupGetXMLDesc(0)))

    def checkpoints(self) -> list[str]:
        """Names, parents first. libvirt's bookkeeping, not the truth: ask QEMU which bitmaps there are."""
        flags = flag("DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL")
        return self._do(lambda domain: [found.getName() for found in domain.listAllCheckpoints(flags)])

    def checkpoint_create(self, xml: str, *, redefine: bool = False) -> None:
        """`redefine`: the bitmap is in the image already, only libvirt forgot. Raises CheckpointBroken."""
        flags = flag("DOMAIN_CHECKPOINT_CREATE_REDEFINE") if redefine else 0
        self._do(lambda domain: domain.checkpointCreateXML(xml, flags))

    def checkpoint_delete(self, name: str, *, metadata_only: bool = False) -> None:
        """Raises CheckpointBroken; then `metadata_only` helps."""
        flags = flag("DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY") if metadata_only else 0
        self._do(lambda domain: domain.checkpointLookupByName(name).delete(flags))

    def checkpoint_xml(self, name: str) -> str:
        """Without the domain inside: what `checkpoint_create(…, redefine=True)` wants."""
        flags = flag("DOMAIN_CHECKPOINT_XML_NO_DOMAIN")
        return str(self._do(lambda domain: domain.checkpointLookupByName(name).getXMLDesc(flags)))

    def fs_freeze(self, timeout: int) -> int:
        """How many file systems stand still. Raises AgentSilent after `timeout` seconds, 1 or more.

        After that the guest may freeze later all the same: ask `agent` until it answers, then thaw.
        """
        return self._with_agent_timeout(timeout, lambda domain: int(domain.fsFreeze(None, 0)))

    def fs_thaw(self, timeout: int) -> int:
        """Raises AgentSilent."""
        return self._with_agent_timeout(timeout, lambda domain: int(domain.fsThaw(None, 0)))

    def agent(self, command: Mapping[str, Any], timeout: int) -> Any:
        """The guest agent's answer. Raises AgentSilent after `timeout` seconds."""
        answer = self._do(lambda domain: qemu().qemuAgentCommand(domain, json.dumps(command), timeout, 0))
        return json.loads(answer)["return"]

    def addresses(self) -> dict[str, list[str]]:
        """By MAC, "10.0.0.7/24", as the guest agent tells. Raises AgentSilent."""
        source = flag("DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT")
        found: dict[str, Any] = self._do(lambda domain: domain.interfaceAddresses(source, 0))
        return {
            interface["hwaddr"]: [f"{address['addr']}/{address['prefix']}" for address in interface["addrs"] or ()]
            for interface in found.values()
            if interface.get("hwaddr")
        }

    def qmp(self, command: Mapping[str, Any]) -> Any:
        """QEMU's answer; for queries, such as query-named-block-nodes. libvirt marks the VM as tainted by it."""
        said = json.loads(self._do(lambda domain: qemu().qemuMonitorCommand(domain, json.dumps(command), 0)))
        if "error" in said:
            raise LibvirtFailed(str(said["error"].get("desc", said["error"])))
        return said["return"]

    def hmp(self, command: str) -> str:
        """The same for people, and for tests."""
        return str(self._do(lambda domain: qemu().qemuMonitorCommand(domain, command, 1)))

    def block_info(self, device: str) -> BlockInfo:
        """Of "vda" or a path. Raises NotThere."""
        capacity, allocation, physical = self._do(lambda domain: domain.blockInfo(device))
        return BlockInfo(capacity, allocation, physical)

    def block_resize(self, device: str, size: int) -> None:
        """Bytes; the VM must run."""
        flags = flag("DOMAIN_BLOCK_RESIZE_BYTES")
        self._do(lambda domain: domain.blockResize(device, size, flags))

    def block_pull(self, device: str, bandwidth: int) -> None:
        """Begin to copy all layers below into the top; bytes a second, 0: as fast as it goes."""
        flags = flag("DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES")
        self._do(lambda domain: domain.blockPull(device, bandwidth, flags))

    def block_job(self, device: str) -> BlockJob | None:
        info: dict[str, int] = self._do(lambda domain: domain.blockJobInfo(device, 0))
        if not info:
            return None
        return BlockJob(word("DOMAIN_BLOCK_JOB_TYPE_", info["type"]), info["cur"], info["end"])

    def block_job_abort(self, device: str) -> None:
        """Returns when it has ended; what a pull has copied stays."""
        self._do(lambda domain: domain.blockJobAbort(device, 0))

    def disk_errors(self) -> dict[str, str]:
        """By device: "no_space" or "unspec"."""
        found: dict[str, int] = self._do(lambda domain: domain.diskErrors())
        return {device: word("DOMAIN_DISK_ERROR_", number) for device, number in found.items()}

    def exists(self) -> bool:
        try:
            self._do(lambda domain: domain.UUIDString())
        except NotThere:
            return False
        return True

    def _with_agent_timeout(self, timeout: int, action: Callable[[Any], int]) -> int:
        def act(domain: Any) -> int:
            domain.agentSetResponseTimeout(timeout, 0)
            try:
                return action(domain)
            finally:  # it is a property of the VM, for all its callers
                domain.agentSetResponseTimeout(flag("DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK"), 0)

        return self._do(act)
