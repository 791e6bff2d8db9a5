"""What the demonstration needs of a hypervisor: VMs at two sites that can be frozen, compared, killed and asked."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Machine(Protocol):
    """A VM whose guest writes numbered records to its disks."""

    def boot(self) -> tuple[int, list[str]]:
        """When it booted last: the newest record it found, and what was wrong. Waits for it. Raises ProgramFailed."""
        ...

    def answers(self) -> str:
        """Where it answers its clients, a phrase; empty: it has none. Raises ProgramFailed when it does not answer."""
        ...

    def newest_record(self, *, before: float = ...) -> int:
        """The newest that was acknowledged until an instant (seconds since 1970); 0: none."""
        ...

    def log(self) -> str:
        """How a person reads the guest's own log."""
        ...


class Source(Machine, Protocol):
    def start(self) -> None: ...

    def frozen(self) -> AbstractContextManager[int]:
        """It writes nothing inside the block; the newest record on its disks."""
        ...

    def digests(self) -> dict[str, str]:
        """SHA-256 of each disk's content by the disk's name; of a frozen VM."""
        ...


class Sites(Protocol):
    def running(self) -> list[int]:
        """Processes of an earlier demonstration in the same folder."""
        ...

    def prepare(self, name: str, image: Path | None) -> tuple[Source, str]:
        """The programs' settings, and the VM at site A, not running; a phrase about its disks."""
        ...

    def copies(self, purpose: str) -> list[Machine]:
        """VMs that Twinsite made at site B: "replica", "test"."""
        ...

    def kill(self, site: str) -> None:
        """The site's hypervisor with its guests at once, as a power cut does."""
        ...

    def end(self) -> None:
        """Of all guests, after the agents."""
        ...

    def how_to_end(self) -> str:
        """A command that ends what was kept, the programs aside."""
        ...
