"""A machine of the laboratory: namespaces of its own (mounts, processes, network, host name) around one process.

No namespace has a name in a file system and no cable an end outside, so that the kernel takes everything away with
that process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")
_FIRST: Final = Path(__file__).with_name("first_process.py")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS: Final = 60.0


class LabFailed(Exception):  # named for the fact
    """Something of the laboratory did not come up or ended; the text says what, with what it wrote."""


def until(what: str, check: Callable[[], T | None], *, timeout: float = _SECONDS, every: float = 0.02) -> T:
    """Poll until `check` gives something true. Raises LabFailed naming what was waited for."""
    deadline = time.monotonic() + timeout
    while True:
        if found := check():
            return found
        if time.monotonic() > deadline:
            raise LabFailed(f"waited {timeout:.0f} s for {what}")
        time.sleep(every)  # real processes, real time


def find(command: str) -> str | None:
    """Where a program is; /usr/sbin is not in everybody's PATH."""
    return shutil.which(command, path=f"{_PATH}:{os.environ.get('PATH', '')}")


def run(*arguments: str, timeout: float = _SECONDS, data: bytes | None = None, check: bool = True) -> str:
    """A program to its end; what it wrote. Raises LabFailed when it fails, unless told not to, or takes too long."""
    try:
        done = subprocess.run(
            arguments,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_PATH}", "LC_ALL": "C"},
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabFailed(f"{' '.join(arguments)}: not done after {timeout:.0f} s") from None
    if done.returncode and check:
        raise LabFailed(
            f"{' '.join(arguments)}: status {done.returncode}\n{(done.stderr or done.stdout).decode().strip()}"
        )
    return done.stdout.decode(errors="replace")


class Machine:
    """`binds` are mounted over paths inside. `held`: it ends when this process does, however that ends."""

    def __init__(self, name: str, *, binds: Mapping[Path, str], held: bool = True, pid: int = 0) -> None:
        self.name, self.binds, self.held, self.pid = name, binds, held, pid
        self._holder: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Raises LabFailed."""
        mounts = [f"{source}:{place}" for source, place in self.binds.items()]
        mode = "held" if self.held else "detached"
        holder = subprocess.Popen(
            [sys.executable, "-I", str(_FIRST), self.name, mode, *mounts],
            env={"PATH": _PATH, "LC_ALL": "C"},
            stdin=subprocess.PIPE if self.held else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if self.held else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the one who holds it
        )
        assert holder.stdout is not None  # noqa: S101  # asked for
        said = holder.stdout.readline().strip()
        holder.stdout.close()
        if not said:
            text = holder.stderr.read().decode(errors="replace") if holder.stderr else ""
            _end(holder)
            raise LabFailed(f"machine {self.name} did not come up: {text.strip() or 'no namespaces'}")
        self.pid = int(said)
        if self.held:
            self._holder = holder
        else:
            holder.wait()

    @property
    def up(self) -> bool:
        return self.pid > 0 and command_line(self.pid)[2:4] == [str(_FIRST), self.name]

    def run(self, *arguments: str, timeout: float = _SECONDS, data: bytes | None = None, check: bool = True) -> str:
        """A program inside it. Raises LabFailed."""
        return run(*self.inside(*arguments), timeout=timeout, data=data, check=check)

    def inside(self, *arguments: str) -> Sequence[str]:
        """The command line that runs a program inside it."""
        spaces = ("--mount", "--uts", "--pid", "--net")
        return (find("nsenter") or "nsenter", "--target", str(self.pid), *spaces, "--", *arguments)

    def processes(self) -> dict[int, int]:
        """Of everything that runs inside: pid there → pid here."""
        found: dict[int, int] = {}
        space = _pid_space(self.pid)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and space and _pid_space(int(entry.name)) == space:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
                    lines = (entry / "status").read_text().splitlines()
                    numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
                    found[int(numbers[-1])] = int(entry.name)
        return found

    def power_off(self) -> None:
        """Everything inside is gone at once, as in a power cut; repeatable."""
        if self.up:
            inside = set(self.processes().values())
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            until(f"machine {self.name} to end", lambda: not any(_alive(pid) for pid in inside) or None)
        if self._holder is not None:
            _end(self._holder)
            self._holder = None
        self.pid = 0


def connect(first: Machine, first_end: str, second: Machine, second_end: str) -> None:
    """A cable between two machines; an end is `device` or `device=address/prefix`. It goes away with either of them."""
    device, _, address = first_end.partition("=")
    other, _, other_address = second_end.partition("=")
    spaces = str(first.pid), str(second.pid)
    run("ip", "link", "add", device, "netns", spaces[0], "type", "veth", "peer", "name", other, "netns", spaces[1])
    for machine, name, ip in ((first, device, address), (second, other, other_address)):
        if ip:
            machine.run("ip", "addr", "add", ip, "dev", name)
        machine.run("ip", "link", "set", name, "up")


def command_line(pid: int) -> list[str]:
    """Of a process; empty when there is none or it is dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _alive(pid: int) -> bool:
    return bool(command_line(pid))


def _pid_space(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink()) if pid else ""
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _end(holder: subprocess.Popen[bytes]) -> None:
    for pipe in (holder.stdin, holder.stderr):
        if pipe is not None:
            pipe.close()
    try:
        holder.wait(10)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()
