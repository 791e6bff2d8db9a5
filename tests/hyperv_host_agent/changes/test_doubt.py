"""Whatever may have been changed without being noticed is LOST, with a reason, until it was compared: never clean."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.changes.base import Anchor, SourceUnavailable, Tracking
from hyperv_host_agent.replication.cycle import DiskGeometry
from tests.fakes.tracked_machine import TrackedMachine
from twinsite.extents import CLUSTER, Run, clusters

A = DiskGeometry("a", 24 * CLUSTER)
B = DiskGeometry("b", 24 * CLUSTER)
HOUR = 3600.0


def name_of(cycle: int) -> bytes:
    return cycle.to_bytes(16, "big")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[TrackedMachine]:
    machine = TrackedMachine(tmp_path / "vm", (A, B))
    machine.start()
    machine.source.start()
    machine.source.open_point(1, name_of(1), consistency="crash").close()
    machine.source.ack(1, name_of(1))
    machine.write(A.id, 0, b"x")
    yield machine
    machine.close()


def dirty(machine: TrackedMachine, cycle: int) -> tuple[Tracking, str, set[int]]:
    """Of the next point, which is acked: tracking, doubt, dirty clusters of the second disk."""
    point = machine.source.open_point(cycle, name_of(cycle), consistency="crash")
    found = {cluster for run in point.dirty(B.id) for cluster in range(run.start, run.end)}
    point.close()
    machine.source.ack(cycle, name_of(cycle))
    return point.tracking, point.doubt, found


# How tracking gets doubtful while the VM is stopped, or dies.


def edited_while_stopped(machine: TrackedMachine) -> None:
    machine.stop()
    machine.edit_behind_its_back(B.id)


def edited_after_a_kill(machine: TrackedMachine) -> None:
    machine.kill()
    machine.edit_behind_its_back(B.id)


def replaced_by_an_equal_file(machine: TrackedMachine) -> None:
    machine.stop()
    path = machine.path(A.id)
    shutil.copy2(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").rename(path)


def exchanged(machine: TrackedMachine) -> None:
    """As with the disk of another VM: both files are intact, of one size, and neither was written."""
    machine.stop()
    one, other, between = machine.path(A.id), machine.path(B.id), machine.folder / "between"
    one.rename(between)
    other.rename(one)
    between.rename(other)


def host_crashed(machine: TrackedMachine) -> None:
    machine.kill()
    machine.boot = b"another boot id!"


def map_deleted(machine: TrackedMachine) -> None:
    machine.stop()
    next((machine.folder / "tracking").glob("*.map")).unlink()


def map_cut(machine: TrackedMachine) -> None:
    machine.stop()
    with next((machine.folder / "tracking").glob("*.map")).open("r+b") as file:
        file.truncate(4096)


def map_empty(machine: TrackedMachine) -> None:
    machine.stop()
    next((machine.folder / "tracking").glob("*.map")).write_bytes(b"")


def state_is_nonsense(machine: TrackedMachine) -> None:
    machine.stop()
    (machine.folder / "tracking" / "state").write_bytes(b"nonsense" * 512)


def state_is_no_file(machine: TrackedMachine) -> None:
    machine.stop()
    (machine.folder / "tracking" / "state").unlink()
    (machine.folder / "tracking" / "state").mkdir()


def edited_after_the_clock_was_set_back(machine: TrackedMachine) -> None:
    machine.stop()
    machine.set_clock(-HOUR)
    machine.edit_behind_its_back(B.id)


def edited_after_the_clock_was_set_forward(machine: TrackedMachine) -> None:
    machine.stop()
    machine.set_clock(HOUR)
    machine.edit_behind_its_back(B.id)


def edited_after_a_kill_in_a_write_and_a_clock_set_back(machine: TrackedMachine) -> None:
    """The edit's time lies just where the interrupted write's would."""
    machine.killed_in_a_write(B.id)
    machine.set_clock(-0.03)
    machine.edit_behind_its_back(B.id)


def edited_some_time_after_a_kill_in_a_write(machine: TrackedMachine) -> None:
    machine.killed_in_a_write(B.id)
    machine.clock.passed += 0.2
    machine.edit_behind_its_back(B.id)


@pytest.mark.parametrize(
    ("doubtful", "why"),
    [
        (edited_while_stopped, "changed while it was not tracked"),
        (edited_after_a_kill, "changed while it was not tracked"),
        (replaced_by_an_equal_file, "replaced or resized"),
        (exchanged, "replaced or resized"),
        (host_crashed, "the host stopped while the VM ran"),
        (map_deleted, "cannot be opened"),
        (map_cut, "wrong length"),
        (map_empty, "wrong length"),
        (state_is_nonsense, "other content"),
        (state_is_no_file, "cannot be opened"),
        (edited_after_the_clock_was_set_back, "changed while it was not tracked"),
        (edited_after_the_clock_was_set_forward, "changed while it was not tracked"),
        (edited_after_a_kill_in_a_write_and_a_clock_set_back, "changed while it was not tracked"),
        (edited_some_time_after_a_kill_in_a_write, "changed while it was not tracked"),
    ],
)
def test_what_is_doubtful_is_lost_before_and_after_the_next_start_and_known_again_after_the_next_ack(
    machine: TrackedMachine, doubtful: Callable[[TrackedMachine], None], why: str
):
    doubtful(machine)
    machine.source = machine.new_source()
    assert machine.source.status() == (Anchor(1, name_of(1)), Tracking.LOST)
    machine.start()
    assert machine.source.status() == (Anchor(1, name_of(1)), Tracking.LOST)
    tracking, doubt, found = dirty(machine, 2)
    assert tracking is Tracking.LOST
    assert why in doubt
    assert found == set(range(clusters(B.size)))
    machine.stop()
    machine.source = machine.new_source()
    assert machine.source.status() == (Anchor(2, name_of(2)), Tracking.OK)
    machine.write(B.id, 5 * CLUSTER, b"y")
    assert dirty(machine, 3) == (Tracking.OK, "", {5})


@pytest.mark.parametrize("writes_on", [False, True])
def test_a_disk_that_another_program_writes_to_while_the_vm_runs_is_lost(machine: TrackedMachine, writes_on: bool):
    machine.edit_behind_its_back(B.id)
    if writes_on:
        machine.write(B.id, 3 * CLUSTER, b"z")
    tracking, doubt, found = dirty(machine, 2)
    assert tracking is Tracking.LOST
    assert "another program" in doubt
    assert found == set(range(clusters(B.size)))
    machine.write(B.id, 5 * CLUSTER, b"y")
    assert dirty(machine, 3) == (Tracking.OK, "", {5})


def test_an_old_state_put_back_is_lost(machine: TrackedMachine, tmp_path: Path):
    machine.stop()
    backup = tmp_path / "backup"
    shutil.copytree(machine.folder, backup)
    machine.start()
    machine.write(A.id, 0, b"later")
    assert dirty(machine, 2)[0] is Tracking.OK
    machine.stop()
    for part in ("tracking", ""):  # the state alone, then everything
        machine.restore_from(backup, part)
        machine.source = machine.new_source()
        assert machine.source.status() == (Anchor(1, name_of(1)), Tracking.LOST)
    assert dirty(machine, 2)[1] != ""


def test_tracking_that_is_gone_begins_again_and_says_so(machine: TrackedMachine):
    machine.stop()
    shutil.rmtree(machine.folder / "tracking")
    assert machine.source.status() == (None, Tracking.LOST)
    machine.start()
    machine.source.start()
    tracking, doubt, found = dirty(machine, 2)
    assert (tracking, found) == (Tracking.OK, set(range(clusters(B.size))))  # there is no anchor to know anything from
    assert "not tracked" in doubt
    assert dirty(machine, 3) == (Tracking.OK, "", set())


@pytest.mark.parametrize("what", ["removed", "replaced", "a file of it", "no folder"])
def test_tracking_that_is_taken_away_under_a_running_guest_is_noticed(
    machine: TrackedMachine, tmp_path: Path, what: str
):
    folder = machine.folder / "tracking"
    if what == "replaced":  # by an older copy
        shutil.copytree(folder, tmp_path / "copy")
        machine.write(B.id, 0, b"later")
    if what == "a file of it":
        next(folder.glob("*.map")).unlink()
    else:
        shutil.rmtree(folder)
    if what == "replaced":
        shutil.copytree(tmp_path / "copy", folder)
    if what == "no folder":
        folder.write_bytes(b"")
    machine.write(B.id, 7 * CLUSTER, b"nobody can see that this is remembered")
    machine.source.start()
    tracking, doubt, found = dirty(machine, 2)
    assert tracking is Tracking.LOST
    assert "removed or replaced while the VM ran" in doubt
    assert found == set(range(clusters(B.size)))
    machine.write(B.id, 5 * CLUSTER, b"y")
    assert dirty(machine, 3) == (Tracking.OK, "", {5})


def test_tracking_that_is_taken_away_under_an_open_point_never_gives_torn_content(machine: TrackedMachine):
    point = machine.source.open_point(2, name_of(2), consistency="crash")
    shutil.rmtree(machine.folder / "tracking")
    before = machine.content(A.id)
    machine.write(A.id, 0, b"new" * 30_000)
    machine.source.ack(1, name_of(1))  # its owner notices
    machine.write(A.id, 0, b"newer" * 30_000)
    with pytest.raises(SourceUnavailable, match="could not be saved"):
        assert point.read(A.id, whole_of(A)) == before
    point.close()


def whole_of(disk: DiskGeometry) -> Run:
    return Run(0, clusters(disk.size))


# What is no reason to doubt.


def test_a_killed_guest_and_a_killed_agent_are_no_reason_to_doubt(machine: TrackedMachine):
    for cycle in range(2, 5):
        machine.write(B.id, cycle * CLUSTER, b"x")
        machine.kill()
        machine.abandon_points()
        machine.source = machine.new_source()
        machine.start()
        assert dirty(machine, cycle) == (Tracking.OK, "", {cycle})


def test_a_kill_in_the_middle_of_a_write_keeps_tracking(machine: TrackedMachine):
    # The bit is set and the write has reached the file, but the guest did not live to note that.
    machine.killed_in_a_write(B.id)
    machine.start()
    assert dirty(machine, 2) == (Tracking.OK, "", {0})


@pytest.mark.parametrize("jump", [HOUR, -HOUR, -0.01])
def test_a_clock_that_is_set_is_no_reason_to_doubt(machine: TrackedMachine, jump: float):
    machine.set_clock(jump)
    for cycle in range(2, 6):
        machine.write(B.id, cycle * CLUSTER, b"x")
        if cycle % 2:
            machine.kill()
        else:
            machine.stop()
        machine.set_clock(-jump)
        machine.source = machine.new_source()
        machine.start()
        assert dirty(machine, cycle) == (Tracking.OK, "", {cycle})


def test_a_disk_that_was_only_read_is_no_reason_to_doubt(machine: TrackedMachine):
    machine.stop()
    machine.path(A.id).read_bytes()
    machine.start()
    assert dirty(machine, 2) == (Tracking.OK, "", set())
