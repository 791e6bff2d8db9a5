"""Real guests: what they acknowledged is on their disks, and every point of them is one instant."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hyperv_host_agent.changes.base import SourcePoint, Tracking
from hyperv_host_agent.hypervisors.base import MachineFailed, MachineFenced, Power, Purpose
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.records import RecordsReport, verify_records
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from tests.fakes.guests import Guests, eventually, guests
from tests.fakes.layers import chain
from twinsite.extents import CLUSTER, Run, clusters


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Guests]:
    with guests(tmp_path) as made:
        yield made


def name_of(cycle: int) -> bytes:
    return cycle.to_bytes(16, "big")


class Bytes:
    """A disk's content in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


class Replica:
    """What a target would hold of a VM, built from the dirty sets alone."""

    def __init__(self) -> None:
        self.content: dict[str, bytearray] = {}

    def take(self, point: SourcePoint) -> None:
        for disk in point.disks:
            content = self.content.setdefault(disk.id, bytearray(disk.size))
            for run in point.dirty(disk.id):
                data = point.read(disk.id, run)
                content[run.start * CLUSTER : run.start * CLUSTER + len(data)] = data

    def equals(self, point: SourcePoint) -> bool:
        return all(point.read(disk.id, Run(0, clusters(disk.size))) == self.content[disk.id] for disk in point.disks)

    def report(self) -> RecordsReport:
        return verify_records([Bytes(bytes(content)) for content in self.content.values()])


def test_what_a_killed_guest_acknowledged_is_on_its_disks(site: Guests):
    vm_id = site.new()
    for _ in range(3):
        site.writes_more(vm_id, random.randrange(1, 30))
        site.kill(vm_id)
        acknowledged = site.acknowledged(vm_id)
        report = site.verify(vm_id)
        assert report.problems == ()
        assert acknowledged <= report.newest <= acknowledged + 1
        site.hypervisor.start(vm_id)
        boot = site.boots(vm_id)[-1]
        assert (boot["recovered_sequence"], boot["problems"]) == (report.newest, [])


def test_an_orderly_stop_loses_nothing_and_leaves_nothing_behind(site: Guests):
    vm_id = site.new()
    site.writes_more(vm_id)
    site.hypervisor.stop(vm_id, timeout=20)
    assert site.log(vm_id)[-1]["event"] == "shutdown"
    assert site.verify(vm_id).newest == site.acknowledged(vm_id)
    assert not (site.folder(vm_id) / "guest.json").exists()
    assert list(site.run.iterdir()) == []


def test_a_guest_outlives_the_agent_that_started_it(site: Guests, tmp_path: Path):
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=20)
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor;"
        "EmbeddedHypervisor(Path(sys.argv[1]), Path(sys.argv[2])).start(sys.argv[3]);"
        "os.killpg(os.getpgid(0), signal.SIGKILL)"
    )
    agent = subprocess.run(
        [sys.executable, "-c", code, str(site.vms), str(site.run), vm_id], check=False, start_new_session=True
    )
    assert agent.returncode == -signal.SIGKILL
    assert site.hypervisor.machine(vm_id).power is Power.RUNNING
    site.writes_more(vm_id)


@pytest.mark.parametrize("seed", range(3))
def test_points_of_a_busy_guest_are_instants_through_kills_of_guest_and_agent(site: Guests, seed: int):
    chance = random.Random(seed)
    vm_id = site.new()
    source = site.hypervisor.change_source(vm_id)
    source.start()
    replica, newest = Replica(), 0
    for cycle in range(1, 21):
        before = site.acknowledged(vm_id)
        point = source.open_point(cycle, name_of(cycle), consistency="crash")
        assert point.tracking is Tracking.OK
        if chance.random() < 0.3:
            site.kill(vm_id)
        replica.take(point)
        if chance.random() < 0.3:
            site.hypervisor.start(vm_id)
        assert replica.equals(point)
        point.close()
        report = replica.report()
        assert report.problems == ()
        assert before <= report.newest <= site.acknowledged(vm_id) + 1
        assert newest <= report.newest
        newest = report.newest
        source.ack(cycle, name_of(cycle))
        if chance.random() < 0.3:
            source = EmbeddedHypervisor(site.vms, site.run).change_source(vm_id)
        site.hypervisor.start(vm_id)
        if chance.random() < 0.7:
            site.writes_more(vm_id, chance.randrange(1, 10))


