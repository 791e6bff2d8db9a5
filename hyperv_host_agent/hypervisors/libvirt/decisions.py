"""What this host decided about VMs, durable: fenced, stopped on purpose, started by the agent instead of by libvirt."""

import json
import threading
from dataclasses import asdict, dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.durable import replace, safe_name
from twinsite.clock import boot

_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class Decision:
    vm_id: str
    fenced: int | None = None  # the term in which another host owns it; 0: one nobody can read any more
    stopped: bool = False  # by an order; it stays so until a start is ordered
    autostart: bool = False  # libvirt's own was on and was taken over
    seen: str = ""  # the boot of the host in which it ran last


class Decisions:
    """One file a VM in `folder`. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._boot = boot().id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[str, Decision] = {}
        self._unreadable: set[str] = set()
        for path in folder.glob("*" + _SUFFIX):
            decision = _read(path)
            if decision is not None:
                self._known[decision.vm_id] = decision
            else:
                self._unreadable.add(path.name)

    def get(self, vm_id: str) -> Decision:
        with self._lock:
            return self._get(vm_id)

    def fence(self, vm_id: str, term: int) -> None:
        with self._lock:
            present = self._get(vm_id)
            self._put(changed(present, fenced=max(term, present.fenced or 0)))

    def unfence(self, vm_id: str) -> None:
        with self._lock:
            self._put(changed(self._get(vm_id), fenced=None))

    def stopped(self, vm_id: str, on_purpose: bool) -> None:
        with self._lock:
            self._put(changed(self._get(vm_id), stopped=on_purpose))

    def autostart(self, vm_id: str, taken: bool) -> None:
        with self._lock:
            self._put(changed(self._get(vm_id), autostart=taken))

    def runs(self, vm_id: str) -> None:
        """It was seen to run since the host's last boot."""
        with self._lock:
            present = self._known.get(vm_id)
            if present is not None and present.autostart:  # of the others it does not matter
                self._put(changed(present, seen=self._boot))

    def ran(self, vm_id: str) -> bool:
        """Whether it was seen to run since the host's last boot: if so, who stopped it meant it."""
        return self.get(vm_id).seen == self._boot

    def forget(self, vm_id: str) -> None:
        with self._lock:
            self._known.pop(vm_id, None)
            self._path(vm_id).unlink(missing_ok=True)
            self._unreadable.discard(self._path(vm_id).name)

    def _get(self, vm_id: str) -> Decision:
        """What nobody can read any more may have been a fence, of a term nobody knows: it is taken as one."""
        if self._path(vm_id).name in self._unreadable:
            return Decision(vm_id, fenced=0)
        return self._known.get(vm_id, Decision(vm_id))

    def _put(self, decision: Decision) -> None:
        if self._get(decision.vm_id) != decision:
            path = self._path(decision.vm_id)
            replace(path, json.dumps(asdict(decision)).encode())
            self._known[decision.vm_id] = decision
            self._unreadable.discard(path.name)

    def _path(self, vm_id: str) -> Path:
        return self._folder / (safe_name(vm_id) + _SUFFIX)


def _read(path: Path) -> Decision | None:
    """None: it is unreadable."""
    try:
        words = json.loads(path.read_bytes())
        return Decision(**words)
    except (ValueError, TypeError):
        return None
