"""One program of the laboratory as a child process that can be killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

BIN: Final = Path(sys.executable).parent
START_SECONDS: Final = 60.0


class ProgramFailed(Exception):  # named for the fact
    """A program ended, or did not become ready; the text has the end of its log."""


@dataclass(slots=True)
class Program:
    """`arguments` start it; it is ready when `state`/run/ready.json names its pid."""

    name: str
    arguments: Sequence[str]
    state: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, *, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / self.arguments[0]), *self.arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.ready()

    def ready(self, timeout: float = START_SECONDS) -> dict[str, Any]:
        """Wait until it serves; what it wrote in ready.json. Raises ProgramFailed."""
        process = self._started()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ProgramFailed(f"{self.name} ended with status {process.returncode}\n{self.tail()}")
            try:
                facts: dict[str, Any] = json.loads((self.state / "run" / "ready.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                facts = {}
            if facts.get("pid") == process.pid:
                return facts
            time.sleep(0.02)  # real processes, real time
        raise ProgramFailed(f"{self.name} is not ready after {timeout:.0f} s\n{self.tail()}")

    @property
    def pid(self) -> int:
        return self._started().pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as a power cut does."""
        if self.running:
            self._started().kill()
        self._started().wait()

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM; its exit status. One that does not end is killed and that is an error."""
        process = self._started()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ProgramFailed(f"{self.name} did not end within {timeout:.0f} s of SIGTERM\n{self.tail()}") from None

    def tail(self, lines: int = 25) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def peak_memory(self) -> int:
        """Bytes of resident memory at most so far (VmHWM)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise ProgramFailed(f"{self.name} was never started")
        return self.process


def kill_pid(pid: int) -> None:
    """SIGKILL to a process of ours that is not our child; gone already is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
