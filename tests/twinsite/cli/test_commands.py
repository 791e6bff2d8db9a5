"""What a person and a script get from `twinsite`: data on stdout, words on stderr, exit codes that are API."""

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import pty
import signal
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.inventory.model import Unknown
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli.main import _NOUNS, main
from twinsite.cli.main import twinsite as tree
from twinsite.errors import Conflict, NotFound, Precondition, Unreachable


def finished(state: str, **fields) -> list[admin_pb2.Job]:
    started = Timestamp(seconds=100)
    tasks = [admin_pb2.Task(id="j-1.0", name="Prepare", state="succeeded", percent=100)]
    job = {"id": "j-00000001", "kind": "protect", "target": "vm/web01", "tasks": tasks, "created": started, **fields}
    running = admin_pb2.Job(state="in_progress", **job)
    return [running, admin_pb2.Job(state=state, ended=Timestamp(seconds=103), **job)]


def machine(**protection) -> admin_pb2.MachineView:
    view = admin_pb2.MachineView(id="0f6e", name="web01", host="host-a1", cloud="gold-a", server="vmm-a")
    if protection:
        view.protection.CopyFrom(admin_pb2.Protection(**protection))
    return view


# ---- form --------------------------------------------------------------------------------------------------------


def test_a_list_is_a_table_for_people_and_an_object_with_items_for_scripts(twinsite, fake):
    protected = machine(health="normal", state="replicating", rpo_known=True, rpo_age_seconds=4.2, frequency_seconds=5)
    fake.answers["Machines.List"] = admin_pb2.ListMachinesResponse(machines=[protected, machine()])

    shown = twinsite("vm", "list").out.splitlines()
    assert shown[0].split()[:3] == ["NAME", "HEALTH", "STATE"]
    assert "Normal" in shown[1]
    assert "4s/5s" in shown[1]
    assert "not protected" in shown[2]

    plain = json.loads(twinsite("vm", "list", "-o", "json").out)
    assert (plain["apiVersion"], plain["kind"]) == ("twinsite/v1", "VmList")
    assert plain["items"][0]["protection"]["rpo_age_seconds"] == 4.2
    assert plain["items"][0]["protection"]["newest_instant"] is None
    assert "protection" not in plain["items"][1]
    assert twinsite("-o", "name", "vm", "list").out.split() == ["web01", "web01"]


def test_an_empty_list_says_so_on_stderr_and_succeeds(twinsite, fake):
    fake.answers["Pairs.List"] = admin_pb2.ListPairsResponse()
    ended = twinsite("pair", "list")
    assert (ended.status, ended.out) == (0, "")
    assert "no name found" in ended.err
    assert json.loads(twinsite("pair", "list", "-o", "json").out)["items"] == []


def test_numbers_enums_and_times_are_plain_json(twinsite, fake):
    power = types_pb2.POWER_STATE_RUNNING
    view = machine()
    view.machine.CopyFrom(types_pb2.Machine(id="0f6e", memory_bytes=2**40, power=power))
    view.last_seen.CopyFrom(Timestamp(seconds=1_800_000_000, nanos=250_000_000))
    fake.answers["Machines.Show"] = view
    plain = json.loads(twinsite("vm", "show", "web01", "-o", "json").out)
    assert plain["machine"]["memory_bytes"] == 2**40
    assert plain["machine"]["power"] == "running"
    assert plain["last_seen"] == "2027-01-15T08:00:00.250Z"


# ---- waiting -----------------------------------------------------------------------------------------------------


