"""VMs this host runs because it failed them over: on disk before they start, so that a restart brings them up again."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from twinsite import files
from twinsite.errors import Failed


class PromotionDamaged(Failed):
    public = "the record that VM {error.vm_id} was failed over to this host cannot be read"
    still_works = "the VM was not started; its disks are untouched"
    next_step = "twinsite vm failover again, from a point of the same replica"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


@dataclass(frozen=True, slots=True)
class Promotion:
    vm_id: str
    term: int
    cycle: int  # the point it was started from


class Promotions:
    def __init__(self, folder: Path) -> None:
        self._folder = files.private_directory(folder)

    def get(self, vm_id: str) -> Promotion | None:
        """Raises PromotionDamaged."""
        try:
            return Promotion(**json.loads((self._folder / f"{vm_id}.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise PromotionDamaged(vm_id) from None

    def has(self, vm_id: str) -> bool:
        return (self._folder / f"{vm_id}.json").exists()

    def put(self, promotion: Promotion) -> None:
        """Durable when it returns."""
        files.replace(self._folder / f"{promotion.vm_id}.json", json.dumps(asdict(promotion)).encode())

    def drop(self, vm_id: str) -> None:
        (self._folder / f"{vm_id}.json").unlink(missing_ok=True)
        files.sync_directory(self._folder)

    def ids(self) -> Iterator[str]:
        for path in sorted(self._folder.glob("*.json")):
            yield path.stem
