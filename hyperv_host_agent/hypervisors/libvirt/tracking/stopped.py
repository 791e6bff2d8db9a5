"""The disks of a VM that does not run, served by qemu-nbd: read-only, without a lock that would keep it from starting.

Whatever is read while the VM starts is not used: it is looked after each read whether the files are as they were.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.base import SourceUnavailable
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.tracking.bitmaps import TrackedDisk
from hyperv_host_agent.hypervisors.libvirt.tracking.places import VmPlaces
from hyperv_host_agent.hypervisors.libvirt.tracking.session import CONNECTIONS
from hyperv_host_agent.nbd.stream import UnixAddress
from twinsite.errors import TwinsiteError

_START_SECONDS: Final = 10.0
_PAUSE: Final = 0.01


class StoppedDisks:
    """Open until `end`. Each server ends by itself when its last client is gone, as after a kill of the agent."""

    def __init__(
        self, vm_id: str, domain: Domain, places: VmPlaces, disks: Iterable[TrackedDisk], since: Mapping[str, str]
    ) -> None:
        """Raises SourceUnavailable."""
        self._vm_id, self._domain, self._places = vm_id, domain, places
        self._servers: list[subprocess.Popen[bytes]] = []
        self._files: dict[Path, tuple[int, int]] = {}
        self.addresses: dict[str, UnixAddress] = {}  # by disk
        end_leftovers(places)
        places.sweep()
        with contextlib.ExitStack() as stack:
            stack.callback(self.end)
            for disk in disks:
                self._files[disk.path] = self._stamp(disk.path)
                self.addresses[disk.id] = self._serve(disk, since.get(disk.target, ""))
            stack.pop_all()

    def trouble(self) -> str:
        try:
            if self._domain.is_active():
                return "it was started meanwhile"
        except TwinsiteError as error:
            return f"it is not known whether it was started meanwhile: {error}"
        changed = [path for path, stamp in self._files.items() if self._stamp(path) != stamp]
        return f"{changed[0]} was changed meanwhile" if changed else ""

    def end(self) -> None:
        for server in self._servers:
            server.terminate()
            server.wait()
            if server.stderr is not None:
                server.stderr.close()
        self._places.sweep()

    def _serve(self, disk: TrackedDisk, bitmap: str) -> UnixAddress:
        address = UnixAddress(self._places.disk_socket(disk.target))
        name = str(disk.path).replace(",", ",,")
        image = f"driver={disk.format},force-share=on,file.driver=file,file.filename={name}"
        if disk.path.is_block_device():
            image = image.replace("file.driver=file", "file.driver=host_device")
        options = ["-B", bitmap] if bitmap else []
        server = subprocess.Popen(
            [
                *("qemu-nbd", "--read-only", f"--shared={CONNECTIONS + 1}", f"--socket={address.path}"),
                *(f"--pid-file={address.path.with_suffix('.pid')}", f"--export-name={disk.target}", *options),
                *("--image-opts", image),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._servers.append(server)
        pause = threading.Event()
        for _ in range(int(_START_SECONDS / _PAUSE)):
            if server.poll() is not None:
                said = server.stderr.read().decode(errors="replace") if server.stderr else ""
                raise SourceUnavailable(self._vm_id, f"qemu-nbd ended: {said.strip()}")
            if address.path.exists():
                return address
            pause.wait(_PAUSE)
        raise SourceUnavailable(self._vm_id, "qemu-nbd does not serve its disks in time")

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int]:
        try:
            found = path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns


def end_leftovers(places: VmPlaces) -> None:
    """Servers that an agent started and did not live to connect to."""
    for path in places.all.run.glob(f"{places.name}-*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"--socket={path.with_suffix('.sock')}".encode() in words:
                os.kill(pid, signal.SIGTERM)
        path.unlink(missing_ok=True)
