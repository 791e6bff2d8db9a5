"""Sites of the embedded hypervisor: VMs are folders, guests are processes."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo import disk
from demo.guest import Guest
from demo.lab import SITES, Lab, until
from demo.sites import Machine, Source
from twinsite.units import MiB

_FILES_BYTES: Final = 360 * MiB  # of this machine's own files on the first disk
_DISK_BYTES: Final = 512 * MiB
_SECOND_BYTES: Final = 64 * MiB


@dataclass(frozen=True, slots=True)
class EmbeddedMachine:
    guest: Guest

    def start(self) -> None:
        self.guest.start()

    def boot(self) -> tuple[int, list[str]]:
        found = until("the VM to boot", self.guest.boot)
        return found["recovered_sequence"], found["problems"]

    def answers(self) -> str:
        return ""

    def newest_record(self, *, before: float = float("inf")) -> int:
        return self.guest.newest_record(before=before)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[int]:
        with self.guest.frozen():
            yield self.guest.newest_record()

    def digests(self) -> dict[str, str]:
        return {name: disk.sha256(path) for name, path in self.guest.disks().items()}

    def log(self) -> str:
        return f"less {self.guest.folder}/guest.log"


@dataclass(frozen=True, slots=True)
class EmbeddedSites:
    lab: Lab

    def running(self) -> list[int]:
        guests = (guest.pid() for site in SITES for guest in Guest.all(self.lab.vms(site)))
        return [pid for pid in guests if pid is not None]

    def prepare(self, name: str, image: Path | None) -> tuple[Source, str]:
        self.lab.lay_out()
        first = self.lab.root / "first.img"
        if image:
            disk.from_image(image, first)
            about = f"first disk is {image}"
        else:
            size = disk.ext4_of_real_files(
                first, size=_DISK_BYTES, content=_FILES_BYTES, staging=self.lab.root / "staging"
            )
            about = f"ext4 with {size // MiB} MiB of real files"
        return EmbeddedMachine(Guest.create(self.lab.vms("a"), name, first=first, second=_SECOND_BYTES)), about

    def copies(self, purpose: str) -> list[Machine]:
        found = (guest for guest in Guest.all(self.lab.vms("b")) if guest.description()["purpose"] == purpose)
        return [EmbeddedMachine(guest) for guest in found]

    def kill(self, site: str) -> None:
        Guest.kill_all(self.lab.vms(site))

    def end(self) -> None:
        for site in SITES:
            self.kill(site)

    def how_to_end(self) -> str:
        return f"kill {' '.join(str(pid) for pid in self.running())}"
