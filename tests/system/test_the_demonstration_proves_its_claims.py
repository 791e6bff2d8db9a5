"""`make demo` ends with a table, a DEMO line that scripts read, and status 0 only when every claim held."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.guest import Guest
from demo.process import kill_pid

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
STEPS = (
    "vault",
    "registration key",
    "register both",
    "sync metadata",
    "pair",
    "initial",
    "cycles",
    "test failover",
    "kill -9",
)


def test_the_demonstration_runs_and_verifies(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--root", str(root / "demo")],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("DEMO ")
    figures = json.loads(line.removeprefix("DEMO "))
    assert figures["verified"] is True
    assert figures["records_lost_after_point"] == 0
    assert figures["lost_seconds"] <= figures["rpo_age_seconds"]
    assert figures["wire_bytes"] > 0
    assert figures["changed_bytes"] > 0
    names = " | ".join(step["name"] for step in figures["steps"])
    for step in STEPS:
        assert step in names
    assert sum(step["seconds"] for step in figures["steps"]) < 180


def test_a_second_demonstration_in_the_same_folder_leaves_the_first_alone(root: Path) -> None:
    first = root / "first.img"
    first.write_bytes(bytes(1 << 20))
    guest = Guest.create(root / "demo" / "host-b" / "vms", "web01", first=first, second=4 << 20)
    guest.start()
    pid = guest.pid()
    assert pid is not None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "demo", "--root", str(root / "demo")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 1
        assert "still runs" in done.stderr
        assert str(pid) in done.stderr
        assert guest.pid() == pid
    finally:
        kill_pid(pid)
