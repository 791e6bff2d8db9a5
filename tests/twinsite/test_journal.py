import json
import resource
from pathlib import Path

import pytest

from tests.fakes import strace
from twinsite.clock import MovedClock
from twinsite.journal import (
    KEPT_SECONDS,
    MAX_PAYLOAD_BYTES,
    Command,
    CommandTooLarge,
    Done,
    Journal,
    JournalDamaged,
    JournalInUse,
    JournalUnwritable,
    New,
    Running,
    UnknownCommand,
)

# Every acknowledged call is printed, so that the test knows what may not be lost.
WORKLOAD = """
import json, os, sys
from pathlib import Path
from twinsite.clock import MovedClock
from twinsite.journal import Journal

def acked(*what):
    os.write(1, (json.dumps(what) + "\\n").encode())

journal = Journal.open(Path(sys.argv[1]), MovedClock())
for number in range(6):
    id_ = f"{sys.argv[2]}.{number}@1"
    journal.received(id_, b"order" * number)
    acked("received", id_)
    if number % 3 != 2:
        journal.finished(id_, b"result" * number)
        acked("finished", id_)
    if number % 3 == 0:
        journal.stored(id_)
        acked("stored", id_)
journal.close()
"""


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "commands.journal"


def test_a_command_is_new_once_then_running_then_done(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    assert journal.received("j-1.1@1", b"order") == New()
    assert journal.received("j-1.1@1", b"order") == Running()
    journal.finished("j-1.1@1", b"result")
    assert journal.received("j-1.1@1", b"order") == Done(b"result")
    journal.close()


def test_everything_acknowledged_is_there_after_a_restart(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    journal.received("a", b"A")
    journal.received("b", b"B")
    journal.received("c", b"C")
    journal.finished("b", b"b done")
    journal.finished("c", b"c done")
    journal.stored("c")
    journal.close()

    again = Journal.open(path, clock)
    assert again.unfinished() == [Command("a", b"A")]
    assert again.unstored() == [Command("b", b"b done")]
    assert again.received("c", b"C") == Done(b"c done")
    again.close()


def test_the_first_result_stays(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    journal.received("a", b"")
    journal.finished("a", b"first")
    journal.finished("a", b"second")
    assert journal.received("a", b"") == Done(b"first")
    with pytest.raises(UnknownCommand):
        journal.finished("never received", b"")
    journal.close()


def test_a_stored_result_is_forgotten_after_a_day_and_an_unstored_one_never(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    for id_ in ("stored", "kept"):
        journal.received(id_, b"")
        journal.finished(id_, b"result")
    journal.stored("stored")
    journal.close()

    clock.advance(KEPT_SECONDS - 1)
    journal = Journal.open(path, clock)
    assert journal.received("stored", b"") == Done(b"result")
    journal.close()

    clock.advance(2)
    journal = Journal.open(path, clock)
    assert journal.received("stored", b"") == New()
    assert journal.received("kept", b"") == Done(b"result")
    journal.close()


def test_a_file_cut_at_any_byte_opens_with_all_whole_records(path: Path, clock: MovedClock, tmp_path: Path):
    journal = Journal.open(path, clock)
    ends = [0]
    for number in range(3):
        journal.received(f"j.{number}@1", bytes(number))
        ends.append(path.stat().st_size)
    journal.close()
    data = path.read_bytes()
    cut = tmp_path / "cut.journal"
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        opened = Journal.open(cut, clock)
        assert len(opened.unfinished()) == sum(end <= length for end in ends[1:])
        assert opened.received("afterwards", b"") == New()
        opened.close()


def test_damage_in_front_of_good_records_stops_the_start(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    for number in range(3):
        journal.received(f"j.{number}@1", b"order")
    journal.close()
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalDamaged):
        Journal.open(path, clock)
    assert path.read_bytes() == data


def test_two_processes_cannot_share_a_journal(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    with pytest.raises(JournalInUse):
        Journal.open(path, clock)
    journal.close()
    Journal.open(path, clock).close()


def test_the_file_stays_small_over_many_commands(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    for number in range(300):
        journal.received(f"j.{number}@1", bytes(4096))
        journal.finished(f"j.{number}@1", b"result")
    assert path.stat().st_size < 600_000
    assert len(journal.unstored()) == 300
    journal.close()


def test_a_command_beyond_the_limits_is_refused_and_changes_nothing(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    for id_, payload in (("", b""), ("j" * 201, b""), ("j", bytes(MAX_PAYLOAD_BYTES + 1))):
        with pytest.raises(CommandTooLarge):
            journal.received(id_, payload)
    assert path.stat().st_size == 0
    journal.close()


def test_a_full_disk_refuses_the_command_and_later_it_works(path: Path, clock: MovedClock):
    journal = Journal.open(path, clock)
    journal.received("before", b"order")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))  # every longer write fails
    try:
        for _ in range(2):
            with pytest.raises(JournalUnwritable) as refused:
                journal.received("during", b"order")
            assert "free space" in refused.value.text("next_step")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.received("during", b"order") == New()
    journal.close()
    again = Journal.open(path, clock)
    assert [command.id for command in again.unfinished()] == ["before", "during"]
    again.close()


@pytest.mark.parametrize("call", ["openat", "write", "fsync", "rename"])
def test_no_acknowledged_record_is_lost_whatever_call_is_killed(
    call: str, path: Path, clock: MovedClock, tmp_path: Path
):
    script = tmp_path / "workload.py"
    script.write_text(WORKLOAD)
    acked: dict[str, str] = {}
    paths = [path, path.with_name(path.name + ".new"), path.parent]
    points = 0
    # The runs share one journal, so most kills also hit a recovery of what an earlier kill left.
    for output in strace.kill_points(script, [str(path), call], call=call, paths=paths):
        points += 1
        for line in output.splitlines():
            state, id_ = json.loads(line)
            acked[id_] = state
        journal = Journal.open(path, clock)
        open_ids = {command.id for command in journal.unfinished()}
        unstored = {command.id for command in journal.unstored()}
        for id_, state in acked.items():
            known = journal.received(id_, b"")
            if state == "received":
                assert known == Running() or isinstance(known, Done)
            else:
                assert isinstance(known, Done)
                assert id_ not in open_ids
            if state == "stored":
                assert id_ not in unstored
        journal.close()
    assert points > 1
    assert len(acked) == 6


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "openat"])
def test_a_failing_call_is_reported_and_what_was_acknowledged_stays(
    call: str, error: str, path: Path, clock: MovedClock, tmp_path: Path
):
    script = tmp_path / "workload.py"
    script.write_text(WORKLOAD)
    paths = [path, path.with_name(path.name + ".new")]
    for number in range(1, 100):
        done = strace.run(script, [str(path), "w"], inject=f"{call}:error={error}:when={number}", paths=paths)
        journal = Journal.open(path, clock)
        for line in done.stdout.splitlines():
            _, id_ = json.loads(line)
            assert journal.received(id_, b"") != New()
        journal.close()
        if done.returncode == 0:
            assert number > 1
            return
        assert "JournalUnwritable" in done.stderr
    raise AssertionError("the workload never ends")