def test_an_agent_killed_with_an_open_point_leaves_every_change_to_the_next_one(site: Guests):
    vm_id = site.new()
    source = site.hypervisor.change_source(vm_id)
    source.start()
    replica = Replica()
    point = source.open_point(1, name_of(1), consistency="crash")
    replica.take(point)
    point.close()
    source.ack(1, name_of(1))
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor;"
        "source = EmbeddedHypervisor(Path(sys.argv[1]), Path(sys.argv[2])).change_source(sys.argv[3]);"
        "point = source.open_point(2, bytes(16), consistency='crash');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for _ in range(3):
        site.writes_more(vm_id)
        agent = subprocess.run([sys.executable, "-c", code, str(site.vms), str(site.run), vm_id], check=False)
        assert agent.returncode == -signal.SIGKILL
    site.writes_more(vm_id)
    point = source.open_point(2, name_of(2), consistency="crash")
    assert point.tracking is Tracking.OK
    replica.take(point)
    assert replica.equals(point)
    point.close()
    assert replica.report().problems == ()


def test_a_guest_whose_agent_died_while_it_started_runs_all_the_same(site: Guests):
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=10)
    hear, say = os.pipe()
    os.close(hear)  # the agent is gone before the guest can tell it
    command = [sys.executable, "-m", "hyperv_host_agent.hypervisors.embedded.guest"]
    arguments = [str(site.folder(vm_id)), str(site.run), str(say)]
    subprocess.run([*command, *arguments], pass_fds=(say,), check=True, start_new_session=True)
    os.close(say)
    eventually(lambda: len(site.boots(vm_id)) == 2)
    site.writes_more(vm_id)
    assert not site.hypervisor.ask_guest(vm_id, "status")["frozen"]
    pid = site.pid(vm_id)
    site.hypervisor.stop(vm_id, timeout=10)
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_a_frozen_guest_writes_nothing_and_thaws_by_itself(site: Guests):
    vm_id = site.new()
    site.writes_more(vm_id)
    assert site.hypervisor.ask_guest(vm_id, "freeze", seconds=2.0) == {"frozen": True}
    frozen = site.acknowledged(vm_id)
    first = {disk.id: site.hypervisor.disk_path(vm_id, disk.id).read_bytes() for disk in _disks(site, vm_id)}
    threading.Event().wait(0.3)
    second = {disk.id: site.hypervisor.disk_path(vm_id, disk.id).read_bytes() for disk in _disks(site, vm_id)}
    assert first == second
    assert site.acknowledged(vm_id) == frozen
    site.writes_more(vm_id)  # nobody thawed it
    site.hypervisor.ask_guest(vm_id, "freeze", seconds=600.0)
    site.hypervisor.ask_guest(vm_id, "thaw")
    site.writes_more(vm_id)


def _disks(site: Guests, vm_id: str) -> tuple[DiskGeometry, ...]:
    return site.hypervisor.machine(vm_id).spec.disks


def test_an_application_consistent_point_lies_between_two_records(site: Guests):
    vm_id = site.new()
    source = site.hypervisor.change_source(vm_id)
    source.start()
    for cycle in range(1, 11):
        point = source.open_point(cycle, name_of(cycle), consistency="application")
        assert point.consistency == "application"
        replica = Replica()
        for disk in point.disks:
            replica.content[disk.id] = bytearray(point.read(disk.id, Run(0, clusters(disk.size))))
        point.close()
        report = replica.report()
        assert report.problems == ()
        assert len(set(report.per_disk)) == 1
        source.ack(cycle, name_of(cycle))


def test_a_replica_goes_on_where_its_point_ended_and_two_tests_run_beside_it(site: Guests, tmp_path: Path):
    original = site.new("source")
    site.writes_more(original, 20)
    site.hypervisor.stop(original, timeout=20)
    spec = site.hypervisor.machine(original).spec
    attached = []
    for number, disk in enumerate(spec.disks):
        folder = tmp_path / f"store{number}"
        folder.mkdir()
        content = site.hypervisor.disk_path(original, disk.id).read_bytes()
        attached.append(AttachedDisk(disk.id, disk.name, disk.size, chain(folder, [bytes(disk.size), content])))
    layers = {layer: layer.read_bytes() for disk in attached for layer in disk.layers}
    ended = site.verify(original).newest
    target = EmbeddedHypervisor(tmp_path / "site-b", tmp_path / "run-b")
    try:
        copies = []
        for number, purpose in enumerate((Purpose.REPLICA, Purpose.TEST)):
            copy = replace(spec, id=spec.id[:-1] + f"{number:x}")
            target.define(copy, tuple(attached), purpose=purpose)
            target.change_source(copy.id).start()
            target.start(copy.id)
            copies.append(copy)
        assert [state.spec.name for state in target.machines()] == ["source", "source - Test"]
        for copy in copies:
            log = target.disk_path(copy.id, copy.disks[0].id).parent / "guest.log"
            eventually(lambda log=log: len(log.read_bytes().splitlines()) > 20)
            boot = json.loads(log.read_bytes().splitlines()[0])
            assert (boot["recovered_sequence"], boot["problems"]) == (ended, [])
            source = target.change_source(copy.id)
            point = source.open_point(1, name_of(1), consistency="crash")
            replica = Replica()
            replica.take(point)
            assert replica.equals(point)
            point.close()
            report = replica.report()
            assert report.problems == ()
            assert report.newest > ended
            target.stop(copy.id, timeout=20)
            target.undefine(copy.id)
        assert target.machines() == []
        assert {layer: layer.read_bytes() for layer in layers} == layers
    finally:
        for state in target.machines():
            target.stop(state.spec.id, timeout=0)


