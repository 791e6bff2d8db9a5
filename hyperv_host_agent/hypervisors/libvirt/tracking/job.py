"""A pull backup of a running VM: begun, watched while it is read, and ended without harm to the guest."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from hyperv_host_agent.changes.base import SourceUnavailable
from hyperv_host_agent.hypervisors.libvirt.domain import Domain, State
from hyperv_host_agent.hypervisors.libvirt.domain import Job as Running
from hyperv_host_agent.hypervisors.libvirt.errors import Busy, LibvirtFailed, NotThere
from hyperv_host_agent.hypervisors.libvirt.tracking import backup_xml
from hyperv_host_agent.hypervisors.libvirt.tracking.bitmaps import TrackedDisk
from hyperv_host_agent.hypervisors.libvirt.tracking.places import VmPlaces
from hyperv_host_agent.nbd.stream import UnixAddress
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError

_LOOK_SECONDS: Final = 0.2
_END_SECONDS: Final = 5.0
_BEGIN_SECONDS: Final = 15.0
_BEGINNING: Final = "backup job data missing"  # what libvirt says of a backup between its first and its last step
_END_LOOK_SECONDS: Final = 0.005
_BY_ERROR: Final = (State.PAUSED, "ioerror")
_HOLDERS: Final = {
    "backup": "another backup tool",
    "migration_in": "a migration",
    "migration_out": "a migration",
    "save": "a save of its memory",
    "save_prepare": "a save of its memory",
    "dump": "a dump of its memory",
    "snapshot": "a snapshot",
    "snapshot_revert": "the revert of a snapshot",
    "snapshot_delete": "the deletion of a snapshot",
    "restore": "its restore",
    "start": "its start",
}

_log = structlog.get_logger()


class Job:
    """Begun; `watch` it while it is read."""

    def __init__(self, vm_id: str, domain: Domain, places: VmPlaces, *, paused: bool) -> None:
        """`paused`: the guest was, by an error of a disk of its own."""
        self._vm_id, self._domain, self._places, self._paused = vm_id, domain, places, paused
        self._trouble = ""
        self._over = threading.Event()

    @classmethod
    def begin(
        cls,
        vm_id: str,
        domain: Domain,
        places: VmPlaces,
        disks: Iterable[TrackedDisk],
        since: Mapping[str, str],
        checkpoint: str | None,
    ) -> "Job":
        """`since`: the checkpoint to count from, by target. Raises what `Domain.backup_begin` does."""
        places.sweep()
        paused = domain.state() == _BY_ERROR
        targets = [disk.target for disk in disks]
        scratch = {target: places.scratch(target) for target in targets}
        with contextlib.ExitStack() as stack:
            stack.callback(places.sweep)
            domain.backup_begin(backup_xml.backup(places.socket, scratch, since, targets), checkpoint)
            stack.pop_all()
        return cls(vm_id, domain, places, paused=paused)

    @property
    def address(self) -> UnixAddress:
        return UnixAddress(self._places.socket)

    def trouble(self) -> str:
        return self._trouble

    def watch(self, close: Callable[[], None]) -> None:
        """From now on `close` is called when the guest would suffer: whoever reads is told why."""
        threading.Thread(target=self._watch, args=(close,), name="scratch", daemon=True).start()

    def end(self) -> None:
        self._over.set()  # not joined: it may be the watcher that ends it, or one that waits to
        end(self._vm_id, self._domain, self._places, resume=not self._paused)

    def _watch(self, close: Callable[[], None]) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            try:
                paused = self._domain.state() == _BY_ERROR and not self._paused
            except NotThere:
                self._trouble = "it was stopped meanwhile"
                close()
                return
            except TwinsiteError:
                continue  # the daemon is away; QEMU goes on, and so does whoever reads
            if paused or self._places.free() < self._places.all.least_free // 2:
                self._trouble = f"no space left for what it overwrites while it is read, in {self._places.all.scratch}"
                _log.error("scratch_full", vm_id=self._vm_id, guest_paused=paused, folder=str(self._places.all.scratch))
                close()
                return


def end(vm_id: str, domain: Domain, places: VmPlaces, *, resume: bool = True) -> None:
    """The job of nobody any more: aborted, its guest runs on, its files are gone. Never raises; repeatable.

    Sockets of ours are closed before: the kernel did it when it was an agent that died.
    """
    try:
        if backup_xml.socket_of(domain.backup_xml()) == str(places.socket):  # not another tool's
            domain.abort_job()
            _wait_ended(domain)
    except NotThere:
        pass
    except TwinsiteError as error:
        _log.warning("backup_not_ended", vm_id=vm_id, problem=str(error))
    try:
        if resume and domain.state() == _BY_ERROR:
            # It was paused by a full scratch disk, which is free again; a disk of its own that is full pauses it anew.
            domain.resume()
            _log.warning("guest_resumed", vm_id=vm_id)
    except TwinsiteError as error:
        _log.error("guest_not_resumed", vm_id=vm_id, problem=str(error))
    places.sweep()


def _wait_ended(domain: Domain) -> None:
    """An abort is only asked for; the files of the job are closed a little later."""
    pause = threading.Event()
    for _ in range(int(_END_SECONDS / _END_LOOK_SECONDS)):
        if _running(domain) is None:
            return
        pause.wait(_END_LOOK_SECONDS)


def end_ours(vm_id: str, domain: Domain, places: VmPlaces) -> bool:
    """End the backup of an agent that died; whether there was one. One that is only beginning, because the agent died
    while it asked for it, is waited for. The caller holds the VM's lock. Raises the errors of `Domain`.
    """
    pause = threading.Event()
    for _ in range(int(_BEGIN_SECONDS / _LOOK_SECONDS)):
        job = _running(domain)
        if job is None or job.operation != "backup":
            return False
        try:
            if backup_xml.socket_of(domain.backup_xml()) != str(places.socket):
                return False
            end(vm_id, domain, places)
        except NotThere:
            pause.wait(_LOOK_SECONDS)
        else:
            return True
    return False


def _running(domain: Domain) -> Running | None:
    try:
        return domain.job()
    except LibvirtFailed as error:
        if _BEGINNING in error.problem:
            return Running("backup", "unbounded")
        raise


def wait_free(vm_id: str, domain: Domain, places: VmPlaces, clock: Clock, *, seconds: float) -> None:
    """Until no other job holds the VM. The caller holds the VM's lock, so that a backup of ours is a dead agent's.

    Raises SourceUnavailable that names who holds it, and the errors of `Domain`.
    """
    pause, wait = threading.Event(), 0.05
    deadline = clock.monotonic() + seconds
    while True:
        end_ours(vm_id, domain, places)
        holder = held_by(domain)
        if not holder:
            return
        if clock.monotonic() >= deadline:
            raise SourceUnavailable(vm_id, f"{holder} holds it")
        pause.wait(wait)
        wait = min(wait * 2, 1.0)


def held_by(domain: Domain) -> str:
    """Who holds the VM, a phrase; empty: nobody."""
    try:
        job = _running(domain)
    except Busy as error:
        return f"another operation ({error.problem})"
    if job is not None and job.kind not in {"completed", "failed", "cancelled"}:
        return _HOLDERS.get(job.operation, f"a job ({job.operation})")
    return ""
