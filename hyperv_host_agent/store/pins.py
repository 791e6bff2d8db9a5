"""Who uses which points: one sealed document per owner under `pins/`, durable before the use begins."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import copies, files
from hyperv_host_agent.store.base import StoreDamaged

PINS: Final = "pins"


class Pins:
    """Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path, vm_id: str) -> None:
        """Read them. Raises StoreDamaged."""
        self._directory = directory / PINS
        self._cycles: dict[str, set[int]] = {}
        for path in self._directory.glob("*.tmp"):
            path.unlink()
        for name in copies.names(self._directory):
            documents, problems = copies.read(self._directory / name, _decode)
            if documents and any(owner != name for owner, _ in documents):
                raise StoreDamaged(vm_id, f"pin {name} is of {documents[0][0]}")
            if not documents:
                raise StoreDamaged(vm_id, f"pin {'; '.join(problems)}")
            # A crash between the copies leaves them apart, and what was said last is in the first.
            self._cycles[name] = documents[0][1]
            if len(documents) == 1 or documents[0] != documents[1]:
                copies.write(self._directory / name, _document(*documents[0]))

    def add(self, owner: str, cycle: int) -> None:
        cycles = self._cycles.get(owner, set()) | {cycle}
        if cycles != self._cycles.get(owner):
            copies.write(self._directory / owner, _document(owner, cycles))
            self._cycles[owner] = cycles

    def drop(self, owner: str, cycle: int) -> None:
        """Take one pin of an owner back."""
        cycles = self._cycles.get(owner, set()) - {cycle}
        if not cycles:
            self.remove(owner)
        else:
            copies.write(self._directory / owner, _document(owner, cycles))
            self._cycles[owner] = cycles

    def remove(self, owner: str) -> None:
        if owner in self._cycles:
            copies.remove(self._directory / owner)
            files.sync_directory(self._directory)
            del self._cycles[owner]

    def documents(self) -> list[copies.Document]:
        return [
            copies.Document(self._directory / owner, files.seal(_document(owner, cycles)), tuple(sorted(cycles)))
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
