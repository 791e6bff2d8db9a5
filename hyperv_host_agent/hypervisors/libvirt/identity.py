"""How a VM is called by us and by libvirt, which takes not every id and name."""

import re
import uuid
from typing import Final

from hyperv_host_agent.changes.durable import safe_name

_UNFIT: Final = re.compile(r"[^\w .:+@()-]+")
_LONGEST: Final = 100  # libvirt makes names of files and sockets of it


def libvirt_uuid(vm_id: str) -> str:
    """The id itself when it is a UUID, as every libvirt VM's is; else one that is always the same for it."""
    try:
        if str(uuid.UUID(vm_id)) == vm_id:
            return vm_id
    except ValueError:
        pass
    return str(uuid.uuid5(uuid.NAMESPACE_OID, vm_id))


def libvirt_name(name: str) -> str:
    """The name itself when libvirt takes it; else what is left of it, told apart from others by a hash."""
    fit = _UNFIT.sub("_", name).strip(" .") or "vm"
    if fit == name and len(fit) <= _LONGEST:
        return name
    return f"{fit[:_LONGEST]}-{safe_name(name)[:8]}"
