"""When a protected VM is normal, and when it is not."""

import dataclasses

import pytest

from coordinator.protection.health import Evidence, Side, judge, rpo_age
from coordinator.protection.model import Phase
from twinsite.api.types.v1 import types_pb2

NOW = 1_800_000_000.0


def side(host: str, state: str = "REPLICATING", *, gone: float | None = None, **fields) -> Side:
    """`gone`: seconds since it was connected."""
    status = types_pb2.ReplicationStatus(
        state=types_pb2.ReplicationState.Value(f"REPLICATION_STATE_{state}"), last_cycle_seconds=1.0
    )
    for name, value in fields.items():
        setattr(status, name, value)
    return Side(host=host, connected=gone is None, heard=NOW - (gone or 3600), status=status)


def silent(host: str) -> Side:
    return Side(host=host, connected=True)


GOOD = Evidence(
    phase=Phase.PROTECTED,
    paused=False,
    frequency_seconds=30,
    source=side("a1"),
    target=side("b1"),
    newest_instant=NOW - 20,
)


def blocked(host: str) -> Side:
    made = side(host, "BLOCKED")
    assert made.status is not None
    made.status.reason.message = "the store is full"
    return made


def scrubbed(damaged: int) -> Side:
    made = side("b1")
    assert made.status is not None
    made.status.scrub.damaged_clusters = damaged
    return made