def test_a_mutation_waits_for_its_job_and_ends_with_how_the_job_ended(twinsite, fake):
    fake.answers["Machines.Protect"] = admin_pb2.ActionResponse(job_id="j-00000001", consequences=["2 disks"])
    for state, status in (("succeeded", 0), ("completed_with_errors", 3), ("failed", 1), ("cancelled", 1)):
        fake.answers["Jobs.Watch"] = finished(state)
        ended = twinsite("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
        assert ended.status == status, ended.err
        assert state.replace("_", " ") in ended.err


def test_no_wait_prints_the_job_and_leaves(twinsite, fake):
    fake.answers["Machines.Protect"] = admin_pb2.ActionResponse(job_id="j-00000001")
    ended = twinsite("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y", "--no-wait")
    assert (ended.status, ended.out) == (0, "j-00000001\n")
    assert not fake.requests("Jobs.Watch")


def test_waiting_as_json_gives_lines_that_end_with_a_summary(twinsite, fake):
    fake.answers["Jobs.Watch"] = finished("succeeded")
    lines = [json.loads(line) for line in twinsite("job", "watch", "j-00000001", "-o", "json").out.splitlines()]
    assert [line["message_type"] for line in lines] == ["status", "summary"]
    assert lines[-1]["job"]["state"] == "succeeded"


def test_a_wait_that_takes_too_long_ends_with_8_and_the_job_goes_on(twinsite, fake):
    import asyncio

    async def never():
        await asyncio.Event().wait()

    fake.answers["Jobs.Watch"] = [never]
    ended = twinsite("job", "watch", "j-00000001", "--wait-timeout", "1")
    assert ended.status == 8
    assert "twinsite job watch j-00000001" in ended.err
    assert not fake.requests("Jobs.Cancel")


def test_ctrl_c_while_waiting_detaches_and_never_cancels(twinsite, fake, home):
    import asyncio

    async def never():
        await asyncio.Event().wait()

    fake.answers["Jobs.Watch"] = [never]
    command = [sys.executable, "-m", "twinsite.cli", "--home", str(home), "job", "watch", "j-00000001"]
    # A shell that starts the tests in the background has them ignore Ctrl-C, and what they start inherits that.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as child:  # noqa: PLW1509  # before exec
        try:
            deadline = time.monotonic() + 20
            while not fake.requests("Jobs.Watch"):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert child.returncode == 130
    assert "Job j-00000001 continues" in err
    assert "Traceback" not in err
    assert not fake.requests("Jobs.Cancel")


# ---- confirmation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "method", "flag"),
    [
        (("vm", "protect", "web01", "--pair", "a:b"), "Machines.Protect", "-y"),
        (("vm", "pause", "web01"), "Machines.Pause", "-y"),
        (("job", "cancel", "j-00000001"), "Jobs.Cancel", "-y"),
        (("key", "revoke", "k1"), "Keys.Revoke", "-y"),
        (("vm", "unprotect", "web01"), "Machines.Unprotect", "--confirm web01"),
        (("vm", "unprotect", "web01", "--confirm", "web02"), "Machines.Unprotect", "--confirm web01"),
        (("server", "remove", "vmm-a"), "Servers.Remove", "--confirm vmm-a"),
        (("pair", "remove", "a:b"), "Pairs.Remove", "--confirm a:b"),
        (("vm", "failover", "web01"), "Machines.Failover", "--confirm web01"),
        (("vm", "failover", "web01", "--confirm", "web01"), "Machines.Failover", "--reason"),
        (("vm", "unprotect", "web01", "--delete-replica", "--confirm", "web01"), "Machines.Unprotect", "--reason"),
    ],
)
def test_without_a_terminal_nothing_is_asked_and_the_missing_flag_is_named(twinsite, fake, command, method, flag):
    fake.answers["Machines.Protect"] = fake.answers["Machines.Unprotect"] = admin_pb2.ActionResponse()
    fake.answers["Machines.Pause"] = admin_pb2.ActionResponse(consequences=["replication of web01 stops"])
    fake.answers["Jobs.Cancel"], fake.answers["Keys.Revoke"] = admin_pb2.Job(), admin_pb2.Key()
    fake.answers["Machines.Failover"] = admin_pb2.ActionResponse()
    fake.answers["Servers.Remove"] = fake.answers["Pairs.Remove"] = admin_pb2.RemoveResponse()
    ended = twinsite(*command)
    assert ended.status == 7, ended.err
    assert flag in ended.err
    assert all(request.dry_run for request in fake.requests(method)), "something was changed unconfirmed"


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_changes_nothing_does_not_say_that_it_did(twinsite, fake, verb):
    warned = admin_pb2.ActionResponse(warnings=["nothing was changed: web01 is in this state already"])
    fake.answers["Machines.Pause"] = fake.answers["Machines.Resume"] = warned
    ended = twinsite("vm", verb, "web01")
    assert ended.status == 0, ended.err
    assert "nothing was changed" in ended.err
    assert "Next:" not in ended.err


