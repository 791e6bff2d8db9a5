"""File systems of a guest that stand still for a moment, and never for long.

Three things thaw: who froze; a guard, a process of its own, when that one hangs or dies; and the next agent. A freeze
that failed is not believed to have failed: a guest agent that hung carries it out once it wakes up, so the guest is
asked until it answers, and thawed.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from hyperv_host_agent.hypervisors.libvirt.errors import AgentSilent
from twinsite.errors import TwinsiteError

FREEZE_SECONDS: Final = 10  # the guest agent has for it, hooks included
HOLD_SECONDS: Final = 5.0  # that file systems stand still at most
THAW_SECONDS: Final = 10
_END_SECONDS: Final = 5.0
_ASK_SECONDS: Final = 5
_LONGEST_WAIT: Final = 15.0  # between two questions to a silent guest agent

_log = structlog.get_logger()


class Guest(Protocol):
    """What of a domain a freeze needs."""

    uuid: str

    def fs_freeze(self, timeout: int) -> int: ...
    def fs_thaw(self, timeout: int) -> int: ...
    def agent(self, command: dict[str, Any], timeout: int) -> Any: ...
    def is_active(self) -> bool: ...


@dataclass(slots=True)
class Quiet:
    problem: str = ""  # why the file systems do not stand still, a phrase; empty: they do


class Guard(Protocol):
    """Armed: it thaws when the freeze takes too long, is held too long, or this process ends before it is disarmed."""

    def frozen(self) -> None:
        """From now on the hold counts."""
        ...

    def disarm(self) -> bool:
        """Whether it had nothing to do."""
        ...


class GuardProcess:
    """Raises OSError when it cannot be started."""

    def __init__(self, uri: str, uuid: str, *, freeze: float, hold: float) -> None:
        module = "hyperv_host_agent.hypervisors.libvirt.tracking.thaw_guard"
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, uri, uuid, str(freeze), str(hold)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # what ends the agent does not end it
        )
        if not self._process.stdout or self._process.stdout.readline() != b"ready\n":
            self._process.kill()
            self._clear()
            raise OSError("the guard of the freeze did not start")

    def frozen(self) -> None:
        self._say(b"frozen\n")

    def disarm(self) -> bool:
        self._say(b"done\n")
        self._clear()
        return self._process.returncode == 0

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.write(word)
                self._process.stdin.flush()

    def _clear(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)  # longer only when it asks a silent guest, on its own


class Freezer:
    """Of one VM. `note` makes durable that its file systems may stand still, or do not."""

    def __init__(
        self, vm_id: str, guest: Callable[[], Guest], note: Callable[[bool], None], guard: Callable[[str], Guard]
    ) -> None:
        """`guard` arms one for a domain, or raises OSError."""
        self._vm_id, self._guest, self._note, self._guard = vm_id, guest, note, guard
        self._asking = threading.Lock()  # held while somebody freezes, or asks the guest whether it is frozen
        self._again = threading.Event()  # it is to be asked once more: an answer may be older than the question

    @contextlib.contextmanager
    def quiet(self) -> Iterator[Quiet]:
        """Not longer than HOLD_SECONDS; what is seen in `problem` at the end of the block counts."""
        if not self._asking.acquire(timeout=_ASK_SECONDS):
            yield Quiet("the guest has not answered yet since an earlier freeze failed")
            return
        thawed = True
        try:
            guest = self._guest()
            try:
                guard = self._guard(guest.uuid)
            except OSError as error:
                yield Quiet(str(error))
                return
            found = Quiet()
            self._note(True)
            try:
                try:
                    guest.fs_freeze(FREEZE_SECONDS)
                    guard.frozen()
                except TwinsiteError as error:
                    found.problem = str(error)
                yield found
            finally:
                thawed = not found.problem and self._thaw(guest)
                if not guard.disarm() and not found.problem:
                    found.problem = "it took too long, so that its file systems were thawed before"
                if thawed:
                    self._note(False)
        finally:
            self._asking.release()
            if not thawed:
                self.settle()

    def settle(self) -> None:
        """Ask the guest in the background until it says that its file systems do not stand still; thaw them if."""
        self._again.set()
        if self._asking.acquire(blocking=False):
            threading.Thread(target=self._settle, name="thaw", daemon=True).start()

    def _settle(self) -> None:
        while True:
            try:
                self._again.clear()
                if settle(self._guest, threading.Event()):
                    self._note(False)
            except TwinsiteError as error:
                _log.warning("freeze_unsettled", vm_id=self._vm_id, problem=str(error))
            finally:
                self._asking.release()
            if not self._again.is_set() or not self._asking.acquire(blocking=False):
                return

    def _thaw(self, guest: Guest) -> bool:
        try:
            guest.fs_thaw(THAW_SECONDS)
        except TwinsiteError as error:
            _log.warning("thaw_failed", vm_id=self._vm_id, problem=str(error))
            return False
        return True


def settle(guest: Callable[[], Guest], stop: threading.Event) -> bool:
    """Whether its file systems are known not to stand still. Raises TwinsiteError that no repetition helps against."""
    wait = 0.5
    while not stop.is_set():
        found = guest()
        if not found.is_active():
            return True
        try:
            if found.agent({"execute": "guest-fsfreeze-status"}, _ASK_SECONDS) == "thawed":
                return True
            found.fs_thaw(THAW_SECONDS)
            _log.warning("guest_thawed", uuid=found.uuid)
            continue
        except AgentSilent:
            pass
        stop.wait(wait)
        wait = min(wait * 2, _LONGEST_WAIT)
    return False