def test_a_guest_that_hangs_is_stopped_by_force(site: Guests):
    vm_id = site.new()
    os.kill(site.pid(vm_id), signal.SIGSTOP)
    site.hypervisor.stop(vm_id, timeout=0.5)
    assert site.hypervisor.machine(vm_id).power is Power.STOPPED
    site.hypervisor.start(vm_id)
    assert site.boots(vm_id)[-1]["problems"] == []


def test_a_process_that_got_the_guests_pid_is_left_alone(site: Guests):
    vm_id = site.new()
    site.kill(vm_id)
    path = site.folder(vm_id) / "guest.json"
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": stranger.pid}))
        assert site.hypervisor.machine(vm_id).power is Power.STOPPED
        site.hypervisor.stop(vm_id, timeout=0)
        assert stranger.poll() is None
        site.hypervisor.start(vm_id)
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


def test_a_fence_that_comes_while_the_guest_starts_wins(site: Guests):
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=20)
    other = EmbeddedHypervisor(site.vms, site.run)  # another process, as far as locks go

    def start() -> None:
        with contextlib.suppress(MachineFenced, MachineFailed):
            other.start(vm_id)

    for _ in range(5):
        starting = threading.Thread(target=start)
        starting.start()
        site.hypervisor.fence(vm_id, 3)
        starting.join()
        assert site.hypervisor.machine(vm_id).power is Power.STOPPED
        site.hypervisor.unfence(vm_id)


def test_a_disk_in_use_or_gone_is_said_at_the_start(site: Guests):
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=20)
    disk = site.hypervisor.disk_path(vm_id, _disks(site, vm_id)[0].id)
    disk.rename(disk.with_suffix(".away"))
    with pytest.raises(MachineFailed, match="No such file"):
        site.hypervisor.start(vm_id)
    disk.with_suffix(".away").rename(disk)
    with disk.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(MachineFailed, match=r"machine\.json says"):
        site.hypervisor.start(vm_id)


def test_a_folder_deeper_than_a_socket_name_may_be_long_works(tmp_path: Path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with guests(deep) as site:
        vm_id = site.new()
        assert site.hypervisor.ask_guest(vm_id, "status")["frozen"] is False


def test_nonsense_on_the_control_socket_harms_nobody(site: Guests):
    vm_id = site.new()
    path = json.loads((site.folder(vm_id) / "guest.json").read_bytes())["socket"]
    for line in (b"\n", b"{}\n", b"[]\n", b'{"verb": "fly"}\n', b'{"verb": "open_point"}\n', b"\xff\n", b"x" * 70000):
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.settimeout(20)
            with contextlib.ExitStack() as stack:
                folder = os.open(Path(path).parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                connection.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
            connection.sendall(line)
            assert b"refused" in connection.recv(65536)
    site.writes_more(vm_id)


def test_half_made_and_half_removed_vms_are_swept_up(site: Guests):
    site.vms.joinpath(".new-x").mkdir()
    site.vms.joinpath(".deleted-y").mkdir()
    site.vms.joinpath("not-a-vm").mkdir()
    site.vms.joinpath("notes.txt").write_text("mine")
    broken = site.vms / "broken"
    broken.mkdir()
    (broken / "machine.json").write_text("{")
    again = EmbeddedHypervisor(site.vms, site.run)
    assert again.machines() == []
    assert not list(site.vms.glob(".new-*")) + list(site.vms.glob(".deleted-*"))
    assert (site.vms / "notes.txt").exists()
