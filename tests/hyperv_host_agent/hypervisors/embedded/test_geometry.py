"""Disks that grow, shrink, come and go under a guest: every point is one instant, and nothing known is forgotten."""

import contextlib
import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.changes.base import SourceUnavailable, Tracking
from hyperv_host_agent.changes.durable import locked
from hyperv_host_agent.changes.tracked_disks import OWNER_LOCK, TrackedDisks
from hyperv_host_agent.changes.tracked_file import TrackedFileSource
from hyperv_host_agent.hypervisors.base import MachineFailed, MachineFenced, Power, Purpose
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.geometry import BadDiskChange, DiskChange
from hyperv_host_agent.hypervisors.embedded.machine_folder import MachineFolder
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from tests.fakes import disk_change, strace
from tests.fakes.guests import Guests, guests
from tests.fakes.layers import chain
from tests.fakes.resized_replica import ResizedReplica
from twinsite.api.types.v1 import types_pb2
from twinsite.extents import CLUSTER, Run, clusters
from twinsite.units import KiB, MiB


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Guests]:
    with guests(tmp_path) as made:
        yield made


def name_of(cycle: int) -> bytes:
    return cycle.to_bytes(16, "big")


def disk(site: Guests, vm_id: str, name: str) -> DiskGeometry:
    return next(disk for disk in site.hypervisor.machine(vm_id).spec.disks if disk.name == name)


def resize(site: Guests, vm_id: str, name: str, size: int) -> None:
    site.hypervisor.change_disks(vm_id, DiskChange("resize", disk(site, vm_id, name).id, size))


def add(site: Guests, vm_id: str, name: str, size: int) -> str:
    identifier = str(uuid.uuid4())
    site.hypervisor.change_disks(vm_id, DiskChange("add", identifier, size, name))
    return identifier


def remove(site: Guests, vm_id: str, name: str) -> None:
    site.hypervisor.change_disks(vm_id, DiskChange("remove", disk(site, vm_id, name).id))


class Taken:
    """Cycles of a VM and what they bring."""

    def __init__(self, source: TrackedFileSource) -> None:
        self.source, self.replica, self.cycle = source, ResizedReplica(), 0
        source.start()

    def next(self, *, whole: bool = True) -> int:
        """Clusters the next cycle brings; its content is proven to be that of the instant."""
        self.cycle += 1
        before = self.replica.taken
        point = self.source.open_point(self.cycle, name_of(self.cycle), consistency="crash")
        assert (point.tracking is Tracking.LOST) <= bool(point.doubt)
        if whole:
            assert (point.tracking, point.doubt == "") == (Tracking.OK, self.cycle > 1)
        self.replica.take(point)
        assert self.replica.equals(point)
        shown = types_pb2.Machine.FromString(point.machine)
        assert [(each.id, each.size_bytes) for each in shown.disks] == [(each.id, each.size) for each in point.disks]
        point.close()
        report = self.replica.report()
        assert report.problems == ()
        self.source.ack(self.cycle, name_of(self.cycle))
        return self.replica.taken - before


@pytest.mark.parametrize("seed", range(3))
def test_points_are_instants_while_disks_change_under_a_busy_guest(site: Guests, seed: int):
    chance = random.Random(seed)
    vm_id = site.new()
    taken = Taken(site.hypervisor.change_source(vm_id))
    extra = 0
    for _ in range(20):
        taken.next()
        for _ in range(chance.randrange(3)):
            names = [each.name for each in site.hypervisor.machine(vm_id).spec.disks]
            match chance.randrange(5):
                case 0 if extra < 3:
                    extra += 1
                    add(site, vm_id, f"extra{extra}", chance.randrange(2, 8) * MiB + chance.randrange(100) * 512)
                case 1 if len(names) > 2:
                    remove(site, vm_id, names[-1])
                case 2 if chance.random() < 0.5:
                    site.kill(vm_id)
                case _:
                    resize(site, vm_id, chance.choice(names), chance.randrange(2048, 32768) * 512)
            if site.hypervisor.machine(vm_id).power is Power.STOPPED and chance.random() < 0.7:
                site.hypervisor.start(vm_id)
        site.hypervisor.start(vm_id)
        site.writes_more(vm_id, 3)
    assert [boot["problems"] for boot in site.boots(vm_id)] == [[]] * len(site.boots(vm_id))
    taken.next()


