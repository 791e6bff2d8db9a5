"""The replica store on disk: a directory per VM, in it a chain of immutable qcow2 layers per disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hyperv_host_agent.store import copies, files, manifests, rules, store_lock
from hyperv_host_agent.store.base import NoSpace, PointPinned, ReplicaMissing, TermLost
from hyperv_host_agent.store.keeps import Keeps
from hyperv_host_agent.store.lock_clock import LockClock
from hyperv_host_agent.store.manifests import POINTS
from hyperv_host_agent.store.pins import PINS, Pins
from hyperv_host_agent.store.replica import TERM, ChainReplica, term_problem, write_term
from twinsite.clock import Boot, boot

_GONE: Final = ".removed-"


class ChainStore:
    """A ReplicaStore in a directory, made when it is missing.

    `reserve` bytes of the file system stay free. Open a VM once at a time. Raises StoreInUse while another process
    has the store.
    """

    def __init__(
        self,
        root: Path,
        *,
        reserve: int = files.RESERVE,
        space: files.Space = files.disk_space,
        read: Callable[[], Boot] = boot,
    ) -> None:
        self.root, self.reserve = root, reserve
        self._space = space
        root.mkdir(mode=files.PASSABLE, parents=True, exist_ok=True)
        self._process = store_lock.take(root)
        self._clock = LockClock(root, read=read)
        for path in root.glob(f"{_GONE}*"):
            shutil.rmtree(path)

    def open(self, vm_id: str) -> ChainReplica:
        directory = self._directory(vm_id)
        if not copies.exists(directory / TERM):
            if (directory / POINTS).is_dir() and any((directory / POINTS).iterdir()):
                raise TermLost(vm_id, f"{TERM} is missing")
            raise ReplicaMissing(vm_id)
        return ChainReplica(directory, vm_id, reserve=self.reserve, space=self._space, clock=self._clock)

    def create(self, vm_id: str, *, term: int) -> ChainReplica:
        directory = self._directory(vm_id)
        if not copies.exists(directory / TERM):
            free = self.free_bytes()
            if free < self.reserve:
                raise NoSpace(free, self.reserve)
            with files.writing(vm_id, self.root, self._space):
                for path in (directory, directory / POINTS, directory / PINS):
                    files.make_directory(path)
                if not any((directory / POINTS).iterdir()):
                    write_term(directory, vm_id, term)
        return self.open(vm_id)

    def give_term(self, vm_id: str, term: int) -> None:
        directory = self._directory(vm_id)
        with files.writing(vm_id, self.root, self._space):
            if directory.is_dir() and term_problem(directory, vm_id):
                write_term(directory, vm_id, term)

    def remove(self, vm_id: str) -> None:
        directory = self._directory(vm_id)
        if not directory.exists():
            return
        if (directory / PINS).is_dir():
            for cycle, owner in Pins(directory, manifests.cycles(directory)).cycles().items():
                raise PointPinned(cycle, owner)
        with files.writing(vm_id, self.root, self._space):
            Keeps(directory, self._clock).check_none_locked()
            gone = self.root / f"{_GONE}{vm_id}"
            if gone.exists():
                shutil.rmtree(gone)
            directory.rename(gone)  # all or nothing, also for a reader of the directory
            files.sync_directory(self.root)
            shutil.rmtree(gone)

    def replicas(self) -> list[str]:
        found = {path.parent.name for path in self.root.glob(f"*/{TERM}*") if not path.name.endswith(".tmp")}
        return sorted(name for name in found if not name.startswith("."))

    def free_bytes(self) -> int:
        return self._space(self.root)[0]

    def total_bytes(self) -> int:
        return self._space(self.root)[1]

    def _directory(self, vm_id: str) -> Path:
        return self.root / rules.check_id("VM", vm_id)
