"""The hypervisor port over machine folders and guest processes."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import locked, sync_folder
from hyperv_host_agent.changes.tracked_disks import OWNER_LOCK, Owner, OwnerGone, TrackedDisks, reader_lock
from hyperv_host_agent.changes.tracked_file import TrackedFileSource
from hyperv_host_agent.hypervisors.base import (
    Address,
    Finding,
    Guest,
    MachineExists,
    MachineFailed,
    MachineFenced,
    MachineMissing,
    MachineSpec,
    MachineState,
    Native,
    Obstacles,
    Power,
    Purpose,
    Severity,
    test_name,
)
from hyperv_host_agent.hypervisors.description import to_proto
from hyperv_host_agent.hypervisors.embedded import geometry
from hyperv_host_agent.hypervisors.embedded.control import GuestOwner, Words, ask
from hyperv_host_agent.hypervisors.embedded.geometry import DiskChange
from hyperv_host_agent.hypervisors.embedded.machine_folder import (
    DiskFile,
    GuestProcess,
    MachineFolder,
    folder_name,
)
from hyperv_host_agent.hypervisors.embedded.overlay import create_overlay
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from twinsite.clock import SystemClock

_START_SECONDS: Final = 60.0  # a loaded host, and a record check that reads from a deep chain
_POINT_SECONDS: Final = 5.0  # a point is open for moments, as a rule
_KILL_SECONDS: Final = 20.0
_DELETED: Final = ".deleted-"
_NEW: Final = ".new-"
_DEFINING: Final = ".defining"  # a lock: one new VM at a time, whichever process makes it

log = structlog.get_logger()


class EmbeddedHypervisor:
    """VMs are folders in `vms`; `run` is for the guests' control sockets and may vanish with a restart of the host."""

    def __init__(self, vms: Path, run: Path, *, point_seconds: float = _POINT_SECONDS) -> None:
        """`point_seconds`: so long a change of disks waits for whoever reads a point of the VM."""
        self._vms, self._run, self._point_seconds = vms, run, point_seconds
        self._clock = SystemClock()
        self._lock = threading.Lock()  # guards what follows, and everything that looks at all names
        self._machine_locks: dict[str, threading.RLock] = {}
        vms.mkdir(parents=True, exist_ok=True, mode=0o700)
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(vms / _DEFINING) as free:
            for rubbish in (*vms.glob(_DELETED + "*"), *(vms.glob(_NEW + "*") if free else ())):
                shutil.rmtree(rubbish, ignore_errors=True)

    def name(self) -> str:
        return "embedded"

    def machines(self) -> list[MachineState]:
        found: list[MachineState] = []
        for path in sorted(self._vms.iterdir()):
            if path.name.startswith(".") or not path.is_dir():
                continue
            try:
                found.append(self._state(MachineFolder.open(path, path.name)))
            except MachineMissing:
                continue  # not a VM, or undefined in this moment
            except MachineFailed as error:
                log.warning("vm unreadable", folder=str(path), problem=error.problem)
        return found

    def machine(self, vm_id: str) -> MachineState:
        return self._state(self._open(vm_id))

    def change_source(self, vm_id: str) -> TrackedFileSource:
        folder = self._open(vm_id)

        def owner() -> Owner:
            guest = folder.guest()
            if guest is None or not guest.alive():
                raise OwnerGone
            return GuestOwner(Path(guest.socket))

        return TrackedFileSource(
            vm_id,
            folder.path,
            lambda: self._open(vm_id).spec.disks,
            lambda disk, writable: self._open(vm_id).open_disk(disk, writable),
            machine=lambda: to_proto(self.machine(vm_id)).SerializeToString(deterministic=True),
            owner=owner,
            settled=lambda: folder.guest() is None,
            recover=lambda: geometry.recover(folder.path),
        )

    def describe(self, vm_id: str) -> Native | None:
        self._open(vm_id)
        return None

    def examine(self, vm_id: str) -> tuple[Finding, ...]:
        self._open(vm_id)
        return ()

    def preflight(self, spec: MachineSpec, native: Native | None) -> tuple[Finding, ...]:  # noqa: ARG002  # as the port has it
        return () if native is None else (_foreign(native),)

    def define(
        self, spec: MachineSpec, disks: tuple[AttachedDisk, ...], *, purpose: Purpose, native: Native | None = None
    ) -> None:
        if native is not None:
            raise Obstacles(spec.name, [_foreign(native)])
        files = tuple(
            DiskFile(disk.id, disk.name, disk.size, f"disk{number}.top", tuple(str(layer) for layer in disk.layers))
            for number, disk in enumerate(disks)
        )

        def fill(folder: Path) -> None:
            for file in files:
                create_overlay(folder / file.file, file.size)

        self.define_with(spec, files, fill, purpose=purpose, autostart=False)

    def define_with(
        self,
        spec: MachineSpec,
        files: tuple[DiskFile, ...],
        fill: Callable[[Path], None],
        *,
        purpose: Purpose,
        autostart: bool,
    ) -> None:
        """A VM whose disk files `fill` makes in the new folder; there is no trace of it before they are complete."""
        with self._lock, locked(self._vms / _DEFINING, seconds=_START_SECONDS) as free:
            if not free:
                raise MachineFailed(spec.id, "another VM is being made all the time")
            if purpose is Purpose.TEST:
                spec = replace(spec, name=test_name(spec.name, spec.id, (other.spec for other in self.machines())))
            described = replace(spec, disks=tuple(DiskGeometry(file.id, file.size, file.name) for file in files))
            path = self._vms / folder_name(spec.id)
            with contextlib.suppress(MachineMissing):
                present = MachineFolder.open(path, spec.id)
                if (present.spec, present.disks, present.purpose) != (described, files, purpose):
                    raise MachineExists(present.spec.name)
                return
            if any(other.spec.name == spec.name for other in self.machines()):
                raise MachineExists(spec.name)
            new = self._vms / (_NEW + path.name)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o700)
            try:
                fill(new)
                MachineFolder.write(new, spec, files, purpose, autostart=autostart)
            except OSError as error:
                shutil.rmtree(new, ignore_errors=True)
                raise MachineFailed(spec.id, f"its disks cannot be made: {error}") from error
            new.rename(path)
            sync_folder(self._vms)

    def start(self, vm_id: str) -> None:
        with self._changing(vm_id):
            folder = self._open(vm_id)
            term = folder.fenced()
            if term is not None:
                raise MachineFenced(vm_id, term)
            folder.stopped_on_purpose(False)
            if self._state(folder).power is not Power.RUNNING:
                self._launch(folder)

    def stop(self, vm_id: str, *, timeout: float) -> None:
        with self._changing(vm_id):
            folder = self._open(vm_id)
            folder.stopped_on_purpose(True)
            self._stop(folder, timeout)

    def undefine(self, vm_id: str) -> None:
        with self._changing(vm_id):
            try:
                folder = self._open(vm_id)
            except MachineMissing:
                return
            if folder.purpose is Purpose.ORDINARY:
                raise MachineFailed(vm_id, "it was not defined by Twinsite and is not removed")
            with locked(folder.path / OWNER_LOCK, seconds=1.0) as free:
                if not free:
                    raise MachineFailed(vm_id, "it runs, stop it first")
                gone = self._vms / (_DELETED + folder.path.name)
                shutil.rmtree(gone, ignore_errors=True)
                folder.path.rename(gone)
                sync_folder(self._vms)
            shutil.rmtree(gone, ignore_errors=True)

    def disk_path(self, vm_id: str, disk: str) -> Path:
        folder = self._open(vm_id)
        return folder.path / folder.disk_file(disk).file

    def open_disk(self, vm_id: str, disk: str) -> Disk:
        """The disk as it is now, whatever it is made of; for people and for proofs. Raises OSError."""
        return self._open(vm_id).open_disk(disk, False)

    def check_disks(self, vm_id: str, change: DiskChange) -> None:
        """Raises BadDiskChange when `change_disks` would."""
        geometry.check(self._open(vm_id), change)

    def change_disks(self, vm_id: str, change: DiskChange) -> MachineState:
        """Grow, shrink, add or remove a disk, whether the VM runs or not. Returns when it is durable.

        Raises MachineMissing, MachineFenced, BadDiskChange, MachineFailed.
        """
        with self._changing(vm_id):
            folder = self._open(vm_id)
            term = folder.fenced()
            if term is not None:
                raise MachineFenced(vm_id, term)
            geometry.check(folder, change)
            try:
                # Whoever reads a point of the VM may finish; from here on nobody opens one. One that reads on fails.
                with reader_lock(folder.path, seconds=self._point_seconds):
                    self._make(vm_id, change)
            except (OSError, ValueError) as error:
                raise MachineFailed(vm_id, f"its disks cannot be changed: {error}") from error
            return self.machine(vm_id)

    def fence(self, vm_id: str, term: int) -> None:
        with self._changing(vm_id):
            folder = self._open(vm_id)
            folder.fence(term)
            self._stop(folder, timeout=10.0)

    def unfence(self, vm_id: str) -> None:
        with self._changing(vm_id):
            self._open(vm_id).unfence()

    def guest(self, vm_id: str) -> Guest | None:
        self._open(vm_id)
        return None

    def set_address(self, vm_id: str, address: Address) -> None:
        raise MachineFailed(vm_id, f"its guest has no network for {address.address}")

    def guard(self, vm_id: str) -> None:
        """Nobody but the agent starts a guest."""
        self._open(vm_id)

    def unguard(self, vm_id: str) -> None:
        self._open(vm_id)

    def close(self) -> None:
        """Guests are processes of their own."""

    def ask_guest(self, vm_id: str, verb: str, **words: float) -> Words:
        """freeze, thaw or status. Raises MachineFailed when the guest does not run or does not answer."""
        guest = self._open(vm_id).guest()
        if guest is None or not guest.alive():
            raise MachineFailed(vm_id, "it does not run")
        try:
            return ask(Path(guest.socket), verb, **words)
        except OwnerGone:
            raise MachineFailed(vm_id, "its guest does not answer") from None

    def _make(self, vm_id: str, change: DiskChange) -> None:
        """As the owner of the disks, or by their owner."""
        deadline = self._clock.monotonic() + _START_SECONDS
        while not geometry.is_made(folder := self._open(vm_id), change):
            with locked(folder.path / OWNER_LOCK) as free:
                if free:
                    geometry.recover(folder.path)
                    _change_stopped(self._open(vm_id), change)
                    return
            guest = folder.guest()
            with contextlib.suppress(OwnerGone):
                if guest is not None and guest.alive():
                    ask(Path(guest.socket), "change_disks", timeout=_START_SECONDS, **asdict(change))
            if self._clock.monotonic() > deadline:
                raise OSError("the process that has its disks open does not answer")
            threading.Event().wait(0.02)

    def _open(self, vm_id: str) -> MachineFolder:
        return MachineFolder.open(self._vms / folder_name(vm_id), vm_id)

    def _changing(self, vm_id: str) -> threading.RLock:
        """One start, stop, fence or removal of a VM at a time."""
        with self._lock:
            return self._machine_locks.setdefault(vm_id, threading.RLock())

    def _state(self, folder: MachineFolder) -> MachineState:
        try:
            guest = folder.guest()
            power = Power.RUNNING if guest is not None and guest.alive() else Power.STOPPED
        except MachineFailed:
            power = Power.UNKNOWN
        return MachineState(folder.spec, power, folder.purpose, folder.autostart())

    def _launch(self, folder: MachineFolder) -> None:
        vm_id = folder.spec.id
        hear, say = os.pipe()
        try:
            command = [sys.executable, "-m", "hyperv_host_agent.hypervisors.embedded.guest"]
            with (folder.path / "guest.out").open("wb") as out:
                process = subprocess.Popen(
                    [*command, str(folder.path.absolute()), str(self._run.absolute()), str(say)],
                    pass_fds=(say,),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    cwd="/",
                    start_new_session=True,  # a signal to the agent, or its end, does not reach the guest
                )
            os.close(say)
            say = -1
            said = _line(hear, self._clock.monotonic() + _START_SECONDS, self._clock)
            if said is None:
                process.kill()
            process.wait()  # it only starts the guest, which is init's child
        finally:
            os.close(hear)
            if say >= 0:
                os.close(say)
        if said is None:
            self._stop(folder, timeout=0.0)
            raise MachineFailed(vm_id, f"its guest did not start within {_START_SECONDS:.0f} seconds")
        if not said:
            tail = (folder.path / "guest.out").read_text(errors="replace")[-500:]
            log.error("guest ended at its start", vm=vm_id, output=tail)
            raise MachineFailed(vm_id, "its guest ended at its start; see guest.out in its folder")
        words = json.loads(said)
        if words.get("code") == MachineFenced.code:
            raise MachineFenced(vm_id, folder.fenced() or 0)
        if "problem" in words:
            raise MachineFailed(vm_id, words["problem"])

    def _stop(self, folder: MachineFolder, timeout: float) -> None:
        """Orderly until the timeout, then by force. Done when nobody has the disks open any more."""
        deadline = self._clock.monotonic() + timeout
        forced_deadline = deadline + _KILL_SECONDS
        while True:
            with locked(folder.path / OWNER_LOCK) as free:
                if free:
                    return
            guest = folder.guest()
            if guest is not None:
                now = self._clock.monotonic()
                if now < deadline:
                    with contextlib.suppress(OwnerGone):
                        ask(Path(guest.socket), "shut_down", timeout=deadline - now)
                _wait_or_kill(guest, self._clock, deadline)
            if self._clock.monotonic() > forced_deadline:
                raise MachineFailed(folder.spec.id, "its disks are still in use by a process that cannot be ended")
            threading.Event().wait(0.01)


