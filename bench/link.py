"""What passes between the agents: bytes a connection has carried, and a link of a given speed in network namespaces."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

NEEDED: Final = ("ip", "tc", "ss")
_SPACE: Final = "twinsite-bench"
_HERE, _THERE = "10.213.47.1", "10.213.47.2"


def missing() -> list[str]:
    return [program for program in NEEDED if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]


def sent_bytes(port: int) -> int:
    """Bytes the kernel has sent to that port over connections that are open now: TLS and framing included."""
    told = _run("ss", "-tinHO", "dst", f":{port}")
    return sum(int(count) for count in re.findall(r"\bbytes_sent:(\d+)", told))


@contextlib.contextmanager
def shaped(rate: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A second network behind a link of `rate` (as `tc` says it): its address, and the command to run things there."""
    _run("ip", "netns", "add", _SPACE)
    try:
        _run("ip", "link", "add", "twb0", "type", "veth", "peer", "name", "twb1", "netns", _SPACE)
        inside = ("ip", "netns", "exec", _SPACE)
        _run("ip", "address", "add", f"{_HERE}/30", "dev", "twb0")
        _run("ip", "link", "set", "twb0", "up")
        for command in (
            ("ip", "address", "add", f"{_THERE}/30", "dev", "twb1"),
            ("ip", "link", "set", "twb1", "up"),
            ("ip", "link", "set", "lo", "up"),
        ):
            _run(*inside, *command)
        for where, device in (((), "twb0"), (inside, "twb1")):
            _run(
                *where,
                "tc",
                "qdisc",
                "add",
                "dev",
                device,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                "1mb",
                "latency",
                "50ms",
            )
        yield _THERE, inside
    finally:
        _run("ip", "netns", "delete", _SPACE)  # takes the link with it


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
