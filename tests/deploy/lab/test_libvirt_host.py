"""The libvirt hosts that tests and the laboratory stand on."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.lab.machine import LabFailed, command_line, until
from tests.fakes.libvirt_host import IdleGuest, libvirt_host_running, need_libvirt, traces
from twinsite.units import KiB


def test_a_guest_without_a_system_has_disks_that_are_written_and_read(libvirt_host):
    guest = IdleGuest.define(libvirt_host).start()
    guest.write("vda", 0x5A, 64 * KiB, 64 * KiB)
    guest.write("vdb", 0x11, 0, 4 * KiB)
    assert guest.holds("vda", 0x5A, 64 * KiB, 64 * KiB)
    assert not guest.holds("vda", 0x5A, 0, 128 * KiB)
    guest.zero("vdb", 0, 4 * KiB)
    guest.fill("vda", 3, size=256 * KiB, step=64 * KiB)
    assert guest.holds("vda", 6, 128 * KiB, 64 * KiB)
    assert guest.content("vda")[64 * KiB : 128 * KiB] == b"\5" * 64 * KiB
    guest.destroy()
    assert libvirt_host.state(guest.name) == "shut off"
    assert not any(guest.content("vdb"))


def test_a_killed_qemu_is_seen_as_crashed_and_starts_again(libvirt_host):
    guest = IdleGuest.define(libvirt_host).start()
    guest.kill()
    until("libvirt to see it", lambda: libvirt_host.state(guest.name) == "shut off")
    assert "crashed" in libvirt_host.virsh("domstate", "--reason", guest.name)
    guest.start()
    assert libvirt_host.state(guest.name) == "running"


def test_guests_run_on_when_libvirtd_is_killed_or_restarted(libvirt_host):
    guest = IdleGuest.define(libvirt_host).start()
    pid = libvirt_host.qemu_pid(guest.name)
    libvirt_host.kill_libvirtd()
    with pytest.raises(LabFailed):
        libvirt_host.virsh("list")
    libvirt_host.start_libvirtd()
    libvirt_host.restart_libvirtd()
    assert libvirt_host.state(guest.name) == "running"
    assert libvirt_host.qemu_pid(guest.name) == pid


def test_a_host_that_lost_power_boots_with_its_domains_stopped(libvirt_host):
    guest = IdleGuest.define(libvirt_host).start()
    guest.write("vda", 7, 0, 64 * KiB)
    guest.flush("vda")
    libvirt_host.power_off()
    libvirt_host.boot()
    assert libvirt_host.state(guest.name) == "shut off"
    assert guest.content("vda")[: 64 * KiB] == b"\7" * 64 * KiB


def test_two_hosts_run_the_same_domain_and_reach_one_another(libvirt_hosts):
    first, second = libvirt_hosts()
    for host in (first, second):
        IdleGuest.define(host, "same", disks={"vda": 1 << 20}).start()
    assert [host.state("same") for host in (first, second)] == ["running", "running"]
    with pytest.raises(LabFailed, match="refused"):  # answered, that is
        first.machine.run("bash", "-c", "exec 3<>/dev/tcp/10.99.0.2/9")
    first.power_off()
    assert second.state("same") == "running"


def test_nothing_is_left_after_a_test_that_failed():
    need_libvirt()
    with contextlib.suppress(ZeroDivisionError), libvirt_host_running() as host:
        IdleGuest.define(host).start()
        assert traces(host.root)
        raise ZeroDivisionError
    assert traces(host.root) == []


def test_no_process_and_no_mount_is_left_when_the_test_runner_is_killed():
    need_libvirt()
    program = (
        "import time\n"
        "from tests.fakes.libvirt_host import IdleGuest, libvirt_host_running\n"
        "with libvirt_host_running() as host:\n"
        "    IdleGuest.define(host).start()\n"
        "    print(host.root, *host.machine.processes().values(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert runner.stdout is not None
    root, *pids = runner.stdout.readline().split()
    runner.stdout.close()
    assert len(pids) >= 4
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    until("all of it to end", lambda: not any(command_line(int(pid)) for pid in pids))
    subprocess.run(["rm", "-r", root], check=True)  # files are all that is left
    assert traces(Path(root)) == []
