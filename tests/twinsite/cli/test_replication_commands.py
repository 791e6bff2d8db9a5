"""Policies, seeds, marked points and checked replicas on the command line."""

import json
from datetime import datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from twinsite import schedules
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli.moment import moment
from twinsite.errors import Precondition

PAIR = admin_pb2.Pair(
    name="gold-a:gold-b",
    policy=types_pb2.Policy(
        frequency_seconds=300,
        additional_points=6,
        compression=True,
        tiers=schedules.parse_keep("all:1h"),
        vm_rates=[schedules.parse_rate("10 MB/s mon-fri 08:00-18:00")],
        application_hours=4,
    ),
)


def job(state: str = "succeeded", **fields) -> admin_pb2.Job:
    values = {"id": "j-00000001", "kind": "vm.verify", "target": "vm/web01", "created": Timestamp(seconds=100)}
    return admin_pb2.Job(state=state, ended=Timestamp(seconds=103), **values, **fields)


def answer(request) -> admin_pb2.ActionResponse:
    return admin_pb2.ActionResponse(
        job_id="" if request.dry_run else "j-00000001", consequences=["this would happen"], warnings=["mind that"]
    )


# ---- pairs -------------------------------------------------------------------------------------------------------


def test_a_pair_is_made_with_retention_rates_and_consistency(twinsite, fake):
    fake.answers["Pairs.Create"] = admin_pb2.JobRef(job_id="j-00000001", warnings=["a tier keeps nothing"])
    fake.answers["Jobs.Watch"] = [job()]
    options = ["--keep", "all:1h,5m:24h", "--points", "6", "--app-consistent", "4h", "--frequency", "15m"]
    rates = ["--rate", "10MB/s mon-fri 08:00-18:00", "--rate", "50MB/s", "--link-rate", "1Gbit/s"]
    ended = twinsite("pair", "create", "gold-a", "gold-b", *options, *rates)
    assert ended.status == 0, ended.err
    assert "! a tier keeps nothing" in ended.err
    (request,) = fake.requests("Pairs.Create")
    assert (request.policy.frequency_seconds, request.policy.application_hours) == (900, 4)
    assert schedules.keep_text(request.policy.tiers) == "all:1h,5m:1d"
    assert schedules.rates_text(request.policy.vm_rates) == "10 MB/s mon-fri 08:00-18:00; 50 MB/s"
    assert schedules.rates_text(request.policy.link_rates) == "125 MB/s"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "all"], "all:1h,5m:24h"),
        (["--rate", "10"], "10MB/s mon-fri"),
        (["--link-rate", "10MB/s noon"], "noon"),
        (["--app-consistent", "90m"], "whole hours"),
    ],
)
def test_a_policy_that_cannot_be_read_is_exit_2_with_an_example(twinsite, fake, options, said):
    ended = twinsite("pair", "create", "gold-a", "gold-b", *options)
    assert ended.status == 2
    assert said in ended.err
    assert not fake.requests("Pairs.Create")


def test_setting_a_pair_changes_what_is_named_and_nothing_else(twinsite, fake):
    fake.answers["Pairs.Show"] = PAIR
    fake.answers["Pairs.Update"] = lambda _: admin_pb2.ActionResponse(consequences=["frequency: 5m → 5s"])
    assert twinsite("pair", "set", "gold-a:gold-b", "--frequency", "5s", "-y", "--reason", "t1").status == 0
    foretold, done = fake.requests("Pairs.Update")
    assert (foretold.dry_run, done.dry_run, done.reason) == (True, False, "t1")
    expected = types_pb2.Policy()
    expected.CopyFrom(PAIR.policy)
    expected.frequency_seconds = 5
    assert done.policy == expected

    fake.calls.clear()
    arguments = ["--keep", "none", "--no-rates", "--link-rate", "1MB/s", "--app-consistent", "0", "--points", "0"]
    assert twinsite("pair", "set", "gold-a:gold-b", *arguments, "-y").status == 0
    policy = fake.requests("Pairs.Update")[-1].policy
    assert not policy.tiers
    assert not policy.vm_rates
    assert schedules.rates_text(policy.link_rates) == "1 MB/s"
    assert (policy.application_hours, policy.additional_points, policy.frequency_seconds) == (0, 0, 300)


