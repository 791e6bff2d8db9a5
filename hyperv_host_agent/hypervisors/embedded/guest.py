"""The guest: a process of its own that writes records to its disks until it is told to stop, or is killed.

`python -m hyperv_host_agent.hypervisors.embedded.guest FOLDER RUN READY` is started by the hypervisor; `READY` is a
file descriptor that gets one line when the guest runs, or the reason why it does not.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.durable import locked, safe_name
from hyperv_host_agent.changes.tracked_disks import OWNER_LOCK, TrackedDisks
from hyperv_host_agent.hypervisors.base import MachineFailed, MachineFenced
from hyperv_host_agent.hypervisors.embedded import geometry
from hyperv_host_agent.hypervisors.embedded.control import ControlServer, Words, serve_owner
from hyperv_host_agent.hypervisors.embedded.geometry import DiskChange
from hyperv_host_agent.hypervisors.embedded.machine_folder import MachineFolder
from hyperv_host_agent.hypervisors.embedded.records import Label, encode_record, read_label, verify_records
from twinsite.clock import SystemClock
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER
from twinsite.units import KiB, MiB

_LOCK_SECONDS: Final = 20.0  # the agent holds the disks of a stopped VM for moments only
_QUIET_SECONDS: Final = 5.0
_SYNC_SECONDS: Final = 10.0
_LOG_BYTES: Final = 16 * MiB


class GuestLog:
    """JSON lines, complete even after a kill; one older file is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def write(self, event: str, **facts: object) -> None:
        if self._bytes > _LOG_BYTES:
            os.close(self._file)
            self._path.rename(self._path.with_name(self._path.name + ".1"))
            self._open()
        line = json.dumps({"event": event} | facts).encode() + b"\n"
        self._bytes += os.write(self._file, line)

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._bytes = os.fstat(self._file).st_size


