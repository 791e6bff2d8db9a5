"""What checks found and nothing mended yet, and how far the check of a replica is: one sealed document, `scrub.json`.

A frame is known by its cluster and the cycle that brought it, not by its file: merging moves it from layer to layer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import copies
from hyperv_host_agent.store.base import ScrubState
from twinsite.extents import Run

FILE: Final = "scrub.json"
MOST: Final = 10_000  # damages that are kept one by one; a layer with more of them counts as damaged whole


@dataclass(frozen=True, slots=True)
class Damage:
    """A frame whose content is lost here, or (without a cluster) a file that is no use as a whole."""

    disk: str  # empty: the file belongs to no disk
    file: str  # where it was found, in the replica's directory
    problem: str
    cluster: int | None = None
    cycle: int = 0  # that brought the frame
    until: int = 0  # the first cycle that brought the cluster anew; 0: none did
    fingerprint: bytes = b""
    tried: bool = False  # a repair found nothing here to mend it from

    def shown_at(self, cycle: int) -> bool:
        """Whether a point that shows a disk as of this cycle shows the frame."""
        return self.cycle <= cycle and (not self.until or cycle < self.until)

    def to_json(self) -> list[object]:
        place = [self.disk, self.file, self.problem, self.cluster, self.cycle, self.until]
        return [*place, self.fingerprint.hex(), self.tried]

    @classmethod
    def from_json(cls, value: Any) -> "Damage":
        disk, file, problem, cluster, cycle, until, fingerprint, tried = value
        made = cls(disk, file, problem, cluster, int(cycle), int(until), bytes.fromhex(fingerprint), bool(tried))
        if not all(isinstance(text, str) for text in (disk, file, problem)) or made.to_json() != value:
            raise ValueError("is malformed")
        if cluster is not None and int(cluster) < 0:
            raise ValueError(f"names cluster {cluster}")
        return made


@dataclass(frozen=True, slots=True)
class Position:
    """How far a round is: the documents come first, then disk by disk, layer by layer."""

    disk: str = ""
    layer: int = 0  # newest cycle of the layer that is being checked
    cluster: int = 0

    def passed(self, disk: str, layer: int) -> bool:
        """Whether the round has left this layer behind."""
        return (disk, layer) < (self.disk, self.layer)


class Record:
    """The document. Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path) -> None:
        """Read it; when both copies are lost, the check begins again. Raises OSError."""
        self._path = directory / FILE
        self._data = b""  # as it was written last
        self.position: Position | None
        self.completed: float | None
        documents, _ = copies.read(self._path, _decode)
        held = documents[0] if documents else (None, 0, None, 0, [])
        self.position, self.checked, self.completed, self.repaired, self._damages = held
        if documents:
            self.save()

    @property
    def damages(self) -> list[Damage]:
        return self._damages

    def state(self, total: int, *, retry: bool) -> ScrubState:
        """As it is told; `total` bytes are checked in a round."""
        running = self.position is not None
        return ScrubState(
            completed=self.completed,
            checked_bytes=min(self.checked, total) if running else total if self.completed else 0,
            total_bytes=total,
            damaged=len(self._damages),
            tried=sum(damage.tried for damage in self._damages),
            repaired=self.repaired,
            retry=retry,
        )

    def replace(self, found: Iterable[Damage], *, of: Callable[[Damage], bool]) -> None:
        """What a check found stands in place of the damages `of` which it looked anew. Not saved."""
        self._damages = [damage for damage in self._damages if not of(damage)] + [*found]

    def was_tried(self, file: str) -> bool:
        """Whether a file that is damaged as a whole is known, and nothing mended it."""
        return any(one.tried and one.cluster is None and one.file == file for one in self._damages)

    def brought(self, cycle: int, clusters: Mapping[str, list[Run]]) -> bool:
        """A cycle was committed with these clusters: the newest point no longer shows what was there. Not saved."""
        changed = False
        for at, damage in enumerate(self._damages):
            cluster = damage.cluster
            if cluster is None or damage.until:
                continue
            if any(run.start <= cluster < run.end for run in clusters.get(damage.disk, ())):
                self._damages[at] = replace(damage, until=cycle)
                changed = True
        return changed

    def documents(self) -> list[copies.Document]:
        return [copies.Document(self._path, self._data)] if self._data else []

    def save(self) -> None:
        """Raises OSError."""
        self._data = copies.write(
            self._path, _document(self.position, self.checked, self.completed, self.repaired, self._damages)
        )


_Held = tuple[Position | None, int, float | None, int, list[Damage]]


def _document(
    position: Position | None, checked: int, completed: float | None, repaired: int, damages: list[Damage]
) -> dict[str, object]:
    return {
        "position": [position.disk, position.layer, position.cluster] if position else None,
        "checked": checked,
        "completed": completed,
        "repaired": repaired,
        "damages": [damage.to_json() for damage in damages],
    }


def _decode(document: dict[str, Any]) -> _Held:
    position, completed = None, document["completed"]
    if document["position"] is not None:
        disk, layer, cluster = document["position"]
        position = Position(str(disk), int(layer), int(cluster))
        if cluster < 0:
            raise ValueError(f"is at cluster {cluster}")
    held = (
        position,
        int(document["checked"]),
        None if completed is None else float(completed),
        int(document["repaired"]),
        [Damage.from_json(value) for value in document["damages"]],
    )
    copies.as_written(document, _document(*held))
    return held
