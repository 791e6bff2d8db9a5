"""`make lab` and `make lab-down`: what is there before is there afterwards, nothing else."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab.hosts import Hosts, running_below
from deploy.lab.machine import LabFailed, command_line, run, until
from tests.fakes.libvirt_host import need_libvirt

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.fixture
def root() -> Iterator[Path]:
    need_libvirt()
    above = Path(tempfile.mkdtemp(prefix="tsl-"))
    yield above / "lab"
    lab("down", above / "lab", check=False)
    shutil.rmtree(above)


def lab(verb: str, root: Path, *, check: bool = True) -> str:
    return run(sys.executable, "-m", "deploy.lab", "--root", str(root), verb, timeout=300, check=check)


def surroundings() -> dict[str, object]:
    """What a laboratory could leave on this machine, except processes: other tests' come and go."""
    return {
        "devices": run("ip", "-o", "-br", "link"),
        "namespaces": run("ip", "netns", "list"),
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "libvirt": sorted(Path("/var/lib/libvirt").rglob("*")) + sorted(Path("/etc/libvirt").rglob("*")),
        "sockets": sorted(Path("/run").glob("libvirt*/*")) + sorted(Path("/run").glob("*virt*")),
    }


def inside(root: Path) -> list[int]:
    return [pid for host in Hosts.found(root / "sites") for pid in host.machine.processes().values()]


def test_a_laboratory_with_a_running_guest_goes_away_whole(root):
    before = surroundings()
    lab("up", root)
    assert "web01: running" in lab("status", root)
    assert len(running_below(root)) >= 5, "the coordinator, per site a provider and a host agent"
    pids = inside(root) + running_below(root)
    assert len(pids) >= 9, "QEMU, and per host the first process, libvirtd, virtlogd, two dnsmasq; the programs"
    with pytest.raises(LabFailed, match="already"):
        lab("up", root)
    lab("down", root)
    assert [pid for pid in pids if command_line(pid)] == []
    assert running_below(root) == []
    assert not root.exists()
    assert surroundings() == before
    lab("down", root)  # again: nothing to do is no error


def test_a_laboratory_that_was_killed_while_it_came_up_goes_away_whole(root):
    before = surroundings()
    up = subprocess.Popen([sys.executable, "-m", "deploy.lab", "--root", str(root), "up"], stdout=subprocess.DEVNULL)
    pids = until("the second host to run", lambda: (root / "sites" / "host-b" / "pid").exists() and inside(root))
    up.kill()
    up.wait()
    lab("down", root)
    assert [pid for pid in pids if command_line(pid)] == []
    assert not root.exists()
    assert surroundings() == before


def test_a_host_without_power_is_shown_and_goes_away_with_the_others(root):
    hosts = Hosts(root / "sites", held=False)
    hosts.boot()
    hosts["a"].power_off()
    shown = lab("status", root)
    assert "host-a: down" in shown
    assert "host-b: up" in shown
    hosts.reboot("a")
    with pytest.raises(LabFailed, match="refused"):  # answered, over the cable
        hosts["b"].machine.run("bash", "-c", "exec 3<>/dev/tcp/10.99.0.1/9")
    lab("down", root)
    assert not root.exists()