class Guest:
    """What runs inside the VM."""

    def __init__(self, log: GuestLog) -> None:
        self._labels: list[tuple[str, Label]] = []
        self._areas: list[tuple[str, tuple[int, int]]] = []  # where load goes: disk, (offset, length) in bytes
        self._log = log
        self._clock = SystemClock()
        self._random = random.Random()  # noqa: S311  # test data, not secrets
        self._busy = threading.Lock()  # held through one record on all disks, or one write of load
        self._state = threading.Condition()
        self._frozen_until = 0.0
        self._stopping = False
        self.sequence = 0  # of the newest acknowledged record

    def use(self, labels: dict[str, Label], sizes: Mapping[str, int]) -> None:
        """What the disks say now. Disks without a label take load all over: they came blank, when the VM was there."""
        self._labels = sorted(labels.items(), key=lambda item: item[1].disk)
        self._areas = [(disk, label.load) for disk, label in self._labels]
        self._areas += [(disk, (0, size)) for disk, size in sizes.items() if disk not in labels and self._labels]
        self._areas = [(disk, area) for disk, area in self._areas if area[1] >= 2 * CLUSTER]

    # Asked by the control socket.

    @contextlib.contextmanager
    def quiet(self) -> Iterator[bool]:
        """Keep the guest between two of its operations; whether that was reached in time."""
        got = self._busy.acquire(timeout=_QUIET_SECONDS)
        try:
            yield got
        finally:
            if got:
                self._busy.release()

    def freeze(self, seconds: float) -> bool:
        """No write from now until `thaw`, or until the time is over, whoever forgot to thaw."""
        with self._state:
            self._frozen_until = self._clock.monotonic() + seconds
        with self.quiet() as quiet:
            if quiet:
                return True
        self.thaw()
        return False

    def thaw(self) -> None:
        with self._state:
            self._frozen_until = 0.0
            self._state.notify_all()

    def shut_down(self) -> None:
        with self._state:
            self._stopping = True
            self._state.notify_all()

    def change_disks(self, folder: Path, disks: TrackedDisks, change: DiskChange) -> None:
        """Between two writes. Raises OSError, ValueError; when it is left half made this process ends, as killed."""
        with self.quiet() as quiet:
            if not quiet:
                raise OSError("the guest could not be paused in time")
            before = MachineFolder.open(folder, folder.name)
            with contextlib.ExitStack() as unless_whole:
                unless_whole.push(lambda _kind, error, _at: self._end_if_decided(folder, error))
                try:
                    after = geometry.apply(before, disks, change)
                except geometry.BadDiskChange as error:
                    raise ValueError(str(error)) from error
                unless_whole.pop_all()
            self.use(*found_on(after))

    def _end_if_decided(self, folder: Path, error: BaseException | None) -> None:
        """A change that was decided and not finished: the next start finishes it, this process must not go on."""
        if geometry.decided(folder):
            self._log.write("trouble", problem=f"a change of the disks: {error}", at=self._clock.now())
            os._exit(1)

    def status(self) -> Words:
        with self._state:
            return {"sequence": self.sequence, "frozen": self._frozen_until > self._clock.monotonic()}

    # The program.

    def run(self, disks: TrackedDisks) -> None:
        """Until it is shut down."""
        started = next_record = last_sync = self._clock.monotonic()
        loaded = 0
        interval = self._labels[0][1].interval_seconds if self._labels else 1.0
        rate = self._labels[0][1].load_bytes_per_second if self._labels else 0
        while self._goes_on_at(min(next_record, started + loaded / rate if rate else next_record)):
            now = self._clock.monotonic()
            try:
                if self._labels and now >= next_record:
                    self._write_record(disks)
                    next_record = max(next_record + interval, now)
                if rate and now >= started + loaded / rate:
                    if now > started + loaded / rate + 1.0:  # was frozen or slow: it does not catch up
                        started, loaded = now, 0
                    loaded += self._write_load(disks)
                if now - last_sync > _SYNC_SECONDS:
                    last_sync = now
                    disks.sync()
            except OSError as error:  # a full disk under the VM; it goes on with the same record when that is over
                self._log.write("trouble", problem=str(error), at=self._clock.now())
                next_record = max(next_record, now + 1.0)
                started, loaded = now + 1.0, 0
            if not self._labels:
                next_record = now + interval

    def recover(self, disks: TrackedDisks) -> None:
        """Look at the disks as they were found and go on behind what they hold."""
        report = verify_records([_Found(disks, disk, size) for disk, size in disks.sizes().items()])
        problems = list(report.problems) if self._labels else []
        self.sequence = report.newest
        self._log.write(
            "boot",
            recovered_sequence=report.newest,
            problems=problems,
            tracking_doubt=disks.doubt,
            at=self._clock.now(),
        )

    def _goes_on_at(self, moment: float) -> bool:
        """Wait until the moment, and as long as it is frozen; False when it shall stop."""
        with self._state:
            while not self._stopping:
                wait = max(moment, self._frozen_until) - self._clock.monotonic()
                if wait <= 0:
                    return True
                self._state.wait(wait)
            return False

    def _thawed(self) -> bool:
        """A freeze may have come while this thread waited for `busy`."""
        with self._state:
            return self._frozen_until <= self._clock.monotonic()

    def _write_record(self, disks: TrackedDisks) -> None:
        with self._busy:
            if not self._thawed():
                return
            sequence, at = self.sequence + 1, self._clock.now()
            for disk, label in self._labels:
                disks.write(disk, label.place(sequence), encode_record(label, sequence, at))
            self.sequence = sequence
            self._log.write("record", sequence=sequence, at=at)

    def _write_load(self, disks: TrackedDisks) -> int:
        """One write of 4 to 64 KiB at a random place: half of it compressible, one in ten all zeros."""
        with self._busy:
            if not self._areas or not self._thawed():
                return 4 * KiB
            disk, (start, length) = self._random.choice(self._areas)
            size = self._random.randrange(1, 17) * 4 * KiB
            offset = start + self._random.randrange((length - CLUSTER) // (4 * KiB)) * 4 * KiB
            if self._random.random() < 0.1:
                data = bytes(size)
            else:
                data = self._random.randbytes(size // 2) + b"twinsite" * (size // 16)
            disks.write(disk, offset, data)
            return size


class _Found:
    """A disk of the guest as the record check reads it."""

    def __init__(self, disks: TrackedDisks, disk: str, size: int) -> None:
        self._disks, self._disk, self.size = disks, disk, size

    def read(self, offset: int, length: int) -> bytes:
        return self._disks.read(self._disk, offset, length)


def found_on(folder: MachineFolder) -> tuple[dict[str, Label], dict[str, int]]:
    """The labels on a VM's disks, and the sizes of all of them. Raises OSError."""
    labels: dict[str, Label] = {}
    for known in folder.disks:
        with contextlib.closing(folder.open_disk(known.id, False)) as disk:
            label = read_label(disk)
        if label is not None:
            labels[known.id] = label
    return labels, {known.id: known.size for known in folder.disks}


class _Starter:
    """The agent that waits to hear how the start went, once; one that died meanwhile finds the guest by its folder."""

    def __init__(self, file: int) -> None:
        self._file: int | None = file

    def tell(self, words: Words) -> None:
        if self._file is None:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._file, json.dumps(words).encode() + b"\n")
        os.close(self._file)
        self._file = None


def _run(folder: MachineFolder, run: Path, starter: _Starter) -> None:
    with locked(folder.path / OWNER_LOCK, seconds=_LOCK_SECONDS) as free, contextlib.ExitStack() as stack:
        if not free:
            raise MachineFailed(folder.spec.id, "its disks are in use by another process")
        socket = run / f"{safe_name(folder.spec.id)}.sock"
        before = folder.guest_starts(socket)
        undo = stack.enter_context(contextlib.ExitStack())
        undo.callback(folder.guest_failed, before)
        term = folder.fenced()
        if term is not None:  # looked at after this process made itself known: a later fence finds it and stops it
            raise MachineFenced(folder.spec.id, term)
        geometry.recover(folder.path)
        folder = MachineFolder.open(folder.path, folder.spec.id)
        files = {disk.id: folder.open_disk(disk.id, True) for disk in folder.disks}
        log = GuestLog(folder.path / "guest.log")
        stack.callback(log.close)
        guest = Guest(log)
        guest.use(*found_on(folder))
        disks = TrackedDisks(folder.path, files, quiet=guest.quiet)
        guest.recover(disks)
        undo.pop_all()

        def answer(verb: str, words: Words) -> Words:
            match verb:
                case "status":
                    return guest.status()
                case "freeze":
                    return {"frozen": guest.freeze(float(words["seconds"]))}
                case "thaw":
                    guest.thaw()
                case "shut_down":
                    guest.shut_down()
                case "change_disks":
                    guest.change_disks(folder.path, disks, DiskChange(**words))
                case _:
                    return serve_owner(disks, verb, words)
            return {}

        server = stack.enter_context(ControlServer(socket, answer))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: guest.shut_down())
        control = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        control.start()
        try:
            starter.tell({})
            guest.run(disks)
        finally:
            server.shutdown()
            control.join()
        socket.unlink(missing_ok=True)
        disks.close()
        log.write("shutdown", sequence=guest.sequence, at=SystemClock().now())
        folder.guest_ended()


def main(arguments: list[str]) -> None:
    path, run, starter = Path(arguments[0]), Path(arguments[1]), _Starter(int(arguments[2]))
    if os.fork():
        os._exit(0)  # the guest's parent is init from here on, so that no agent has to bury it
    try:
        _run(MachineFolder.open(path, path.name), run, starter)
    except TwinsiteError as error:
        starter.tell({"code": error.code, "problem": str(error)})
        sys.exit(1)
    except OSError as error:
        starter.tell({"code": "", "problem": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