@pytest.mark.parametrize("running", [True, False])
def test_a_change_costs_the_next_cycle_no_more_than_what_changed(site: Guests, running: bool):
    vm_id = site.new(load=0)
    if not running:
        site.hypervisor.stop(vm_id, timeout=20)
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()
    records = 2 * clusters(1 * MiB) + 4  # where the rings are, and where they come to stand
    resize(site, vm_id, "vdb", 256 * MiB)
    assert taken.source.dirty_bytes() <= records * CLUSTER
    assert taken.next() <= records
    assert taken.source.disks() == site.hypervisor.machine(vm_id).spec.disks
    assert disk(site, vm_id, "vdb").size == 256 * MiB
    resize(site, vm_id, "vdb", 8 * MiB)
    assert taken.next() <= records
    add(site, vm_id, "vdc", 64 * CLUSTER)
    assert taken.next() <= 64 + records
    remove(site, vm_id, "vdc")
    assert taken.next() <= records
    assert (site.hypervisor.machine(vm_id).power is Power.RUNNING) == running


@pytest.mark.parametrize("between", [False, True])
def test_a_disk_that_shrank_and_grew_reads_zeros_there(site: Guests, between: bool):
    vm_id = site.new(load=0)
    site.hypervisor.stop(vm_id, timeout=20)
    vdc = add(site, vm_id, "vdc", 64 * CLUSTER)
    with site.hypervisor.disk_path(vm_id, vdc).open("r+b") as file:
        file.write(b"\xff" * (64 * CLUSTER))
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()
    resize(site, vm_id, "vdc", 20 * CLUSTER + 512)
    if between:
        taken.next()
    resize(site, vm_id, "vdc", 100 * CLUSTER)
    assert taken.next() <= 64
    assert taken.replica.content[vdc] == (b"\xff" * (20 * CLUSTER + 512)).ljust(100 * CLUSTER, b"\0")


def test_a_point_that_is_open_while_a_disk_changes_ends_with_a_reason_and_the_next_one_has_it_all(
    site: Guests,
):
    site.hypervisor = EmbeddedHypervisor(site.vms, site.run, point_seconds=0.1)
    vm_id = site.new()
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()
    site.writes_more(vm_id)
    point = taken.source.open_point(2, name_of(2), consistency="crash")
    resize(site, vm_id, "vdb", 3 * MiB)
    with pytest.raises(SourceUnavailable, match="disks were changed"):
        point.read(disk(site, vm_id, "vdb").id, Run(0, 1))
    point.close()
    taken.source.discard()
    taken.next()


@pytest.mark.parametrize("seed", range(2))
def test_a_guest_that_is_killed_while_its_disks_change_has_the_old_or_the_new_ones(site: Guests, seed: int):
    chance = random.Random(seed)
    vm_id = site.new()
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()
    for _ in range(12):
        site.writes_more(vm_id, 2)
        before, size = disk(site, vm_id, "vdb").size, chance.randrange(2048, 16384) * 512
        changing = threading.Thread(target=resize, args=(site, vm_id, "vdb", size))
        changing.start()
        threading.Event().wait(chance.random() * 0.02)
        site.kill(vm_id)
        changing.join()  # what the guest did not live to do is done without it
        assert disk(site, vm_id, "vdb").size == size != before
        taken.next(whole=False)
        site.hypervisor.start(vm_id)
    assert [boot["problems"] for boot in site.boots(vm_id)] == [[]] * len(site.boots(vm_id))
    assert site.hypervisor.machine(vm_id).power is Power.RUNNING


def test_disks_of_a_vm_that_was_failed_over_change_too(site: Guests, tmp_path: Path):
    original = site.new("source")
    site.writes_more(original, 20)
    site.hypervisor.stop(original, timeout=20)
    spec = site.hypervisor.machine(original).spec
    attached = []
    for number, each in enumerate(spec.disks):
        folder = tmp_path / f"store{number}"
        folder.mkdir()
        content = site.hypervisor.disk_path(original, each.id).read_bytes()
        attached.append(AttachedDisk(each.id, each.name, each.size, chain(folder, [content])))
    with guests(tmp_path / "other") as other:
        other.hypervisor.define(spec, tuple(attached), purpose=Purpose.REPLICA)
        taken = Taken(other.hypervisor.change_source(spec.id))
        other.hypervisor.start(spec.id)
        for size in (3 * MiB, 9 * MiB + 512, 2 * MiB + 1024, 20 * MiB):
            other.writes_more(spec.id)
            resize(other, spec.id, "vdb", size)
            taken.next()
        other.hypervisor.stop(spec.id, timeout=20)
        resize(other, spec.id, "vda", 5 * MiB)
        add(other, spec.id, "vdc", 2 * MiB)
        taken.next()
        other.hypervisor.start(spec.id)
        other.writes_more(spec.id)
        remove(other, spec.id, "vdc")
        taken.next()
        assert {boot["recovered_sequence"] > 0 for boot in other.boots(spec.id)} == {True}
        assert [boot["problems"] for boot in other.boots(spec.id)] == [[], []]


