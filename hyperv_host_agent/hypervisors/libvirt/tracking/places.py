"""Where change sources keep what: what they remember, their sockets, and what guests overwrite meanwhile."""

import os
from dataclasses import dataclass
from pathlib import Path

from hyperv_host_agent.changes.durable import safe_name
from twinsite.units import GiB


@dataclass(frozen=True, slots=True)
class Places:
    """`run` and `scratch` are folders that QEMU may write to; `run` has a short path, for sockets."""

    state: Path
    run: Path
    scratch: Path
    least_free: int = 1 * GiB  # bytes of `scratch`: with less no point is opened, with half of it an open one is closed

    def of(self, vm_id: str) -> "VmPlaces":
        return VmPlaces(self, safe_name(vm_id)[:16])


@dataclass(frozen=True, slots=True)
class VmPlaces:
    all: Places
    name: str

    @property
    def memory(self) -> Path:
        return self.all.state / f"{self.name}.json"

    @property
    def freezing(self) -> Path:
        """There while the guest's file systems may stand still."""
        return self.all.state / f"{self.name}.freezing"

    @property
    def lock(self) -> Path:
        """Held by whoever has a point or a copy of the VM open."""
        return self.all.state / f"{self.name}.lock"

    @property
    def socket(self) -> Path:
        return self.all.run / f"{self.name}.sock"

    def disk_socket(self, target: str) -> Path:
        return self.all.run / f"{self.name}-{target}.sock"

    def scratch(self, target: str) -> Path:
        return self.all.scratch / f"{self.name}-{target}.scratch"

    def make(self) -> None:
        for folder in (self.all.state, self.all.run, self.all.scratch):
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)

    def free(self) -> int:
        """Bytes for scratch files."""
        found = os.statvfs(self.all.scratch)
        return found.f_bavail * found.f_frsize

    def sweep(self) -> None:
        """Sockets and scratch files of nobody."""
        for pattern, folder in (("*.sock", self.all.run), ("*.pid", self.all.run), ("*.scratch", self.all.scratch)):
            for path in folder.glob(self.name + pattern):
                path.unlink(missing_ok=True)