def test_setting_a_pair_asks_and_a_dry_run_does_not(twinsite, fake):
    fake.answers["Pairs.Show"] = PAIR
    fake.answers["Pairs.Update"] = lambda _: admin_pb2.ActionResponse(consequences=["up to 3 points of web01 go"])
    asked = twinsite("pair", "set", "gold-a:gold-b", "--keep", "none")
    assert asked.status == 7
    assert "-y" in asked.err
    dry = twinsite("pair", "set", "gold-a:gold-b", "--keep", "none", "--dry-run")
    assert dry.status == 0
    assert "3 points of web01" in dry.err
    assert all(request.dry_run for request in fake.requests("Pairs.Update"))
    assert twinsite("pair", "set", "gold-a:gold-b").status == 2


def test_a_pair_shows_its_whole_policy(twinsite, fake):
    fake.answers["Pairs.Show"] = PAIR
    shown = twinsite("pair", "show", "gold-a:gold-b").out
    for text in ("5m", "all:1h", "10 MB/s mon-fri 08:00-18:00", "every 4h", "no cap"):
        assert text in shown
    plain = json.loads(twinsite("pair", "show", "gold-a:gold-b", "-o", "json").out)
    assert plain["policy"]["tiers"] == [{"every_seconds": 0, "for_seconds": 3600}]


# ---- protecting --------------------------------------------------------------------------------------------------


def test_protecting_later_offline_or_from_an_image_says_so_to_the_coordinator(twinsite, fake):
    fake.answers["Machines.Protect"] = answer
    protect = ("vm", "protect", "web01", "--pair", "a:b", "--dry-run")
    assert twinsite(*protect, "--at", "2030-01-15T02:00:00+00:00").status == 0
    assert twinsite(*protect, "--offline").status == 0
    assert twinsite(*protect, "--existing", "vda=/images/a=b.qcow2", "--existing", "vdb=/images/c.raw").status == 0
    later, offline, image = fake.requests("Machines.Protect")
    assert later.initial.start_at.seconds == 1894672800
    assert offline.initial.method == types_pb2.InitialReplication.METHOD_OFFLINE
    assert not offline.initial.HasField("start_at")
    assert dict(image.existing) == {"vda": "/images/a=b.qcow2", "vdb": "/images/c.raw"}
    for wrong in (("--existing", "vda"), ("--existing", "vda=/a", "--existing", "vda=/b"), ("--at", "soon")):
        assert twinsite(*protect, *wrong).status == 2


def test_who_waits_for_a_seed_is_told_what_to_do(twinsite, fake):
    waiting = admin_pb2.Task(id="j.3", name="Initial replication", state="in_progress", message="waits for its seed: …")
    fake.answers["Machines.Protect"] = answer
    begun = admin_pb2.Job(id="j-00000001", kind="vm.protect", state="in_progress", tasks=[waiting])
    fake.answers["Jobs.Watch"] = [begun, job("failed")]
    ended = twinsite("vm", "protect", "web01", "--pair", "a:b", "--offline", "-y")
    assert ended.status == 0
    assert ended.err.count("waits for its seed") == 1
    assert "goes on by itself" in ended.err
    assert "twinsite seed export web01 --to PATH" in ended.err
    fake.answers["Jobs.Watch"] = [job()]  # a replica that was kept is compared with instead
    whole = twinsite("vm", "protect", "web01", "--pair", "a:b", "--offline", "-y").err
    assert "twinsite vm test web01" in whole
    assert "seed export" not in whole
    fake.answers["Jobs.Watch"] = [begun, job("failed")]
    assert twinsite("job", "watch", "j-00000001").status == 1  # who asks for the job itself waits for its end


def test_a_copy_over_the_network_is_waited_for_whatever_hinders_it_meanwhile(twinsite, fake):
    hindered = admin_pb2.Task(id="j.3", name="Initial replication", state="in_progress", message="waiting: no link")
    begun = admin_pb2.Job(id="j-00000001", kind="vm.protect", state="in_progress", tasks=[hindered])
    fake.answers["Machines.Protect"] = answer
    fake.answers["Jobs.Watch"] = [begun, job("failed")]
    assert twinsite("vm", "protect", "web01", "--pair", "a:b", "--at", "+1h", "-y").status == 1


