"""`make demo HYPERVISOR=libvirt`: a real guest fails over between libvirt hosts and proves with what it came back."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fakes.libvirt_host import need_libvirt, traces

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_a_real_guest_fails_over_and_nothing_is_left():
    need_libvirt()
    pytest.importorskip("libvirt")
    root = Path(tempfile.mkdtemp(prefix="tsl-"))  # short: it holds sockets
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--hypervisor", "libvirt", "--root", str(root)],
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1].removeprefix("DEMO "))
    assert figures["verified"] is True
    assert figures["records_lost_after_point"] == 0
    assert figures["lost_seconds"] <= figures["rpo_age_seconds"]
    said = {step["name"]: step["verified"] for step in figures["steps"]}
    assert "in network isolated" in said["compare the test copy with the source"]
    assert "in network lan" in said["unplanned failover to the newest point"]
    assert traces(root / "sites") == []
    shutil.rmtree(root)
