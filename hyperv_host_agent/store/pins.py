"""Who uses which points: one sealed document per owner under `pins/`, durable before the use begins."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import copies, files

PINS: Final = "pins"


class Pins:
    """Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path, points: Iterable[int]) -> None:
        """Read them. Whoever's document is lost uses all of `points`, until the use ends. Raises OSError."""
        self._directory = directory / PINS
        self._cycles: dict[str, set[int]] = {}
        self._lost: set[str] = set()  # owners of whom nobody knows what they use
        for path in self._directory.glob("*.tmp"):
            path.unlink()
        for name in copies.names(self._directory):
            documents, _ = copies.read(self._directory / name, _decode)
            documents = [document for document in documents if document[0] == name]
            if not documents:
                self._cycles[name] = set(points)
                self._lost.add(name)
                continue
            # A crash between the copies leaves them apart, and what was said last is in the first.
            self._cycles[name] = documents[0][1]
            if len(documents) == 1 or documents[0] != documents[1]:
                copies.write(self._directory / name, _document(*documents[0]))

    def add(self, owner: str, cycle: int) -> None:
        cycles = self._cycles.get(owner, set()) | {cycle}
        if cycles != self._cycles.get(owner) or owner in self._lost:
            copies.write(self._directory / owner, _document(owner, cycles))
            self._cycles[owner] = cycles
            self._lost.discard(owner)

    def drop(self, owner: str, cycle: int) -> None:
        """Take one pin of an owner back."""
        cycles = self._cycles.get(owner, set()) - {cycle}
        if not cycles:
            self.remove(owner)
        else:
            copies.write(self._directory / owner, _document(owner, cycles))
            self._cycles[owner] = cycles
            self._lost.discard(owner)

    def remove(self, owner: str) -> None:
        if owner in self._cycles:
            files.remove_durably(copies.copy_path(self._directory / owner), self._directory / owner)
            del self._cycles[owner]
            self._lost.discard(owner)

    def documents(self) -> list[copies.Document]:
        return [
            copies.Document(
                self._directory / owner,
                None if owner in self._lost else files.seal(_document(owner, cycles)),
                tuple(sorted(cycles)),
            )
            for owner, cycles in self._cycles.items()
        ]

    def owners(self, cycle: int) -> tuple[str, ...]:
        return tuple(sorted(owner for owner, cycles in self._cycles.items() if cycle in cycles))

    def cycles(self) -> dict[int, str]:
        """Every pinned cycle and one of its owners."""
        return {cycle: owner for owner, cycles in self._cycles.items() for cycle in sorted(cycles)}


def _document(owner: str, cycles: Collection[int]) -> dict[str, object]:
    return {"owner": owner, "cycles": sorted(cycles)}


def _decode(document: dict[str, Any]) -> tuple[str, set[int]]:
    owner, cycles = str(document["owner"]), set(map(int, document["cycles"]))
    copies.as_written(document, _document(owner, cycles))
    return owner, cycles
