"""Why a VM is late: the cause that was put in is the one that is named, with what would fix it."""

from dataclasses import replace

import pytest

from coordinator.protection.health import Side
from coordinator.protection.model import Phase
from coordinator.protection.policy import Policy, RateRule
from coordinator.statistics.explain import explain
from coordinator.statistics.lateness import speed
from coordinator.statistics.model import CAUSES, Measured, Row
from coordinator.statistics.situation import Situation
from twinsite.api.types.v1 import types_pb2

NOW = 1_800_000_000.0
MB = 1_000_000
VDA, VDB = "d0000000-0000-4000-8000-000000000001", "d0000000-0000-4000-8000-000000000002"
FREQUENCY = 30


def status(role: str, state: str = "REPLICATING", **fields: object) -> types_pb2.ReplicationStatus:
    return types_pb2.ReplicationStatus(
        role=types_pb2.Role.Value(f"ROLE_{role}"),
        state=types_pb2.ReplicationState.Value(f"REPLICATION_STATE_{state}"),
        **fields,
    )


def minutes(count: int, *, ago: int = 0, **each: object) -> list[Row]:
    """So many minutes that are alike, the last of them so many minutes ago."""
    return [
        Row(int(NOW) - 60 * (ago + number), 60, Measured(**{"cycles": 2, "seconds_sum": 2.0, **each}))
        for number in reversed(range(1, count + 1))
    ]


def late_minutes(share: dict[str, float], *, changed: float = 12 * MB, wire: float = 9 * MB) -> list[Row]:
    """The last quarter of an hour: a cycle of 60 s where one of 30 s is due; rates in bytes a second."""
    return minutes(
        15,
        cycles=1,
        missed=1,
        seconds_sum=60.0,
        seconds_max=70.0,
        changed_bytes=int(60 * changed),
        content_bytes=int(60 * changed),
        wire_bytes=int(60 * wire),
        disks={VDA: int(60 * changed * 0.5), VDB: int(60 * changed * 0.5)},
        **{cause: 60.0 * part for cause, part in share.items()},
    )


def situation(**changes: object) -> Situation:
    """A VM that does well: cycles of a second, one every 30 s."""
    fine = Situation(
        name="web01",
        now=NOW,
        phase=Phase.PROTECTED,
        rpo_age=12.0,
        newest_instant=NOW - 12,
        protected_since=NOW - 90000,
        pair="gold-a:gold-b",
        policy=Policy(frequency_seconds=FREQUENCY),
        source=Side(host="a1", connected=True, heard=NOW, status=status("SOURCE")),
        target=Side(host="b1", connected=True, heard=NOW, status=status("TARGET")),
        disks={VDA: "vda", VDB: "vdb"},
        rows=minutes(1440, seconds_max=1.2, source=0.5, network=1.5, wire_bytes=MB, disks={VDA: MB, VDB: MB}),
    )
    return replace(fine, **changes)  # type: ignore[arg-type]  # the fields by their names


def source(state: str = "REPLICATING", **fields: object) -> Side:
    return Side(host="a1", connected=True, heard=NOW, status=status("SOURCE", state, **fields))


def target(state: str = "REPLICATING", **fields: object) -> Side:
    return Side(host="b1", connected=True, heard=NOW, status=status("TARGET", state, **fields))


def late(share: dict[str, float], **changes: object) -> Situation:
    rows = changes.pop("rows", None) or late_minutes(share)
    return situation(rpo_age=110.0, newest_instant=NOW - 110, rows=rows, **changes)


def said(case: Situation) -> tuple[str, str, str]:
    """Verdict, facts and remedies as text."""
    found = explain(case)
    assert found.verdict
    return found.verdict, "\n".join(found.facts), "\n".join(found.remedies)


# ---- late: by cause ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "verdict", "remedy"),
    [
        ("network", "the network takes 80 %", "a link of"),
        ("target", "b1 writes slowly: that takes 80 %", "b1's store"),
        ("source", "reading its disks on a1 takes 80 %", "disks of a1"),
        ("compress", "compressing takes 80 %", "compressors"),
        ("turn", "it waits for other VMs of a1", "concurrency"),
        ("cap", "holds it back for 80 %", "raise"),
    ],
)
def test_the_cause_that_takes_the_time_is_named(cause: str, verdict: str, remedy: str) -> None:
    others = [name for name in CAUSES if name != cause]
    case = late({cause: 0.8, **dict.fromkeys(others, 0.04)})
    found = said(case)
    assert found[0].startswith("web01 is late: ")
    assert verdict in found[0]
    assert remedy in found[2]
    assert "the newest point is 1m50s old, one is due every 30s" in found[1]
    assert "a cycle takes 1m00s on average, 1m10s at most" in found[1]
    assert "15 of 30 cycles of the last hour were missed" in found[1]


