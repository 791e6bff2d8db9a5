"""`vm stats` and `vm explain`: for people a page, for scripts the numbers as they were measured."""

import csv
import io
import json
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2

MB = 1_000_000
BEGIN = 1_800_000_000
VDA, VDB = "d-1", "d-2"


def rows(count: int, *, resolution: int = 60) -> list[admin_pb2.StatsRow]:
    return [
        admin_pb2.StatsRow(
            start=Timestamp(seconds=BEGIN + resolution * number),
            resolution_seconds=resolution,
            cycles=2,
            missed=1 if number == 0 else 0,
            failures=1 if number == 1 else 0,
            changed_bytes=10 * MB,
            content_bytes=8 * MB,
            wire_bytes=2 * MB,
            rpo_max_seconds=40.0 + number,
            seconds_max=3.5,
            seconds_sum=4.0,
            causes=types_pb2.Causes(network=3.0, source=1.0),
            disks=[
                types_pb2.DiskChange(disk_id=VDB, changed_bytes=9 * MB),
                types_pb2.DiskChange(disk_id=VDA, changed_bytes=MB),
            ],
        )
        for number in range(count)
    ]


def known(fake) -> None:
    disks = [types_pb2.Disk(id=VDA, name="vda"), types_pb2.Disk(id=VDB, name="vdb")]
    fake.answers["Machines.Show"] = admin_pb2.MachineView(
        name="web01",
        machine=types_pb2.Machine(disks=disks),
        protection=admin_pb2.Protection(rpo_known=True, rpo_age_seconds=12, frequency_seconds=30),
    )


def answer(count: int, **fields: object) -> admin_pb2.StatsResponse:
    return admin_pb2.StatsResponse(rows=rows(count, **fields), protected_since=Timestamp(seconds=BEGIN - 3600), vms=1)


def test_a_page_tells_ages_misses_bytes_and_what_brings_them(twinsite, fake):
    known(fake)
    fake.answers["Machines.Stats"] = answer(120)
    shown = twinsite("vm", "stats", "web01").out
    assert fake.requests("Machines.Stats")[0].since_seconds == 86400
    facts = dict(line.split(":", 1) for line in shown.splitlines()[:7])
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts["RPO age"] == "now 12s, target 30s, at most 2m39s"
    assert facts["Cycles"] == "240, 1 missed (0.4 %), 1 attempts failed"
    assert facts["A cycle took"] == "2.0s on average, 3.5s at most"
    assert facts["Changed"] == "1.1 GiB, sent 229 MiB"
    assert facts["Compression"] == "4.0 : 1"
    assert facts["Where it went"] == "network 75 %, source 25 %"
    lines = shown.splitlines()
    hours = next(at for at, line in enumerate(lines) if line.startswith("FROM"))
    assert lines[hours].split()[:4] == ["FROM", "CYCLES", "MISSED", "CHANGED"]
    assert lines[hours + 1].endswith("network 75 %")
    disks = next(at for at, line in enumerate(lines) if line.startswith("DISK"))
    assert lines[disks + 1].split()[:5] == ["vdb", "1.0", "GiB", "90", "%"]
    assert lines[disks + 2].startswith("vda")


def test_more_than_two_days_are_told_by_day(twinsite, fake):
    known(fake)
    fake.answers["Machines.Stats"] = answer(5 * 96, resolution=900)
    shown = twinsite("vm", "stats", "web01", "--since", "5d").out.splitlines()
    begin = next(at for at, line in enumerate(shown) if line.startswith("FROM"))
    days = shown[begin + 1 : shown.index("", begin)]
    assert 5 <= len(days) <= 6
    assert fake.requests("Machines.Stats")[0].since_seconds == 5 * 86400


def test_csv_has_every_number_and_a_column_for_each_disk(twinsite, fake):
    known(fake)
    fake.answers["Machines.Stats"] = answer(3)
    found = list(csv.DictReader(io.StringIO(twinsite("vm", "stats", "web01", "-o", "csv").out)))
    assert len(found) == 3
    assert found[0]["start"] == "2027-01-15T08:00:00.000Z"
    assert (found[0]["cycles"], found[0]["missed"], found[0]["wire_bytes"]) == ("2", "1", "2000000")
    assert (found[0]["network_seconds"], found[0]["turn_seconds"]) == ("3.0", "0.0")
    assert (found[0]["changed_bytes:vda"], found[0]["changed_bytes:vdb"]) == ("1000000", "9000000")


def test_json_has_the_rows_as_they_came(twinsite, fake):
    known(fake)
    fake.answers["Machines.Stats"] = answer(2)
    plain = json.loads(twinsite("vm", "stats", "web01", "-o", "json").out)
    assert plain["kind"] == "StatsList"
    assert plain["items"][1]["causes"]["network"] == 3.0
    assert plain["items"][1]["disks"][0] == {"disk_id": VDB, "changed_bytes": 9 * MB}


def test_a_pair_is_asked_for_as_one(twinsite, fake):
    fake.answers["Machines.Stats"] = admin_pb2.StatsResponse(rows=rows(2), vms=7)
    shown = twinsite("vm", "stats", "gold-a:gold-b", "--pair").out
    assert fake.requests("Machines.Stats")[0].pair
    assert "VMs:" in shown
    assert "7" in shown


