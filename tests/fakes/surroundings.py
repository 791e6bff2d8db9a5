"""A host's file systems and network as a test says they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyperv_host_agent.seeds.paths import Mount


@dataclass
class FakeSurroundings:
    """Directories under `media` are file systems of their own; everything else is the host's disk."""

    media: Sequence[Path] = ()
    table: Sequence[Mount] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # host name → address
    own: frozenset[str] = frozenset()
    loops: Mapping[str, Path] = field(default_factory=dict)  # loop device → the file it is made of
    room: int = 1 << 40

    def device(self, path: Path) -> int:
        for number, folder in enumerate(self.media, 2):
            if path.is_relative_to(folder):
                return number
        return 1

    def mounts(self) -> Sequence[Mount]:
        return self.table

    def beneath(self, source: str) -> Path | None:
        return self.loops.get(source)

    def addresses(self, name: str) -> frozenset[str]:
        return frozenset({self.names[name]}) if name in self.names else frozenset()

    def here(self, address: str) -> bool:
        return address in self.own

    def free(self, path: Path) -> int:
        assert path.is_dir()
        return self.room