def test_failover_wants_a_login_of_minutes_ago(twinsite, fake, home):
    fake.answers["Machines.Failover"] = admin_pb2.ActionResponse()
    context = json.loads((home / "context.json").read_text())
    context["logged_in"] -= 301
    (home / "context.json").write_text(json.dumps(context))
    ended = twinsite("vm", "failover", "web01", "--confirm", "web01", "--reason", "drill")
    assert ended.status == 7
    assert "twinsite login" in ended.err
    assert all(request.dry_run for request in fake.requests("Machines.Failover"))


def test_a_confirmed_failover_shows_the_loss_first_and_carries_the_reason(twinsite, fake):
    fake.answers["Machines.Failover"] = lambda request: admin_pb2.ActionResponse(
        job_id="" if request.dry_run else "j-00000001", consequences=["up to 41 s of writes are lost"]
    )
    fake.answers["Jobs.Watch"] = finished("succeeded")
    ended = twinsite("vm", "failover", "web01", "--confirm", "web01", "--reason", "ticket 4711")
    assert ended.status == 0, ended.err
    assert ended.err.index("41 s of writes") < ended.err.index("succeeded")
    assert fake.requests("Machines.Failover")[-1].reason == "ticket 4711"


def test_dry_run_changes_nothing(twinsite, fake):
    fake.answers["Machines.Failover"] = admin_pb2.ActionResponse(consequences=["term 1 → 2"])
    assert twinsite("vm", "failover", "web01", "--dry-run").status == 0
    assert [request.dry_run for request in fake.requests("Machines.Failover")] == [True]


# ---- errors ------------------------------------------------------------------------------------------------------


class TestCleanupPending(Precondition):
    __test__ = False
    public = "a test of {error.vm} is still up"
    cause = "run r-204"
    still_works = "replication is not affected"
    next_step = "twinsite vm test-cleanup {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


@pytest.mark.parametrize(
    ("error", "status"),
    [(TestCleanupPending("web01"), 6), (NotFound(), 5), (Conflict(), 6), (Unreachable(), 9)],
)
def test_each_category_of_error_has_its_exit_code(twinsite, fake, error, status):
    fake.answers["Machines.Show"] = error
    assert twinsite("vm", "show", "web01").status == status


def test_an_error_says_what_happened_why_what_still_works_and_what_to_do(twinsite, fake):
    fake.answers["Machines.Test"] = TestCleanupPending("web01")
    ended = twinsite("vm", "test", "web01")
    assert "a test of web01 is still up  (TEST_CLEANUP_PENDING)" in ended.err
    for text in (
        "Cause:   run r-204",
        "State:   replication is not affected",
        "Next:    twinsite vm test-cleanup web01",
    ):
        assert text in ended.err

    as_json = json.loads(twinsite("vm", "test", "web01", "-o", "json").err)
    assert as_json["code"] == 6
    assert as_json["error"]["reason"] == "TEST_CLEANUP_PENDING"
    assert as_json["error"]["next"] == ["twinsite vm test-cleanup web01"]


def test_without_a_login_the_way_to_one_is_named(tmp_path, capsys):
    assert main(["--home", str(tmp_path), "status"]) == 4
    assert "twinsite login" in capsys.readouterr().err


def test_a_coordinator_that_is_gone_is_exit_9(twinsite, home):
    context = json.loads((home / "context.json").read_text())
    context["admin_address"] = "127.0.0.1:1"
    (home / "context.json").write_text(json.dumps(context))
    ended = twinsite("status", "--timeout", "5s")
    assert ended.status == 9
    assert "Next:" in ended.err


