"""What happens to VMs without being asked for, as libvirt tells it."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from hyperv_host_agent.hypervisors.libvirt.library import flag, word


class Happening(enum.Enum):
    STARTED = "started"
    RESUMED = "resumed"
    PAUSED = "paused"  # detail: the reason, such as "ioerror"
    STOPPED = "stopped"  # detail: "shutdown", "destroyed", "crashed", "migrated", "failed" …
    DEFINED = "defined"  # or its definition was changed
    UNDEFINED = "undefined"
    MIGRATED_IN = "migrated in"
    MIGRATED_OUT = "migrated out"
    IO_ERROR = "I/O error"  # detail: the disk's alias and what QEMU did
    DEVICE_ADDED = "device added"  # detail: the alias
    DEVICE_REMOVED = "device removed"
    AGENT_CONNECTED = "agent connected"
    AGENT_DISCONNECTED = "agent disconnected"
    BLOCK_JOB = "block job"  # detail: disk, what, how it stands
    CONNECTED = "connected"  # of no VM: libvirt answers, for the first time or again; what was before was not told


@dataclass(frozen=True, slots=True)
class Event:
    vm_id: str
    happening: Happening
    detail: str = ""


_LIFECYCLE: Final = {
    "defined": Happening.DEFINED,
    "undefined": Happening.UNDEFINED,
    "started": Happening.STARTED,
    "suspended": Happening.PAUSED,
    "resumed": Happening.RESUMED,
    "stopped": Happening.STOPPED,
    "crashed": Happening.STOPPED,
}
# libvirt's table of lifecycle events, in its order; the names of its constants are not told apart by a prefix.
_KINDS: Final = (
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
)


def register(connection: Any, tell: Callable[[Event], None]) -> None:
    """Have `tell` called for each event, in libvirt's event thread: it must not call libvirt, nor raise."""

    def lifecycle(_: Any, domain: Any, kind: int, detail: int, __: Any) -> None:
        name = _KINDS[kind] if kind < len(_KINDS) else ""
        happening = _LIFECYCLE.get(name)
        if happening is None:
            return
        said = "crashed" if name == "crashed" else word(f"DOMAIN_EVENT_{name.upper()}_", detail)
        if said == "migrated":
            happening = {
                Happening.STARTED: Happening.MIGRATED_IN,
                Happening.STOPPED: Happening.MIGRATED_OUT,
            }.get(happening, happening)
        tell(Event(domain.UUIDString(), happening, said))

    def agent(_: Any, domain: Any, state: int, __: int, ___: Any) -> None:
        up = state == flag("CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED")
        tell(Event(domain.UUIDString(), Happening.AGENT_CONNECTED if up else Happening.AGENT_DISCONNECTED))

    def io_error(_: Any, domain: Any, path: str, alias: str, action: int, reason: str, __: Any) -> None:
        did = word("DOMAIN_EVENT_IO_ERROR_", action)
        tell(Event(domain.UUIDString(), Happening.IO_ERROR, f"{alias or path}: {did} {reason}".strip()))

    def added(_: Any, domain: Any, alias: str, __: Any) -> None:
        tell(Event(domain.UUIDString(), Happening.DEVICE_ADDED, alias))

    def removed(_: Any, domain: Any, alias: str, __: Any) -> None:
        tell(Event(domain.UUIDString(), Happening.DEVICE_REMOVED, alias))

    def block_job(_: Any, domain: Any, disk: str, kind: int, status: int, __: Any) -> None:
        said = f"{disk} {word('DOMAIN_BLOCK_JOB_TYPE_', kind)} {word('DOMAIN_BLOCK_JOB_', status)}"
        tell(Event(domain.UUIDString(), Happening.BLOCK_JOB, said))

    for name, heard in (
        ("LIFECYCLE", lifecycle),
        ("AGENT_LIFECYCLE", agent),
        ("IO_ERROR_REASON", io_error),
        ("DEVICE_ADDED", added),
        ("DEVICE_REMOVED", removed),
        ("BLOCK_JOB_2", block_job),
    ):
        connection.domainEventRegisterAny(None, flag(f"DOMAIN_EVENT_ID_{name}"), heard, None)
