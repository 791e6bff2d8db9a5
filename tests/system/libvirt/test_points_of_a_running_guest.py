"""Points of a real guest: its file systems stand still for a moment and never longer, whoever hangs or dies."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy.lab.guest import Guest
from deploy.lab.guest_image import GuestImage
from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import until
from hyperv_host_agent.changes.base import SourceUnavailable
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.tracking.freezing import GuardProcess
from hyperv_host_agent.hypervisors.libvirt.tracking.places import Places
from hyperv_host_agent.hypervisors.libvirt.tracking.point import LibvirtPoint
from hyperv_host_agent.hypervisors.libvirt.tracking.source import LibvirtChangeSource
from tests.fakes import libvirt_freeze_program
from tests.fakes.libvirt_host import libvirt_host_running
from twinsite.extents import Run, clusters
from twinsite.units import KiB, MiB

pytestmark = pytest.mark.system
NEEDS_RECOVERY = 4  # of ext4's incompatible features: its journal has something to say


class Replicated:
    def __init__(self, host: LibvirtHost, guest: Guest) -> None:
        self.guest, self.host = guest, host
        self.connection = Connection(host.uri)
        self.uuid = host.virsh("domuuid", guest.name)
        self.places = Places(host.root / "state", host.root / "sock", host.root / "scratch", least_free=16 * MiB)
        self.source = self.new_source()
        self.source.start()

    def new_source(self) -> LibvirtChangeSource:
        """As of an agent that has just started."""
        return LibvirtChangeSource(
            self.uuid,
            lambda: self.connection.domain(self.uuid),
            self.places,
            machine=lambda: b"",
            guard=lambda uuid: GuardProcess(self.host.uri, uuid, freeze=10, hold=5),
        )

    def ask(self, command: str, **arguments: object) -> object:
        words = {"execute": command, "arguments": arguments}
        said = self.host.virsh("qemu-agent-command", self.guest.name, json.dumps(words))
        return json.loads(said)["return"]

    def frozen(self) -> bool:
        return self.ask("guest-fsfreeze-status") == "frozen"

    def freezing(self) -> bool:
        return self.places.of(self.uuid).freezing.exists()

    def size_written(self) -> int:
        """Grows as long as the guest writes."""
        stats = self.host.virsh("domblkstat", self.guest.name, "vda").split()
        return int(stats[stats.index("wr_bytes") + 1])

    def wait_writes(self) -> None:
        before = self.size_written()
        until("the guest to write", lambda: self.size_written() > before or None)


@pytest.fixture(scope="module")
def guest(image: GuestImage) -> Iterator[Guest]:
    """One for all: it boots once."""
    with libvirt_host_running() as host:
        sizes = {"vda": 32 * MiB, "vdb": 32 * MiB}
        yield Guest.define(host, image, network=None, sizes=sizes, interval=0.05, load=256 * KiB).up()


@pytest.fixture
def replicated(guest: Guest) -> Iterator[Replicated]:
    made = Replicated(guest.host, guest)
    yield made
    made.source.stop()
    assert not made.frozen()
    assert made.connection.domain(made.uuid).checkpoints() == []
    made.connection.close()


def clean(point: LibvirtPoint) -> bool:
    """Whether the file systems of both disks need no journal."""
    blocks = [point.read(disk.id, Run(0, 1)) for disk in point.disks]
    features = [int.from_bytes(block[1024 + 0x60 : 1024 + 0x64], "little") for block in blocks]
    assert all(block[1024 + 0x38 : 1024 + 0x3A] == b"\x53\xef" for block in blocks)
    return not any(found & NEEDS_RECOVERY for found in features)


def test_an_application_consistent_point_has_clean_file_systems_and_ran_the_hooks(replicated: Replicated):
    with closing(replicated.source.open_point(1, b"1" * 16, consistency="crash")) as point:
        assert (point.consistency, clean(point)) == ("crash", False)
    with closing(replicated.source.open_point(2, b"2" * 16, consistency="application")) as point:
        assert (point.consistency, clean(point)) == ("application", True)
        assert not replicated.frozen(), "it is thawed as soon as the point is there, not when it is read"
        for disk in point.disks:
            point.read(disk.id, Run(0, clusters(disk.size)))
    assert "GUEST hook freeze" in replicated.guest.console()
    until("the hook", lambda: "GUEST hook thaw" in replicated.guest.console() or None)
    assert not replicated.freezing()
    replicated.wait_writes()


def test_a_guest_agent_that_hangs_costs_the_consistency_and_what_it_does_late_is_undone(replicated: Replicated):
    hang = "sleep 1; kill -STOP $(pidof qemu-ga); echo GUEST hangs >/dev/console; sleep 16; kill -CONT $(pidof qemu-ga)"
    replicated.ask("guest-exec", path="/bin/sh", arg=["-c", hang])
    replicated.guest.said("GUEST hangs")
    with closing(replicated.source.open_point(1, b"1" * 16, consistency="application")) as point:
        assert point.consistency == "crash"
        assert replicated.freezing(), "nobody knows yet"
        replicated.wait_writes()
    until("the late freeze to be undone", lambda: not replicated.freezing() or None)
    assert not replicated.frozen()
    assert "GUEST hook thaw" in replicated.guest.console()
    replicated.wait_writes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guest_is_thawed_when_who_froze_it_is_killed_or_hangs(replicated: Replicated, how: signal.Signals):
    command = [sys.executable, "-m", libvirt_freeze_program.__name__, replicated.host.uri, replicated.uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"frozen \n"
        assert replicated.frozen()
        program.send_signal(how)
        until("the guard to thaw", lambda: not replicated.frozen() or None, timeout=20)
        program.kill()
    replicated.wait_writes()


def test_a_guest_left_frozen_is_thawed_by_the_next_agent(replicated: Replicated):
    replicated.ask("guest-fsfreeze-freeze")
    assert replicated.frozen()
    replicated.source = replicated.new_source()
    replicated.source.start()
    until("the agent to thaw", lambda: not replicated.frozen() or None)
    replicated.wait_writes()


def test_a_guest_paused_by_a_full_scratch_disk_goes_on_and_the_point_says_why(replicated: Replicated):
    scratch = Path(replicated.places.scratch)
    scratch.mkdir(exist_ok=True)
    # Of QEMU's view alone: where the agent looks there is room, so that it is too late when it hears of it.
    replicated.host.machine.run("mount", "-t", "tmpfs", "-o", "size=1m", "scratch", str(scratch))
    with closing(replicated.source.open_point(1, b"1" * 16, consistency="crash")) as point:
        disk = point.disks[0].id

        def failed() -> str | None:
            try:
                point.read(disk, Run(0, 1))
            except SourceUnavailable as error:
                return str(error)
            return None

        assert "no space left" in until("the scratch disk to be full", failed)
    assert replicated.host.state(replicated.guest.name) == "running"
    replicated.wait_writes()
    replicated.host.machine.run("umount", "-l", str(scratch))
    replicated.source.discard()
    replicated.source.open_point(2, b"2" * 16, consistency="crash").close()