@pytest.mark.parametrize(
    "arguments", [("vm", "explode"), ("nonsense",), ("pair", "create", "a"), ("job", "list", "--limit", "0")]
)
def test_a_wrong_command_line_is_exit_2(arguments, capsys):
    assert main(list(arguments)) == 2
    assert capsys.readouterr().err


# ---- login and keys ----------------------------------------------------------------------------------------------


def test_a_login_is_for_its_owner_only_and_bound_to_a_key_made_here(twinsite, fake, home):
    for file in (home / "token", home / "identity" / "identity.pem", home / "context.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    fake.answers["Sessions.WhoAmI"] = admin_pb2.WhoAmIResponse(user="admin", role="owner")
    assert twinsite("whoami").status == 0
    _, _, metadata = fake.calls[-1]
    assert metadata["authorization"] == "Bearer tst1.token"


def test_logging_out_forgets_key_and_token(twinsite, fake, home):
    fake.answers["Sessions.Logout"] = admin_pb2.Empty()
    assert twinsite("logout").status == 0
    assert not (home / "token").exists()
    assert not (home / "identity" / "identity.pem").exists()
    assert twinsite("status").status == 4


def test_a_key_file_is_written_once_and_readable_by_its_owner_only(twinsite, fake, tmp_path):
    key = admin_pb2.Key(id="3f2a91c0d4e5b6a7", uses=2)
    fake.answers["Keys.Create"] = admin_pb2.CreateKeyResponse(key=key, file_json=b'{"v":1}')
    path = tmp_path / "registration.json"
    ended = twinsite("key", "create", "-O", str(path))
    assert ended.status == 0, ended.err
    assert path.read_bytes() == b'{"v":1}'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in ended.out + ended.err

    assert twinsite("key", "create", "-O", str(path)).status == 2, "an existing file was overwritten"
    assert path.read_bytes() == b'{"v":1}'


def test_a_key_that_could_not_be_made_leaves_no_file(twinsite, fake, tmp_path):
    fake.answers["Keys.Create"] = Precondition()
    path = tmp_path / "registration.json"
    assert twinsite("key", "create", "-O", str(path)).status == 6
    assert not path.exists()


# ---- help --------------------------------------------------------------------------------------------------------


def commands():
    context = tree.make_context("twinsite", [], resilient_parsing=True)
    for noun in sorted(_NOUNS):
        command = tree.get_command(context, noun)
        if hasattr(command, "commands"):
            yield from (((noun, verb), found) for verb, found in sorted(command.commands.items()))
        else:
            yield (noun,), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in commands()])
def test_every_command_has_help_with_an_example_that_parses(path, command):
    examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith("twinsite ")]
    assert examples, f"{path}: no example"
    for example in examples:
        words = example.split("      (")[0].replace('"', "").split()
        assert tuple(words[1 : 1 + len(path)]) == path


def test_help_appears_before_a_person_notices():
    # Three tries: what is measured is the program, not what else this machine does.
    def once() -> float:
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", "import twinsite.cli.main, sys; print('grpc' in sys.modules)"], check=True
        )
        return time.monotonic() - began

    assert min(once() for _ in range(3)) < 1.0
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import twinsite.cli.main, sys; print([m for m in ('grpc','rich') if m in sys.modules])",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "[]"


def test_every_exit_code_is_documented(capsys):
    assert main(["help", "exit-codes"]) == 0
    text = capsys.readouterr().out
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130):
        assert f"{code} " in text


def test_the_package_runs_as_a_module():
    assert (Path(__file__).parents[3] / "twinsite/cli/__main__.py").is_file()


# ---- dry runs, watching, completion ------------------------------------------------------------------------------