@pytest.mark.parametrize(
    ("change", "state", "health", "reason"),
    [
        ({}, "replicating", "normal", ""),
        ({"newest_instant": NOW - 71}, "replicating", "normal", ""),
        ({"newest_instant": NOW - 72}, "replicating", "warning", "1m12s old"),
        ({"newest_instant": NOW - 131}, "replicating", "warning", "2m11s old"),
        ({"newest_instant": NOW - 132}, "replicating", "critical", "one is due every 30s"),
        ({"newest_instant": 0.0}, "replicating", "critical", "there is no recovery point"),
        ({"target": silent("b1")}, "replicating", "unknown", "b1 has not reported yet"),
        (
            {"target": side("b1", gone=61)},
            "replicating",
            "unknown",
            "b1 is not connected and has not reported for 1m01s",
        ),
        ({"target": side("b1", gone=61), "newest_instant": NOW - 9999}, "replicating", "unknown", "b1"),
        ({"target": side("b1", gone=59)}, "replicating", "normal", ""),
        (
            {"source": side("a1", gone=61)},
            "replicating",
            "warning",
            "a1 is not connected and has not reported for 1m01s",
        ),
        ({"source": side("a1", gone=2)}, "replicating", "warning", "a1 is not connected"),
        (
            {"source": side("a1", gone=200), "newest_instant": NOW - 200},
            "replicating",
            "critical",
            "a1 is not connected",
        ),
        ({"paused": True}, "paused", "paused", "grows"),
        ({"paused": True, "target": silent("b1")}, "paused", "paused", "grows; host b1 has not reported yet"),
        ({"newest_instant": NOW + 60}, "replicating", "normal", ""),
        ({"newest_instant": NOW + 3600}, "replicating", "warning", "set the clock of host a1"),
        (
            {"phase": Phase.INITIAL, "source": side("a1", gone=3600, initial_done_bytes=4, initial_total_bytes=10)},
            "initial",
            "warning",
            "40 %; host a1 is not connected and has not reported for 1h00m",
        ),
        ({"target": blocked("b1")}, "blocked", "warning", "b1: the store is full"),
        ({"target": blocked("b1"), "newest_instant": NOW - 100}, "blocked", "critical", "the store is full"),
        ({"source": blocked("a1")}, "blocked", "warning", "a1: the store is full"),
        ({"source": side("a1", "FENCED")}, "blocked", "critical", "another host owns"),
        ({"source": side("a1", "RESYNCHRONIZING")}, "resynchronizing", "warning", "differs"),
        ({"source": side("a1", last_cycle_seconds=400.0)}, "replicating", "warning", "a cycle takes 6m40s"),
        ({"phase": Phase.PREPARING}, "preparing", "warning", "being prepared"),
        (
            {"phase": Phase.INITIAL, "newest_instant": 0.0, "source": silent("a1"), "target": side("b1", "INITIAL")},
            "initial",
            "warning",
            "not begun",
        ),
        (
            {
                "phase": Phase.INITIAL,
                "newest_instant": 0.0,
                "source": side("a1", "INITIAL", initial_done_bytes=42, initial_total_bytes=100),
            },
            "initial",
            "warning",
            "42 %",
        ),
        (
            {"phase": Phase.INITIAL, "newest_instant": 0.0, "initial_start": NOW + 7200, "target": silent("b1")},
            "initial",
            "warning",
            "initial replication begins in 2h00m",
        ),
        (
            {"phase": Phase.INITIAL, "newest_instant": 0.0, "target": side("b1", "INITIAL", awaiting_seed=True)},
            "initial",
            "warning",
            "waits for its seed",
        ),
        ({"newest_damaged": 3}, "replicating", "critical", "the newest point is damaged in 3 clusters"),
        ({"target": scrubbed(2)}, "replicating", "warning", "2 damaged clusters at b1"),
        ({"target": scrubbed(0)}, "replicating", "normal", ""),
        ({"missed_share": 0.2}, "replicating", "normal", ""),
        ({"missed_share": 0.34}, "replicating", "warning", "34% of the cycles of the last 12 hours were missed"),
        (
            {"newest_instant": NOW - 80, "source": side("a1", late="cap", rate_bytes_per_second=10_000_000)},
            "replicating",
            "warning",
            "the cap of 10 MB/s holds it back",
        ),
        (
            {"missed_share": 0.5, "source": side("a1", late="target")},
            "replicating",
            "warning",
            "were missed: writing at the target takes longest",
        ),
        (
            {"source": side("a1", last_cycle_seconds=400.0, note="changes were not known: the disk is compared")},
            "replicating",
            "warning",
            "a cycle takes 6m40s: changes were not known",
        ),
        ({"source": side("a1", note="the disk is compared")}, "replicating", "normal", ""),
        ({"phase": Phase.FAILING_OVER}, "failed_over", "critical", "fail over again"),
        ({"phase": Phase.FAILED_OVER}, "failed_over", "warning", "runs on b1"),
        ({"phase": Phase.FAILED_OVER, "target": silent("b1")}, "failed_over", "unknown", "b1"),
        ({"phase": Phase.UNPROTECTING}, "unprotecting", "warning", "removed"),
    ],
)
def test_health_follows_from_what_was_reported_and_when(change, state, health, reason):
    judged = judge(dataclasses.replace(GOOD, **change), NOW)
    assert (judged.state, judged.health) == (state, health)
    assert reason in judged.reason
    assert (judged.reason == "") == (health == "normal")


def test_all_that_is_wrong_is_said_the_worst_first():
    judged = judge(dataclasses.replace(GOOD, newest_damaged=1, missed_share=0.9, source=side("a1", gone=5)), NOW)
    assert judged.health == "critical"
    damaged, silent_, missed = (judged.reason.index(word) for word in ("damaged", "not connected", "missed"))
    assert damaged < silent_ < missed


def test_the_last_word_of_a_connected_host_holds_however_old():
    assert judge(GOOD, NOW).health == "normal"
    assert GOOD.target.heard == NOW - 3600


def test_a_vm_is_never_normal_without_both_sides():
    for phase in Phase:
        for change in ({"target": side("b1", gone=3600)}, {"source": side("a1", gone=3600)}, {"source": silent("a")}):
            judged = judge(dataclasses.replace(GOOD, phase=phase, **change), NOW)
            assert judged.health != "normal", (phase, change)


def test_the_rpo_age_grows_when_nobody_reports_and_is_never_negative():
    assert rpo_age(0.0, NOW) is None
    assert rpo_age(NOW - 5, NOW) == 5
    assert rpo_age(NOW - 5, NOW + 86400) == 86405
    assert rpo_age(NOW + 60, NOW) == 0