def test_a_waiting_replication_is_started(twinsite, fake):
    fake.answers["Machines.StartInitial"] = answer
    assert twinsite("vm", "start-initial", "web01", "--dry-run").status == 0
    assert twinsite("vm", "start-initial", "web01", "--reason", "now").status == 0
    assert [request.dry_run for request in fake.requests("Machines.StartInitial")] == [True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+2h", "2027-03-01T14:00:00"),
        ("now", "2027-03-01T12:00:00"),
        ("13:30", "2027-03-01T13:30:00"),
        ("12:00", "2027-03-02T12:00:00"),
        ("2:05", "2027-03-02T02:05:00"),
        ("2027-03-05", "2027-03-05T00:00:00"),
        ("2027-03-05 02:30", "2027-03-05T02:30:00"),
    ],
)
def test_times_are_local_and_a_time_of_day_is_the_next_one(text, expected):
    now = datetime(2027, 3, 1, 12).astimezone().timestamp()
    assert moment(text, now) == datetime.fromisoformat(expected).astimezone().timestamp()
    assert moment("2027-03-05T02:30+02:00", now) == 1804206600


@pytest.mark.parametrize("text", ["", "soon", "25:00", "+soon", "+", "2027-13-01"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"no time|not a duration|month"):
        moment(text, 1_800_000_000.0)


# ---- seeds -------------------------------------------------------------------------------------------------------


def test_a_seed_is_exported_and_imported_and_the_next_step_is_named(twinsite, fake):
    fake.answers["Machines.SeedExport"] = fake.answers["Machines.SeedImport"] = answer
    fake.answers["Jobs.Watch"] = [job(result={"note": "1 part was read; part 1 of the seed is damaged"})]
    exported = twinsite("seed", "export", "web01", "--to", "/media/d1")
    assert exported.status == 0
    assert "twinsite seed import web01 --from PATH" in exported.err
    assert "part 1 of the seed is damaged" in twinsite("seed", "import", "web01", "--from", "/media/d1").err
    assert twinsite("seed", "import", "web01", "--from", "/media/d1", "--dry-run").status == 0
    assert fake.requests("Machines.SeedExport")[0].path == "/media/d1"
    assert fake.requests("Machines.SeedImport")[1].dry_run
    assert twinsite("seed", "export", "web01").status == 2


def test_the_state_of_a_seed_is_shown_with_its_jobs(twinsite, fake):
    view = admin_pb2.MachineView(id="0f6e", name="web01", protection=admin_pb2.Protection(awaiting_seed=True))
    other = admin_pb2.Job(id="j-2", kind="seed.export", state="succeeded", result={"vm": "another"})
    mine = job(result={"vm": "0f6e", "path": "/media/d1", "seed": "seed-1", "note": "2 parts"})
    mine.kind = "seed.export"
    fake.answers["Machines.Show"] = view
    fake.answers["Jobs.List"] = admin_pb2.ListJobsResponse(jobs=[mine, other])
    shown = twinsite("seed", "status", "web01").out
    assert "awaited" in shown
    assert "/media/d1 seed-1" in shown
    assert "2 parts" in shown
    assert "j-2" not in shown
    assert "twinsite seed export web01" in shown


class NotOffline(Precondition):
    public = "VM web01 was not protected with an initial copy on media"


def test_a_seed_that_is_refused_is_exit_6(twinsite, fake):
    fake.answers["Machines.SeedExport"] = NotOffline()
    ended = twinsite("seed", "export", "web01", "--to", "/media/d1")
    assert ended.status == 6
    assert "NOT_OFFLINE" in ended.err


# ---- points ------------------------------------------------------------------------------------------------------


def test_points_show_how_they_are_marked(twinsite, fake):
    point = types_pb2.Point(
        cycle=41,
        consistency="application",
        name="before the update",
        kept=True,
        pinned_by="t-1",
        damaged_clusters=2,
        locked_until=Timestamp(seconds=4_000_000_000),
    )
    fake.answers["RecoveryPoints.List"] = admin_pb2.ListPointsResponse(points=[point, types_pb2.Point(cycle=40)])
    first, second = twinsite("point", "list", "web01").out.splitlines()[1:]
    for text in (
        "41",
        "application",
        "before the update",
        "DAMAGED (2 clusters)",
        "in use by t-1",
        "locked until",
        "kept",
    ):
        assert text in first
    assert "<none>" in second


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pin", "web01", "41"], {"keep": True}),
        (["pin", "web01", "41", "--name", "x"], {"keep": True, "name": "x"}),
        (["unpin", "web01", "41"], {"keep": False}),
        (["name", "web01", "41", "before it"], {"name": "before it"}),
        (["name", "web01", "41", ""], {"name": ""}),
        (["lock", "web01", "41", "--for", "30d", "--confirm", "web01"], {"lock_seconds": 30 * 86400}),
    ],
)
def test_a_point_is_marked_as_asked_and_not_otherwise(twinsite, fake, arguments, expected):
    fake.answers["RecoveryPoints.Mark"] = answer
    fake.answers["Jobs.Watch"] = [job()]
    assert twinsite("point", *arguments, "--reason", "t1").status == 0
    request = fake.requests("RecoveryPoints.Mark")[-1]
    assert (request.vm, request.cycle, request.reason, request.dry_run) == ("web01", 41, "t1", False)
    for field in ("keep", "name", "lock_seconds"):
        assert request.HasField(field) is (field in expected)
        assert not request.HasField(field) or getattr(request, field) == expected[field]