def test_a_cancel_and_a_revocation_can_be_tried_without_being_done(twinsite, fake):
    fake.answers["Jobs.Cancel"] = admin_pb2.Job(id="j-1", kind="vm.verify", target="vm/web01", created_by="user/ana")
    fake.answers["Keys.Revoke"] = admin_pb2.Key(id="k1", state="active", uses=2, used=1, servers=["vmm-a"])
    cancelled = twinsite("job", "cancel", "j-1", "--dry-run")
    assert (cancelled.status, "vm.verify of vm/web01" in cancelled.err) == (0, True)
    revoked = twinsite("key", "revoke", "k1", "--dry-run")
    assert (revoked.status, "vmm-a stays registered" in revoked.err) == (0, True)
    requests = [*fake.requests("Jobs.Cancel"), *fake.requests("Keys.Revoke")]
    assert [request.dry_run for request in requests] == [True, True]


def test_a_watch_looks_again_over_an_outage_until_it_is_ended(twinsite, fake):
    looks: list[object] = [admin_pb2.ListMachinesResponse(machines=[machine()]), Unreachable(), NotFound()]

    def next_look(_):
        look = looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    fake.answers["Machines.List"] = next_look
    ended = twinsite("vm", "list", "--watch", "--every", "1s", "-o", "json")
    assert (ended.status, looks) == (5, [])
    assert json.loads(ended.out)["items"][0]["name"] == "web01"  # one line for each look


def test_the_shell_completes_names_and_is_silent_without_a_coordinator(twinsite, fake, home):
    fake.answers["Machines.List"] = admin_pb2.ListMachinesResponse(machines=[machine()])
    assert "_TWINSITE_COMPLETE" in twinsite("completion", "bash").out

    def completed(folder: Path) -> str:
        command = [sys.executable, "-m", "twinsite.cli"]
        words = {"_TWINSITE_COMPLETE": "bash_complete", "COMP_WORDS": "twinsite vm show we", "COMP_CWORD": "3"}
        variables = {"PATH": "/usr/bin:/bin", "TWINSITE_HOME": str(folder), **words}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables).stdout.strip()

    deadline = time.monotonic() + 60  # it is silent too when a loaded machine does not answer in time
    while (found := completed(home)) != "plain,web01":
        assert found == ""
        assert time.monotonic() < deadline
    assert completed(home / "nowhere") == ""


def test_a_narrow_terminal_shows_what_is_done_how_fast_and_for_how_long(twinsite, fake, home):
    del twinsite  # who logged in
    numbers = {"bytes_done": 100 << 20, "bytes_total": 417 << 20, "bytes_per_second": 8e6, "eta_seconds": 41}
    copying = admin_pb2.Task(id="j.4", name="Initial replication", state="in_progress", percent=24, **numbers)
    watched = admin_pb2.Job(id="j-6132b463", kind="vm.protect", target="vm/web01", state="in_progress", tasks=[copying])
    ended = admin_pb2.Job(id="j-6132b463", kind="vm.protect", target="vm/web01", state="succeeded")
    looked = threading.Event()  # at the progress

    async def later() -> admin_pb2.Job:
        await asyncio.to_thread(looked.wait, 60)
        return ended

    fake.answers["Jobs.Watch"] = [watched, later]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    variables = {"PATH": "/usr/bin:/bin", "TWINSITE_HOME": str(home), "TERM": "xterm"}
    command = [sys.executable, "-m", "twinsite.cli", "job", "watch", "j-6132b463"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables) as watching:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal ends
            while data := os.read(ours, 4096):
                shown += data
                if b"eta 41s" in shown:
                    looked.set()
        looked.set()
        assert watching.wait(60) == 0
    os.close(ours)
    assert "100 MiB of 417 MiB  7.6 MiB/s  eta 41s" in shown.decode()


def test_a_name_that_looks_like_an_instant_is_told_as_it_is(twinsite, fake):
    fake.answers["Machines.Show"] = Unknown("vm", "2026-99-99T00:00:00Z")
    ended = twinsite("vm", "show", "2026-99-99T00:00:00Z")
    assert (ended.status, "vm 2026-99-99T00:00:00Z" in ended.err) == (5, True)
