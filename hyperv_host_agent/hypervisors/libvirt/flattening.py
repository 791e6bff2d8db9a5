"""Making a running copy independent of the recovery point it stands on, a slice at a time.

Between slices a cycle may run: QEMU takes no backup while layers are pulled up. What a slice copied stays.
"""

import contextlib
import threading
from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.hypervisors.libvirt import tree
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.errors import NotThere
from twinsite.clock import SystemClock

_LOOK_SECONDS: Final = 0.05

_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Flattened:
    """How far a disk is: `current` of `end` bytes were looked through in this slice; `done`: it has no layers below."""

    done: bool
    current: int
    end: int


def flatten(domain: Domain, target: str, *, seconds: float, bandwidth: int) -> Flattened:
    """For so long, at so many bytes a second (0: as fast as it goes), of a VM that runs; call again until it is done.

    Raises Busy while a cycle runs, NotThere for a disk it has not, LibvirtFailed when the VM does not run.
    """
    if is_flat(domain, target):
        return Flattened(True, 0, 0)
    domain.block_pull(target, bandwidth)
    current = end = 0
    ended = False
    deadline = _CLOCK.monotonic() + seconds
    try:
        while not ended and _CLOCK.monotonic() < deadline:
            threading.Event().wait(_LOOK_SECONDS)
            job = domain.block_job(target)
            ended = job is None
            if job is not None:
                current, end = job.current, job.end
    finally:
        if not ended:
            with contextlib.suppress(NotThere):  # it ended in this moment
                domain.block_job_abort(target)
    return Flattened(is_flat(domain, target), current, end)


def is_flat(domain: Domain, target: str) -> bool:
    """Raises NotThere when it has no such disk."""
    for disk in tree.devices(tree.parse(domain.xml()), "disk"):
        if tree.get(disk.find("target"), "dev") == target:
            return disk.find("backingStore/source") is None
    raise NotThere(f"the VM has no disk {target}")
