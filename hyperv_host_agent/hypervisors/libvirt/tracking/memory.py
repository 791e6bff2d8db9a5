"""What a VM's change source remembers over restarts: which cycle is confirmed, and which checkpoint it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from hyperv_host_agent.changes.base import Anchor
from hyperv_host_agent.changes.durable import replace

PREFIX: Final = "twinsite-"  # of checkpoints and bitmaps that are ours
_VERSION: Final = 1


def checkpoint_name(cycle_id: bytes) -> str:
    return PREFIX + cycle_id.hex()


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a disk at the point, and the least it was seen to have since: behind that nothing is known."""

    size: int
    least: int

    def seen(self, size: int) -> "Size":
        return Size(self.size, min(self.least, size))


@dataclass(frozen=True, slots=True)
class Marked:
    """A cycle, and the checkpoint from which changes since its instant count."""

    cycle: int
    id: bytes
    sizes: dict[str, Size]  # of the disks that were part of it

    @property
    def checkpoint(self) -> str:
        return checkpoint_name(self.id)

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.cycle, self.id)

    def seen(self, sizes: dict[str, int]) -> "Marked":
        known = {disk: size.seen(sizes[disk]) if disk in sizes else size for disk, size in self.sizes.items()}
        return Marked(self.cycle, self.id, known)


@dataclass(frozen=True, slots=True)
class Memory:
    tracking: bool = False
    anchor: Marked | None = None
    pending: Marked | None = None  # opened, neither acked nor discarded

    def checkpoints(self) -> set[str]:
        """That are needed still."""
        return {marked.checkpoint for marked in (self.anchor, self.pending) if marked is not None}


def read(path: Path) -> Memory:
    """What cannot be read is not believed: tracking goes on from nothing, so that everything is compared."""
    try:
        digest, _, document = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return Memory()
    if digest != blake3(document).hexdigest().encode():
        return Memory(tracking=True)
    found: dict[str, Any] = json.loads(document)
    if found.get("version") != _VERSION:
        return Memory(tracking=True)
    return Memory(found["tracking"], _marked(found["anchor"]), _marked(found["pending"]))


def write(path: Path, memory: Memory) -> None:
    """Durable when it returns. Raises OSError."""
    document = json.dumps(
        {
            "version": _VERSION,
            "tracking": memory.tracking,
            "anchor": _words(memory.anchor),
            "pending": _words(memory.pending),
        }
    ).encode()
    replace(path, blake3(document).hexdigest().encode() + b"\n" + document)


def _marked(words: dict[str, Any] | None) -> Marked | None:
    if words is None:
        return None
    sizes = {disk: Size(*numbers) for disk, numbers in words["sizes"].items()}
    return Marked(words["cycle"], bytes.fromhex(words["id"]), sizes)


def _words(marked: Marked | None) -> dict[str, Any] | None:
    if marked is None:
        return None
    sizes = {disk: [size.size, size.least] for disk, size in marked.sizes.items()}
    return {"cycle": marked.cycle, "id": marked.id.hex(), "sizes": sizes}