def test_a_network_that_is_too_slow_is_told_what_would_do() -> None:
    verdict, facts, remedies = said(late({"network": 0.8, "source": 0.2}))
    assert verdict == "web01 is late: the network takes 80 % of each cycle"
    assert "12 MB/s of changes against 11 MB/s sent" in facts
    assert "of it network 80 %, source 20 %" in facts
    # 9 MB/s on the wire in 30 - 12 s, and a quarter more
    assert remedies == "a link of 19 MB/s, or a frequency of 2m, would do"


def test_changes_that_no_frequency_catches_up_with_ask_for_a_link_alone() -> None:
    pending = source(pending_bytes=40_000 * MB)
    _, facts, remedies = said(late({"network": 0.95, "source": 0.05}, source=pending))
    assert "changes come faster than they go, at any frequency" in facts
    assert remedies.startswith("a link of ")
    assert "frequency" not in remedies


def test_without_compression_turning_it_on_is_a_remedy() -> None:
    case = late({"network": 1.0}, policy=Policy(frequency_seconds=FREQUENCY, compression=False))
    assert "turn it on for pair gold-a:gold-b" in said(case)[2]


def test_compression_that_gains_nothing_is_to_be_turned_off() -> None:
    rows = late_minutes({"compress": 0.9, "network": 0.1}, wire=12 * MB)
    assert "it gains 1.0 : 1 only: turn compression off" in said(late({}, rows=rows))[2]


def test_the_cap_that_holds_is_told_as_it_was_set() -> None:
    rules = (RateRule(0, 8 * 60, 18 * 60, 1 * MB),)
    slow = source(rate_bytes_per_second=1 * MB)
    policy = Policy(frequency_seconds=FREQUENCY, vm_rates=rules)
    verdict, _, remedies = said(late({"cap": 1.0}, source=slow, policy=policy))
    assert "the cap of each VM, 1 MB/s 08:00-18:00, holds it back" in verdict
    assert "twinsite pair set gold-a:gold-b --rate" in remedies
    shared = Policy(frequency_seconds=FREQUENCY, link_rates=(RateRule(0, 0, 0, 3 * MB),))
    assert "this host's share of the link's (3 MB/s)" in said(late({"cap": 1.0}, source=slow, policy=shared))[0]
    verdict, _, remedies = said(late({"cap": 1.0}, source=slow))
    assert "the cap of 1 MB/s of host a1 holds it back" in verdict
    assert "host.toml of a1" in remedies


def test_what_held_the_last_cycle_up_counts_more_than_how_cycles_were_before() -> None:
    rows = minutes(60, cycles=2, missed=1, seconds_sum=20.0, target=16.0, network=4.0, wire_bytes=MB, disks={VDA: MB})
    capped = source(rate_bytes_per_second=MB, last_causes=types_pb2.Causes(cap=90, network=8, target=2))
    verdict, facts, remedies = said(late({}, rows=rows, source=capped))
    assert "the cap of 1 MB/s of host a1 holds it back for 90 %" in verdict
    assert "the last cycle took 1m40s, 90 % of it cap" in facts
    assert "a cycle takes 10s on average" in facts
    assert "host.toml of a1" in remedies
    usual = source(rate_bytes_per_second=MB, last_causes=types_pb2.Causes(cap=9, network=8, target=2))
    assert "b1 writes slowly" in said(late({}, rows=rows, source=usual))[0]


def test_the_disk_that_brings_most_of_the_changes_is_named() -> None:
    rows = [
        replace(row, measured=replace(row.measured, disks={VDA: 7 * MB, VDB: 93 * MB}))
        for row in late_minutes({"network": 1.0})
    ]
    assert "disk vdb brings 93 % of the changes" in said(late({}, rows=rows))[1]


def test_a_burst_is_told_from_what_is_usual() -> None:
    before = minutes(1000, ago=75, disks={VDA: 60 * MB})
    _, facts, _ = said(late({}, rows=[*before, *late_minutes({"network": 1.0})]))
    assert "12 times what changed in an ordinary hour" in facts


def test_errors_are_named_when_they_are_what_keeps_it() -> None:
    rows = minutes(15, cycles=0, seconds_sum=0.0, failures=3, missed=2)
    verdict, _, remedies = said(late({}, rows=rows))
    assert "45 attempts of the last hour ended in an error" in verdict
    assert "logs of the host agents of a1 and b1" in remedies


def test_an_agent_that_did_not_run_is_noticed_by_the_minutes_it_did_not_measure() -> None:
    rows = [*minutes(40, ago=25), *minutes(5)]
    verdict, _, _ = said(situation(rpo_age=100.0, rows=rows))
    assert "the agent of a1 did not run for 20m" in verdict


