"""A VM of the embedded hypervisor as the demonstration sees it: its folder, its guest's log, its disks."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from demo.process import ProgramFailed, kill_pid
from hyperv_host_agent.hypervisors.embedded.machine_folder import started
from twinsite.units import MiB

_MODULE: Final = "hyperv_host_agent.hypervisors.embedded"
_FREEZE_SECONDS: Final = 150  # it thaws by itself after that, whatever becomes of us


def _embedded(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise ProgramFailed(f"{_MODULE} {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Guest:
    folder: Path

    @classmethod
    def create(
        cls, vms: Path, name: str, *, first: Path, second: int, interval: float = 0.05, load: int = 2 * MiB
    ) -> Self:
        """A VM whose first disk is a copy of `first` and whose second is blank; records on both, load on the second."""
        disks = ("--disk", f"vda={first}", "--disk", f"vdb={second // MiB}MiB")
        pace = ("--interval", str(interval), "--load", f"{load // 1024}KiB")
        vm_id = _embedded("create", "--vms", str(vms), "--name", name, *disks, *pace).strip()
        return cls(vms / vm_id)

    @classmethod
    def all(cls, vms: Path) -> list[Self]:
        """Every VM in a host's folder."""
        found = sorted(vms.glob("*/machine.json")) if vms.is_dir() else []
        return [cls(path.parent) for path in found if not path.parent.name.startswith(".")]

    @staticmethod
    def kill_all(vms: Path) -> None:
        """Every guest process of a host, as a power cut does."""
        for guest in Guest.all(vms):
            if (pid := guest.pid()) is not None:
                kill_pid(pid)

    def start(self) -> None:
        _embedded("start", "--vms", str(self.folder.parent), "--name", self.folder.name)

    def add_disk(self, name: str, size: int) -> None:
        """A blank disk of that many MiB-rounded bytes, whether the VM runs or not."""
        self._disk("add", f"{name}={size // MiB}MiB")

    def resize_disk(self, name: str, size: int) -> None:
        self._disk("resize", f"{name}={size // MiB}MiB")

    def remove_disk(self, name: str) -> None:
        self._disk("remove", name)

    def _disk(self, verb: str, words: str) -> None:
        where = ("--vms", str(self.folder.parent), "--name", self.folder.name)
        _embedded("disk", verb, *where, "--disk", words)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The guest writes nothing inside the block."""
        where = ("--vms", str(self.folder.parent), "--name", self.folder.name)
        answer = json.loads(_embedded("freeze", *where, "--seconds", str(_FREEZE_SECONDS)))
        if not answer["frozen"]:
            raise ProgramFailed("the guest did not freeze")
        try:
            yield
        finally:
            _embedded("thaw", *where)

    def description(self) -> dict[str, Any]:
        words: dict[str, Any] = json.loads((self.folder / "machine.json").read_text())
        return words

    def disks(self) -> dict[str, Path]:
        """File of each flat disk by its name."""
        return {disk["name"]: self.folder / disk["file"] for disk in self.description()["disks"]}

    def pid(self) -> int | None:
        """Of the guest process, while it runs; a dead one that nobody has reaped does not."""
        try:
            pid = int(json.loads((self.folder / "guest.json").read_text())["pid"])
        except FileNotFoundError:
            return None
        return pid if started(pid) is not None else None

    def boot(self) -> dict[str, Any] | None:
        """What the guest found on its disks when it booted last; None: it has not booted yet."""
        return next((line for line in reversed(self._log()) if line["event"] == "boot"), None)

    def newest_record(self, *, before: float = float("inf")) -> int:
        """Sequence of the newest record the guest acknowledged until an instant (seconds since 1970); 0: none."""
        return max(
            (line["sequence"] for line in self._log() if line["event"] == "record" and line["at"] <= before), default=0
        )

    def _log(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for name in ("guest.log.1", "guest.log"):
            with contextlib.suppress(FileNotFoundError):
                lines += [json.loads(line) for line in (self.folder / name).read_text().splitlines()]
        return lines
