"""Kill a program, or fail one of its calls, at its n-th system call on the given files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat2", "ftruncate", "unlink")
_ENOUGH = 400  # no workload here makes more calls of one kind


def require_strace() -> str:
    found = shutil.which("strace")
    if found is None:
        reason = "strace is missing: apt-get install strace"
        if os.environ.get("TWINSITE_NO_SKIPS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(
    script: Path, arguments: Sequence[str], *, inject: str, paths: Sequence[Path]
) -> subprocess.CompletedProcess[str]:
    """Run `script` under strace with one injection such as ``fsync:signal=SIGKILL:when=3``.

    `paths` says whose calls count; of a rename strace looks at the old name only. Without paths all calls do.
    """
    call = inject.split(":", 1)[0]
    watched = [part for path in paths for part in ("-P", str(path))]
    command = [
        require_strace(),
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        *watched,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={inject}",
    ]
    return subprocess.run(
        [*command, sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # the interpreter's own renames are not meant
    )


def kill_points(
    script: Path, arguments: Sequence[str], *, call: str, paths: Sequence[Path], step: int = 1
) -> Iterator[str]:
    """Run `script` again and again, killed at its 1st, 2nd … `call`, yielding its output, until it survives."""
    for number in range(1, _ENOUGH, step):
        done = run(script, arguments, inject=f"{call}:signal=SIGKILL:when={number}", paths=paths)
        yield done.stdout
        if done.returncode == 0:
            return
        assert done.returncode in (-9, 137), done.stderr
    raise AssertionError(f"{call}: the workload never ends")