def test_a_lock_wants_the_typed_name_because_it_cannot_be_undone(twinsite, fake):
    fake.answers["RecoveryPoints.Mark"] = answer
    fake.answers["Jobs.Watch"] = [job()]
    refused = twinsite("point", "lock", "web01", "41", "--until", "2099-01-01")
    assert refused.status == 7
    assert "--confirm web01" in refused.err
    assert all(request.dry_run for request in fake.requests("RecoveryPoints.Mark"))
    for wrong in ([], ["--for", "1d", "--until", "+1d"], ["--until", "2001-01-01"]):
        assert twinsite("point", "lock", "web01", "41", *wrong, "--confirm", "web01").status == 2


# ---- verify ------------------------------------------------------------------------------------------------------


def found(damage: list[dict], state: str, **counts: int) -> admin_pb2.Job:
    numbers = {"damaged": len(damage), "repaired": 0, "wanted": 0, **counts}
    result = {f"{name}_clusters": str(number) for name, number in numbers.items()}
    return job(state, result={**result, "checked_bytes": "4194304", "damage": json.dumps(damage)})


DAMAGE = {
    "disk": "0f6e0000-1111",
    "file": "000041.qcow2",
    "cluster": 7,
    "whole_file": False,
    "problem": "fingerprint differs",
    "repaired": False,
    "points": [41, 42],
}


def test_damage_is_a_table_and_exit_3(twinsite, fake):
    fake.answers["Machines.Verify"] = answer
    fake.answers["Jobs.Watch"] = [found([DAMAGE], "completed_with_errors")]
    fake.answers["Jobs.Show"] = found([DAMAGE], "completed_with_errors")
    ended = twinsite("vm", "verify", "web01", "--repair")
    assert ended.status == 3
    assert ended.out.splitlines()[1].split() == [
        "000041.qcow2", "7", "fingerprint", "differs", "damaged", "41,42", "0f6e0000",
    ]  # fmt: skip
    assert "1 cluster is damaged" in ended.err
    assert fake.requests("Machines.Verify")[0].repair
    lines = [json.loads(line) for line in twinsite("vm", "verify", "web01", "-o", "json").out.splitlines()]
    assert json.loads(lines[-1]["job"]["result"]["damage"]) == [DAMAGE]


def test_a_good_point_is_exit_0_with_what_was_read(twinsite, fake):
    fake.answers["Machines.Verify"] = answer
    fake.answers["Jobs.Watch"] = [found([], "succeeded")]
    fake.answers["Jobs.Show"] = found([], "succeeded")
    ended = twinsite("point", "verify", "web01", "41")
    assert ended.status == 0
    assert "4.0 MiB checked: 0 clusters are damaged" in ended.err
    assert fake.requests("Machines.Verify")[0].cycle == 41
    assert twinsite("point", "verify", "web01", "41", "--dry-run").status == 0


def test_a_vm_shows_where_the_time_of_its_cycles_goes(twinsite, fake):
    protection = admin_pb2.Protection(
        state="replicating",
        health="normal",
        cycles=9,
        last_cycle_seconds=2.0,
        note="the disk is compared",
        rate_bytes_per_second=10_000_000,
        last_causes=types_pb2.Causes(source=0.4, network=1.5),
        scrub=types_pb2.Scrub(checked_bytes=50, total_bytes=100, repaired_clusters=3),
    )
    fake.answers["Machines.Show"] = admin_pb2.MachineView(id="0f6e", name="web01", protection=protection)
    shown = twinsite("vm", "show", "web01").out
    for text in ("network 1.5 s, source 0.4 s", "the disk is compared", "10 MB/s now", "this round 50 %", "3 repaired"):
        assert text in shown


@pytest.mark.parametrize(("verb", "method"), [("verify", "Machines.Verify"), ("test", "Machines.Test")])
def test_who_waits_for_a_host_is_told_so(twinsite, fake, verb, method):
    fake.answers[method] = answer
    fake.answers["Jobs.Watch"] = [job()]
    fake.answers["Jobs.Show"] = job()
    assert "! mind that" in twinsite("vm", verb, "web01").err
