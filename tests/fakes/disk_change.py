"""A program that changes a disk of a stopped VM, for tests that kill it: VMS RUN VM_ID KIND DISK SIZE NAME."""

import sys
from pathlib import Path

from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.geometry import DiskChange


def main(vms: str, run: str, vm_id: str, kind: str, disk: str, size: str, name: str) -> None:
    change = DiskChange(kind, disk, int(size), name)  # type: ignore[arg-type]  # the tests know the words
    EmbeddedHypervisor(Path(vms), Path(run)).change_disks(vm_id, change)


if __name__ == "__main__":
    main(*sys.argv[1:])
