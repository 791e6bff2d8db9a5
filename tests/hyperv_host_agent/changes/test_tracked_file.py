"""Changes to disks in files: none is forgotten, and a point is one instant, whatever dies and whenever."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hyperv_host_agent.changes.base import Anchor, SourcePoint, SourceUnavailable, Tracking
from hyperv_host_agent.changes.disk import Disk
from hyperv_host_agent.changes.durable import locked
from hyperv_host_agent.replication.cycle import DiskGeometry
from tests.fakes.tracked_machine import TrackedMachine
from twinsite.extents import CLUSTER, Run, clusters

A = DiskGeometry("a", 24 * CLUSTER)
B = DiskGeometry("b", 11 * CLUSTER + 4096)
DISKS = (A, B)


def name_of(cycle: int) -> bytes:
    return cycle.to_bytes(16, "big")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[TrackedMachine]:
    machine = TrackedMachine(tmp_path, DISKS)
    yield machine
    machine.close()


def anchored(machine: TrackedMachine) -> None:
    machine.source.start()
    machine.source.open_point(1, name_of(1), consistency="crash").close()
    machine.source.ack(1, name_of(1))


def whole(point: SourcePoint, disk: DiskGeometry) -> bytes:
    return point.read(disk.id, Run(0, clusters(disk.size)))


def dirty(point: SourcePoint, disk: DiskGeometry) -> set[int]:
    return {cluster for run in point.dirty(disk.id) for cluster in range(run.start, run.end)}


def differing(before: bytes, after: bytes) -> set[int]:
    places = range(clusters(len(after)))
    return {
        at for at in places if before[at * CLUSTER : (at + 1) * CLUSTER] != after[at * CLUSTER : (at + 1) * CLUSTER]
    }


class Replica:
    """What a target would hold: the points of a machine, applied by their dirty sets."""

    def __init__(self, machine: TrackedMachine) -> None:
        self.machine = machine
        self.content = {disk.id: bytearray(disk.size) for disk in machine.geometry}
        self.cycle = 0

    def take(self, point: SourcePoint) -> dict[str, bytearray]:
        new = {disk: bytearray(content) for disk, content in self.content.items()}
        for disk in point.disks:
            for run in point.dirty(disk.id):
                data = point.read(disk.id, run)
                new[disk.id][run.start * CLUSTER : run.start * CLUSTER + len(data)] = data
        return new


@pytest.mark.parametrize("seed", range(6))
def test_random_writes_kills_restarts_and_lost_acks_never_lose_a_change(tmp_path: Path, seed: int):
    # A model of one VM over many cycles: whatever happens in between, what a target builds from the dirty sets alone
    # equals the disks at each point's instant, and tracking never has to be given up while the host stays up.
    chance = random.Random(seed)
    machine = TrackedMachine(tmp_path, DISKS)
    replica = Replica(machine)
    machine.source.start()

    def write() -> None:
        disk = chance.choice(DISKS)
        offset = chance.randrange(disk.size)
        machine.write(
            disk.id, offset, chance.randbytes(min(disk.size - offset, chance.choice([1, 512, 4096, 100_000])))
        )

    def disturb() -> None:
        match chance.randrange(9):
            case 0 if machine.guest is None:
                machine.start()
            case 1 if machine.guest is not None:
                machine.stop()
            case 2 if machine.guest is not None:
                machine.kill()
            case _:
                write()

    for _ in range(25):
        for _ in range(chance.randrange(5)):
            disturb()
        replica.cycle += 1
        name = chance.randbytes(16)
        point = machine.source.open_point(replica.cycle, name, consistency="crash")
        assert point.tracking is Tracking.OK
        instant = {disk.id: machine.content(disk.id) for disk in DISKS}
        for _ in range(chance.randrange(6)):
            disturb()
        new = replica.take(point)
        for disk in DISKS:
            assert new[disk.id] == instant[disk.id]
            assert whole(point, disk) == instant[disk.id]
        if chance.random() < 0.2:
            machine.abandon_points()
            machine.source = machine.new_source()
        else:
            point.close()
        for _ in range(chance.randrange(4)):
            disturb()
        match chance.randrange(4):
            case 0:
                machine.source.discard()
            case 1:
                pass  # the agent died; the next point takes it in
            case _:
                machine.source.ack(replica.cycle, name)
                replica.content = new
    machine.close()


def test_a_point_is_one_instant_while_threads_write(machine: TrackedMachine):
    # Each writer stamps disk A, then disk B, with a rising number; a point that shows a later number on B than on A,
    # or half a stamp, is not an instant.
    machine.start()
    assert machine.guest is not None
    guest = machine.guest
    anchored(machine)
    done = threading.Event()

    def stamp(cluster: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            data = number.to_bytes(8, "big") * (CLUSTER // 8)
            guest.write(A.id, cluster * CLUSTER, data)
            guest.write(B.id, cluster * CLUSTER, data)

    writers = [threading.Thread(target=stamp, args=(cluster,)) for cluster in range(4)]
    for writer in writers:
        writer.start()
    try:
        replica = Replica(machine)
        for cycle in range(2, 42):
            point = machine.source.open_point(cycle, name_of(cycle), consistency="crash")
            new = replica.take(point)
            for cluster in range(4):
                stamps = []
                for disk in DISKS:
                    data = point.read(disk.id, Run(cluster, 1))
                    assert data == data[:8] * (CLUSTER // 8), "torn"
                    assert new[disk.id][cluster * CLUSTER : (cluster + 1) * CLUSTER] == data
                    stamps.append(int.from_bytes(data[:8], "big"))
                assert stamps[0] - 1 <= stamps[1] <= stamps[0], "reordered"
            point.close()
            machine.source.ack(cycle, name_of(cycle))
            replica.content = new
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert any(replica.content[A.id])


def test_a_guest_killed_and_started_while_a_point_is_open_goes_on_saving_it(machine: TrackedMachine):
    machine.start()
    anchored(machine)
    machine.write(A.id, 0, b"old" * 1000)
    point = machine.source.open_point(2, name_of(2), consistency="crash")
    before = machine.content(A.id)
    machine.write(A.id, 0, b"new" * 1000)
    machine.kill()
    assert whole(point, A) == before
    machine.start()
    machine.write(A.id, 0, b"newer" * 1000)
    machine.write(A.id, 5 * CLUSTER, b"newer")
    assert whole(point, A) == before
    machine.stop()
    assert whole(point, A) == before
    point.close()
    assert not (machine.folder / "tracking" / "scratch").exists()


def test_a_full_scratch_space_fails_the_point_and_never_the_guest(machine: TrackedMachine):
    machine.scratch_limit = 2 * CLUSTER
    machine.start()
    anchored(machine)
    point = machine.source.open_point(2, name_of(2), consistency="crash")
    for cluster in range(4):
        machine.write(A.id, cluster * CLUSTER, b"x")
    assert machine.content(A.id)[3 * CLUSTER] == ord("x")
    with pytest.raises(SourceUnavailable, match="scratch space"):
        point.read(A.id, Run(10, 1))
    point.close()
    machine.source.discard()
    point = machine.source.open_point(2, name_of(3), consistency="crash")
    assert dirty(point, A) == {0, 1, 2, 3}
    assert whole(point, A) == machine.content(A.id)


def test_a_point_that_ended_says_so_for_its_holes_too(machine: TrackedMachine):
    machine.start()
    anchored(machine)
    point = machine.source.open_point(2, name_of(2), consistency="crash")
    assert list(point.holes(A.id)) == [Run(0, clusters(A.size))]
    assert machine.guest is not None
    machine.guest.close_point()  # as when a disk is cut meanwhile, which then has a hole where there was data
    with pytest.raises(SourceUnavailable):
        list(point.holes(A.id))
    point.close()


def test_a_reader_that_died_costs_the_guest_no_more_copies(machine: TrackedMachine):
    machine.start()
    anchored(machine)
    machine.source.open_point(2, name_of(2), consistency="crash")
    machine.abandon_points()
    assert machine.guest is not None
    machine.guest._reader_seen = -100.0  # a while ago
    machine.write(A.id, 0, b"x")
    assert not (machine.folder / "tracking" / "scratch").exists()
    machine.source.discard()
    point = machine.source.open_point(2, name_of(3), consistency="crash")
    assert dirty(point, A) == {0}


def test_a_clean_stop_is_believed_after_a_restart_of_the_host(machine: TrackedMachine):
    machine.start()
    anchored(machine)
    machine.write(A.id, 3 * CLUSTER, b"x")
    machine.stop()
    machine.boot = b"another boot id!"
    machine.source = machine.new_source()
    assert machine.source.status() == (Anchor(1, name_of(1)), Tracking.OK)
    machine.start()
    point = machine.source.open_point(2, name_of(2), consistency="crash")
    assert (point.tracking, dirty(point, A)) == (Tracking.OK, {3})


def test_an_owner_that_does_not_answer_is_a_reason_to_try_later(
    machine: TrackedMachine, monkeypatch: pytest.MonkeyPatch
):
    machine.source.start()
    monkeypatch.setattr("hyperv_host_agent.changes.tracked_file._OWNER_SECONDS", 0.1)
    with locked(machine.folder / "owner.lock") as got:
        assert got
        with pytest.raises(SourceUnavailable, match="does not answer"):
            machine.source.open_point(1, name_of(1), consistency="crash")
        assert machine.source.status() == (None, Tracking.OK)
    machine.source.open_point(1, name_of(1), consistency="crash").close()


def test_a_missing_disk_is_a_reason_to_try_later(machine: TrackedMachine):
    machine.source.start()
    machine.path(A.id).unlink()
    with pytest.raises(SourceUnavailable, match="No such file"):
        machine.source.open_point(1, name_of(1), consistency="crash")


def test_a_stopped_vm_that_ended_in_an_orderly_way_gives_application_consistent_points(machine: TrackedMachine):
    machine.source.start()
    point = machine.source.open_point(1, name_of(1), consistency="application")
    assert point.consistency == "application"
    point.close()
    machine.start()  # a guest that cannot be held still
    point = machine.source.open_point(1, name_of(1), consistency="application")
    assert point.consistency == "crash"


class Gated:
    """A disk whose next write waits at a gate, for a test to do something beside it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.reached, self.open = threading.Event(), threading.Event()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.reached.set()
        assert self.open.wait(30)
        self._disk.write(offset, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)


def test_a_point_is_never_opened_in_the_middle_of_a_write(machine: TrackedMachine):
    machine.start()
    anchored(machine)
    assert machine.guest is not None
    gate = Gated(machine.guest._disks[A.id])
    machine.guest._disks[A.id] = cast("Disk", gate)
    points: list[SourcePoint] = []
    writing = threading.Thread(target=machine.write, args=(A.id, 0, b"new"))
    opening = threading.Thread(
        target=lambda: points.append(machine.source.open_point(2, name_of(2), consistency="crash"))
    )
    writing.start()
    assert gate.reached.wait(30)
    opening.start()
    opening.join(0.3)
    assert points == []
    gate.open.set()
    opening.join()
    writing.join()
    assert dirty(points[0], A) == {0}
    assert points[0].read(A.id, Run(0, 1))[:3] == b"new"