def _foreign(native: Native) -> Finding:
    return Finding(Severity.OBSTACLE, "hypervisor", f"it is described in words of another hypervisor ({native.format})")


def _change_stopped(folder: MachineFolder, change: DiskChange) -> None:
    if geometry.is_made(folder, change):
        return
    with contextlib.ExitStack() as stack:
        disks = {
            disk.id: stack.enter_context(contextlib.closing(folder.open_disk(disk.id, True))) for disk in folder.disks
        }
        tracked = TrackedDisks(folder.path, disks)
        stack.pop_all()  # it closes them from here on
    with tracked:
        geometry.apply(folder, tracked, change)


def _wait_or_kill(guest: GuestProcess, clock: SystemClock, deadline: float) -> None:
    """Until that very process is gone; from the deadline on by SIGKILL."""
    try:
        handle = os.pidfd_open(guest.pid)
    except ProcessLookupError:
        return
    try:
        if not guest.alive():
            return  # the pid is another process's by now
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        if ended.poll(max(0.0, deadline - clock.monotonic()) * 1000):
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        ended.poll(_KILL_SECONDS * 1000)
    finally:
        os.close(handle)


def _line(file: int, deadline: float, clock: SystemClock) -> bytes | None:
    """One line from a pipe; empty when its other end was closed, None when the deadline passed."""
    said = b""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    while not said.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - clock.monotonic()) * 1000):
            return None
        more = os.read(file, 4096)
        if not more:
            return b""
        said += more
    return said
