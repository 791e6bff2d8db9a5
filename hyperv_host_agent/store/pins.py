"""Who uses which points: one sealed document per owner under `pins/`, durable before the use begins."""

from pathlib import Path
from typing import Final

from hyperv_host_agent.store import files
from hyperv_host_agent.store.base import StoreDamaged

PINS: Final = "pins"


class Pins:
    """Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path, vm_id: str) -> None:
        """Read them. Raises StoreDamaged."""
        self._directory = directory / PINS
        self._cycles: dict[str, set[int]] = {}
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".tmp":
                path.unlink()
                continue
            try:
                document = files.unseal(path.read_bytes())
                self._cycles[str(document["owner"])] = set(map(int, document["cycles"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise StoreDamaged(vm_id, f"pin {path.name} {error}") from error

    def add(self, owner: str, cycle: int) -> None:
        cycles = self._cycles.get(owner, set()) | {cycle}
        if cycles != self._cycles.get(owner):
            files.replace_file(self._directory / owner, files.seal({"owner": owner, "cycles": sorted(cycles)}))
            self._cycles[owner] = cycles

    def drop(self, owner: str, cycle: int) -> None:
        """Take one pin of an owner back."""
        cycles = self._cycles.get(owner, set()) - {cycle}
        if not cycles:
            self.remove(owner)
        else:
            files.replace_file(self._directory / owner, files.seal({"owner": owner, "cycles": sorted(cycles)}))
            self._cycles[owner] = cycles

    def remove(self, owner: str) -> None:
        if owner in self._cycles:
            files.remove_file(self._directory / owner)
            files.sync_directory(self._directory)
            del self._cycles[owner]

    def owners(self, cycle: int) -> tuple[str, ...]:
        return tuple(sorted(owner for owner, cycles in self._cycles.items() if cycle in cycles))

    def cycles(self) -> dict[int, str]:
        """Every pinned cycle and one of its owners."""
        return {cycle: owner for owner, cycles in self._cycles.items() for cycle in sorted(cycles)}