def test_a_cycle_that_is_slower_for_a_reason_says_it() -> None:
    note = "changes were not known (the agent was killed while the VM ran): the disk is compared"
    verdict, _, remedies = said(late({"source": 1.0}, source=source(note=note)))
    assert verdict == f"web01 is late: a cycle is slower than usual: {note}"
    assert not remedies


def test_a_late_vm_of_which_nothing_was_measured_says_so_and_the_last_cycle_is_used() -> None:
    assert "no cycle was measured" in said(situation(rpo_age=500.0, rows=[]))[0]
    last = source(late="target", last_causes=types_pb2.Causes(target=50.0, network=10.0))
    assert "b1 writes slowly" in said(situation(rpo_age=500.0, rows=[], source=last))[0]


def test_what_was_late_this_night_is_explained_in_the_morning() -> None:
    night = [replace(row, start=row.start - 5 * 3600) for row in late_minutes({"source": 0.9, "network": 0.1})]
    nights = [replace(row, start=row.start - 900 * shift) for shift in range(8) for row in night]
    verdict, facts, remedies = said(situation(rows=[*sorted(nights, key=lambda row: row.start), *minutes(60)]))
    assert verdict.startswith(
        "web01 is in time now, but 33% of the cycles of the last 12h were missed: reading its disks"
    )
    assert "most of them in the hour from 2027-01-15T01:00:00.000Z" in facts
    assert "disks of a1" in remedies


# ---- not late, or not replicating --------------------------------------------------------------------------------


def test_a_vm_that_does_well_gets_a_calm_verdict() -> None:
    found = explain(situation())
    assert found.verdict == "web01 is replicated in time"
    assert found.remedies == ()
    assert "2880 cycles in the last day, none missed, 1.0s on average" in found.facts
    new = explain(situation(rows=[]))
    assert new.verdict == "web01 is replicated in time"
    assert "nothing was measured yet; the first minute comes within two" in new.facts


@pytest.mark.parametrize(
    ("changes", "verdict", "remedy"),
    [
        ({"phase": None}, "web01 is not protected", "twinsite vm protect web01"),
        ({"paused": True}, "was paused by an administrator", "twinsite vm resume web01"),
        ({"source": source("FENCED")}, "a1 was told that another host owns it", "vm show"),
        (
            {"target": target("BLOCKED", reason=types_pb2.ErrorDetail(message="store full", next_step="free space"))},
            "b1: store full",
            "free space",
        ),
        ({"target": Side(host="b1", connected=False, heard=NOW - 900, status=status("TARGET"))}, "b1", "host list"),
        ({"source": Side(host="a1", connected=False, heard=NOW - 900, status=status("SOURCE"))}, "a1", "host list"),
        ({"newest_instant": NOW + 600}, "dated 10m00s in the future", "set the clock of a1"),
        ({"target": target(scrub=types_pb2.Scrub(damaged_clusters=3))}, "3 damaged clusters", "--repair"),
        (
            {"target": target(scrub=types_pb2.Scrub(damaged_clusters=3, tried_clusters=3))},
            "3 damaged clusters",
            "a repair was tried; twinsite point list web01",
        ),
        ({"source": source("RESYNCHRONIZING")}, "is being compared with its replica", ""),
        ({"source": source(note="the disk is compared")}, "in time; a cycle is slower than usual: the disk", ""),
        ({"phase": Phase.INITIAL, "initial_start": NOW + 7200}, "begins in 2h00m", "vm start-initial web01"),
        (
            {"phase": Phase.INITIAL, "target": target(awaiting_seed=True)},
            "comes on media",
            "seed export web01 --to PATH",
        ),
        ({"phase": Phase.INITIAL}, "has not begun", ""),
    ],
)
def test_what_keeps_it_otherwise_is_named(changes: dict[str, object], verdict: str, remedy: str) -> None:
    found = said(situation(**changes))
    assert verdict in found[0]
    assert remedy in found[2]


def test_an_initial_replication_says_how_fast_it_is_and_when_it_ends() -> None:
    rows = minutes(10, cycles=0, seconds_sum=0.0, changed_bytes=60 * 50 * MB)
    copying = source("INITIAL", initial_done_bytes=40_000 * MB, initial_total_bytes=100_000 * MB)
    verdict, facts, _ = said(situation(phase=Phase.INITIAL, rpo_age=None, source=copying, rows=rows))
    assert verdict.endswith("is at 40 %")
    assert "50 MB/s are copied: it ends in about 20m00s" in facts


def test_speeds_have_two_digits() -> None:
    assert [speed(value) for value in (0, 50, 1234, 9_345_678, 12_000_000, 5.44e9)] == [
        "0 B/s",
        "50 B/s",
        "1.2 kB/s",
        "9.3 MB/s",
        "12 MB/s",
        "5.4 GB/s",
    ]