def test_what_cannot_be_done_is_refused_and_nothing_is_touched(site: Guests):
    vm_id = site.new()
    before = site.hypervisor.machine(vm_id)
    vda = before.spec.disks[0].id
    for change, problem in (
        (DiskChange("resize", "nowhere", 4 * MiB), "no such disk"),
        (DiskChange("resize", vda, 4 * KiB), r"less than 1\.0 MiB"),
        (DiskChange("resize", vda, 4 * MiB + 1), "sectors"),
        (DiskChange("add", str(uuid.uuid4()), 4 * MiB, "vdb"), "of that name"),
        (DiskChange("add", vda, 4 * MiB, "vdz"), "of that id"),
        (DiskChange("remove", vda), "records"),
    ):
        with pytest.raises(BadDiskChange, match=problem):
            site.hypervisor.change_disks(vm_id, change)
    assert site.hypervisor.machine(vm_id) == before
    site.hypervisor.fence(vm_id, 3)
    with pytest.raises(MachineFenced):
        resize(site, vm_id, "vda", 8 * MiB)
    assert not list(site.folder(vm_id).glob("geometry*"))


def test_a_change_without_room_for_its_preparation_is_no_change(site: Guests, monkeypatch: pytest.MonkeyPatch):
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=20)
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hyperv_host_agent.changes.mapped_file.os.posix_fallocate", full)
        with pytest.raises(MachineFailed, match="No space left"):
            resize(site, vm_id, "vdb", 64 * MiB)
    assert disk(site, vm_id, "vdb").size == 6 * MiB
    assert not list(site.folder(vm_id).rglob("*.staged"))
    assert taken.next() <= 1


CALLS = ("rename", "ftruncate", "pwrite64", "fsync", "unlink", "unlinkat", "msync", "fallocate", "write", "mkdir")


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_leaves_the_old_disks_or_the_new_and_no_change_forgotten(site: Guests, call: str):
    strike(site, call, "signal=SIGKILL", (-9, 137))


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("rename", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("fsync", "EIO"),
        ("msync", "EIO"),
        ("ftruncate", "EIO"),
        ("fallocate", "ENOSPC"),
        ("write", "ENOSPC"),
        ("mkdir", "ENOSPC"),
    ],
)
def test_a_call_that_fails_leaves_the_old_disks_or_the_new_and_no_change_forgotten(site: Guests, call: str, error: str):
    strike(site, call, f"error={error}", (1,))


def strike(site: Guests, call: str, how: str, ends: tuple[int, ...]) -> None:
    """Change disks of a stopped VM, struck at the 1st, 2nd … such call, until a change survives."""
    vm_id = site.new()
    site.hypervisor.stop(vm_id, timeout=20)
    taken = Taken(site.hypervisor.change_source(vm_id))
    taken.next()
    chance = random.Random(call)
    for kind in ("resize", "add", "resize", "remove"):
        number, survived = 0, False
        while not survived:
            number += 1
            assert number < 100
            present = {each.name: each for each in site.hypervisor.machine(vm_id).spec.disks}
            if kind != "resize" and ("vdc" in present) == (kind == "add"):  # it was struck after the decision
                break
            write(site, vm_id, chance)
            identifier = str(uuid.uuid4()) if kind == "add" else present["vdc" if kind == "remove" else "vdb"].id
            size = chance.randrange(2048, 16384) * 512
            done = strace.run(
                Path(disk_change.__file__),
                [str(site.vms), str(site.run), vm_id, kind, identifier, str(size), "vdc"],
                inject=f"{call}:{how}:when={number}",
                paths=[],
            )
            survived = done.returncode == 0
            assert survived or done.returncode in ends, done.stderr
            sizes = {each.id: each.size for each in present.values()}
            changed = {key: value for key, value in sizes.items() if key != identifier}
            if kind != "remove":
                changed[identifier] = size
            taken.source = site.hypervisor.change_source(vm_id)
            taken.source.start()
            found = {each.id: each.size for each in taken.source.disks()}
            assert found in (sizes, changed)
            assert not survived or found == changed
            taken.next(whole=survived)
            assert not list(site.folder(vm_id).glob("geometry*"))


def write(site: Guests, vm_id: str, chance: random.Random) -> None:
    """As its guest does, where load goes."""
    folder = MachineFolder.open(site.folder(vm_id), vm_id)
    with locked(folder.path / OWNER_LOCK, seconds=20) as free, contextlib.ExitStack() as stack:
        assert free
        opened = {each.id: folder.open_disk(each.id, True) for each in folder.disks}
        disks = stack.enter_context(TrackedDisks(folder.path, opened))
        for identifier in opened:
            disks.write(identifier, chance.randrange(4) * CLUSTER, chance.randbytes(4096))