def test_where_there_is_nothing_it_says_since_when_there_could_be(twinsite, fake):
    known(fake)
    fake.answers["Machines.Stats"] = admin_pb2.StatsResponse()
    ended = twinsite("vm", "stats", "web01")
    assert (ended.status, ended.out) == (0, "")
    assert "web01 is not protected" in ended.err
    fake.answers["Machines.Stats"] = answer(0)
    told = twinsite("vm", "stats", "web01").err
    assert "nothing was measured in the last 1d" in told
    assert "protected since 2027" in told
    assert json.loads(twinsite("vm", "stats", "web01", "-o", "json").out)["items"] == []
    assert twinsite("vm", "stats", "web01", "-o", "csv").out.startswith("start,resolution_seconds,cycles")


def test_explain_is_a_verdict_then_what_it_rests_on_then_what_would_help(twinsite, fake):
    fake.answers["Machines.Explain"] = admin_pb2.ExplainResponse(
        verdict="web01 is late: the network takes 80 % of each cycle",
        facts=["the newest point is 1m50s old", "disk vdb brings 93 % of the changes"],
        remedies=["a link of 18 MB/s, or a frequency of 60s, would do"],
    )
    assert twinsite("vm", "explain", "web01").out.splitlines() == [
        "web01 is late: the network takes 80 % of each cycle",
        "  the newest point is 1m50s old",
        "  disk vdb brings 93 % of the changes",
        "What would help: a link of 18 MB/s, or a frequency of 60s, would do",
    ]
    plain = json.loads(twinsite("vm", "explain", "web01", "-o", "json").out)
    assert plain["remedies"] == ["a link of 18 MB/s, or a frequency of 60s, would do"]


def test_any_list_can_be_had_as_csv(twinsite, fake):
    fake.answers["Machines.List"] = admin_pb2.ListMachinesResponse(
        machines=[admin_pb2.MachineView(name='web "01", main', cloud="gold-a", host="a1")]
    )
    (found,) = csv.DictReader(io.StringIO(twinsite("vm", "list", "-o", "csv").out))
    assert (found["name"], found["cloud"]) == ('web "01", main', "gold-a")
    known(fake)
    named = dict(csv.reader(io.StringIO(twinsite("vm", "show", "web01", "-o", "csv").out)))
    assert json.loads(named["machine.disks"])[0]["name"] == "vda"


def test_csv_and_json_carry_plain_numbers_and_instants_in_utc(twinsite, fake):
    point = types_pb2.Point(vm_id="0f6e", cycle=41, consistency="crash", changed_bytes=4096, stored_bytes=5 << 30)
    point.instant.FromJsonString("2027-01-15T08:00:00.250Z")
    fake.answers["RecoveryPoints.List"] = admin_pb2.ListPointsResponse(points=[point])
    (found,) = csv.DictReader(io.StringIO(twinsite("point", "list", "web01", "-o", "csv").out))
    (plain,) = json.loads(twinsite("point", "list", "web01", "-o", "json").out)["items"]
    assert (found["cycle"], found["changed_bytes"], found["stored_bytes"]) == ("41", "4096", str(5 << 30))
    assert (plain["cycle"], plain["changed_bytes"], plain["stored_bytes"]) == (41, 4096, 5 << 30)
    assert found["instant"] == plain["instant"] == "2027-01-15T08:00:00.250Z"
    assert (found["locked_until"], plain["locked_until"]) == ("", None)

    known(fake)
    view = fake.answers["Machines.Show"]
    view.protection.changed_bytes = 3 << 30
    view.protection.newest_instant.FromJsonString("2027-01-15T08:00:00.250Z")
    named = dict(csv.reader(io.StringIO(twinsite("vm", "show", "web01", "-o", "csv").out)))
    assert named["protection.changed_bytes"] == str(3 << 30)
    assert named["protection.newest_instant"] == "2027-01-15T08:00:00.250Z"
    assert [disk["name"] for disk in json.loads(named["machine.disks"])] == ["vda", "vdb"]

    fake.answers["Sessions.WhoAmI"] = admin_pb2.WhoAmIResponse(user="ana", expires_unix=1_800_000_000)
    assert json.loads(twinsite("whoami", "-o", "json").out)["expires"] == "2027-01-15T08:00:00.000Z"
    assert dict(csv.reader(io.StringIO(twinsite("whoami", "-o", "csv").out)))["expires"] == "2027-01-15T08:00:00.000Z"


def test_a_list_without_rows_has_the_head_of_one_with_rows(twinsite, fake):
    fake.answers["Machines.List"] = admin_pb2.ListMachinesResponse()
    empty = twinsite("vm", "list", "-o", "csv").out.splitlines()
    fake.answers["Machines.List"] = admin_pb2.ListMachinesResponse(
        machines=[
            admin_pb2.MachineView(name="web01", protection=admin_pb2.Protection(term=1)),
            admin_pb2.MachineView(name="db01"),
        ]
    )
    full = list(csv.reader(io.StringIO(twinsite("vm", "list", "-o", "csv").out)))
    assert [",".join(full[0])] == empty
    assert {len(row) for row in full} == {len(full[0])}


def test_instants_in_sentences_of_the_coordinator_are_shown_as_all_others_are(twinsite, fake):
    said = "the initial replication of web01 begins now, not at 2027-01-15T08:00:00.000Z"
    fake.answers["Machines.StartInitial"] = admin_pb2.ActionResponse(consequences=[said])
    shown = twinsite("vm", "start-initial", "web01", "--dry-run").err
    here = datetime.fromtimestamp(1_800_000_000).astimezone().isoformat(sep=" ", timespec="seconds")
    assert f"not at {here}" in shown
    assert "2027-01-15T08:00:00.000Z" not in shown
