"""A sender among others of its host, and in time: turns, first copies that wait, what is late and why."""

from dataclasses import replace

import pytest

from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication.cycle import Committed
from hyperv_host_agent.replication.progress import Phase
from hyperv_host_agent.replication.schedule import Timing
from hyperv_host_agent.replication.state import Position, SenderState
from tests.hyperv_host_agent.replication.senders import (
    ASSIGNED,
    FOUR,
    Gone,
    kinds,
    make,
    named,
    one,
    opened,
    ready,
    sending,
    source,
    target,
    tell,
    told,
)


def test_no_point_is_opened_before_the_vms_turn():
    sender = make()
    asked = one(told(sender, ASSIGNED, target(), source()), say.AskTurn)
    assert (asked.copy, asked.urgent) == (False, False)
    assert told(sender, say.TurnGiven(asked.turn + 7)) == []
    assert kinds(told(sender, say.TurnGiven(asked.turn))) == ["OpenPoint"]


def test_the_turn_is_given_back_after_the_commit_and_after_a_failure():
    sender = make()
    sending(sender)
    told(sender, say.CommitAcked(1, named(1)))
    assert "EndTurn" in kinds(told(sender, say.Applied(sound=True)))
    sender = make()
    sending(sender)
    assert kinds(told(sender, say.StreamLost(1, Gone()))) == ["EndTurn", "Wake"]


def test_a_cycle_that_turns_out_to_be_a_copy_asks_for_a_copys_turn():
    sender = make()
    turn = one(told(sender, ASSIGNED, target(), source()), say.AskTurn).turn
    told(sender, say.TurnGiven(turn))
    actions = told(sender, opened(whole=False))
    assert kinds(actions) == ["ClosePoint", "DropPending", "Persist", "EndTurn", "AskTurn"]
    asked = one(actions, say.AskTurn)
    assert asked.copy
    assert kinds(told(sender, say.TurnGiven(turn))) == []
    assert kinds(told(sender, say.TurnGiven(asked.turn))) == ["BeginStream", "ReadSlice"]


def test_a_wish_for_a_cycle_now_makes_the_question_urgent():
    sender = make()
    told(sender, ASSIGNED, target(), source())
    again = one(told(sender, say.SyncRequested()), say.AskTurn)
    assert again.urgent
    assert told(sender, say.SyncRequested()) == []


def test_a_vm_that_is_paused_gives_its_place_to_others():
    sender = make()
    told(sender, ASSIGNED, target(), source())
    assert kinds(told(sender, replace(ASSIGNED, paused=True))) == ["EndTurn"]


def test_waiting_for_others_is_one_of_the_causes():
    sender = make()
    turn = one(told(sender, ASSIGNED, target(), source()), say.AskTurn).turn
    told(sender, say.TurnGiven(turn), now=19.0)
    told(sender, opened(), say.PointRead((ready(1),)), now=20.0)
    told(sender, say.CommitAcked(1, named(1), cap_seconds=3.0), now=35.0)
    told(sender, say.Applied(sound=True), now=36.0)
    assert sender.view.causes == Timing(source=1.0, target=16.0, turn=19.0)
    assert sender.view.late == "turn"
    assert sender.view.last.seconds == 36.0


def test_a_rate_cap_is_not_the_networks_fault():
    sender = make(window=50)
    tell(sender, ASSIGNED, target(), source())
    told(sender, opened(), say.PointRead((ready(1), ready(2))), now=1.0)
    told(sender, say.Durable(1, 1), now=31.0)
    told(sender, say.CommitAcked(1, named(1), cap_seconds=20.0), now=32.0)
    told(sender, say.Applied(sound=True), now=32.0)
    assert sender.view.causes == Timing(source=1.0, network=10.0, target=1.0, cap=20.0)
    assert sender.view.late == "cap"


def test_what_a_cycle_brought_is_told_once_with_it():
    sender = make()
    sending(sender)
    assert sender.view.last is None
    tell(sender, say.CommitAcked(1, named(1)), say.Applied(sound=True))
    last = sender.view.last
    assert (last.number, last.copy, last.wire_bytes, last.disks) == (5, False, 200, (("d1", 2 * 65536),))
    tell(sender, say.Woke(), now=1.0)
    assert sender.view.last is last


def test_a_first_copy_waits_for_its_time_and_opens_nothing_before():
    sender = make(SenderState())
    actions = told(sender, replace(ASSIGNED, not_before=500.0), now=3.0)
    assert one(actions, say.Wake).at == 500.0
    assert kinds(told(sender, say.SyncRequested(), now=4.0)) == ["Wake"]
    assert sender.view.phase is Phase.WAITING
    assert kinds(told(sender, say.Woke(), now=500.0)) == ["AskTarget"]


def test_a_replica_that_is_there_does_not_wait_for_the_time_of_a_first_copy():
    assert kinds(told(make(), replace(ASSIGNED, not_before=500.0))) == ["AskTarget"]


def consistency(sender, now):
    anchor = sender.state.committed
    actions = tell(sender, say.Woke(), now=now)
    if "AskTarget" in kinds(actions):
        actions = tell(sender, target(anchor), now=now)
    return one(tell(sender, source(anchor, index=anchor), now=now), say.OpenPoint).consistency


def finish(sender, number, now, achieved="crash"):
    tell(sender, replace(opened(), consistency=achieved), say.PointRead(()), now=now)
    tell(sender, say.CommitAcked(number, named(number)), say.Applied(sound=True), now=now)


def test_an_application_consistent_point_is_tried_every_so_often():
    sender = make(STATE_WITHOUT)
    tell(sender, replace(ASSIGNED, frequency=30.0, application_every=3600.0), now=0.0)
    tell(sender, target(), now=0.0)
    assert one(tell(sender, source(), now=0.0), say.OpenPoint).consistency == "application"
    finish(sender, 1, 1.0, "application")
    asked = []
    for number, now in enumerate((1000.0, 3500.0, 3700.0), start=2):
        asked.append(consistency(sender, now))
        finish(sender, number, now, asked[-1])
    assert asked == ["crash", "crash", "application"]


def test_a_freeze_that_failed_is_not_tried_with_each_cycle():
    sender = make(STATE_WITHOUT)
    tell(sender, replace(ASSIGNED, frequency=30.0, application_every=3600.0), target(), source())
    finish(sender, 1, 1.0, "crash")
    asked = []
    for number, now in enumerate((40.0, 200.0, 301.0, 400.0), start=2):
        asked.append(consistency(sender, now))
        finish(sender, number, now, "crash")
    assert asked == ["crash", "crash", "application", "crash"]


STATE_WITHOUT = SenderState(
    term=1, committed=FOUR, disks=opened().disks, recoverable=True, instant=90.0, trusted=True, application=0.0
)


def test_after_a_restart_the_last_application_consistent_point_still_counts():
    state = replace(STATE_WITHOUT, instant=5000.0, application=4000.0)
    sender = make(state)
    tell(sender, replace(ASSIGNED, application_every=3600.0), target())
    assert one(tell(sender, source()), say.OpenPoint).consistency == "crash"


def test_periods_without_a_commit_are_missed_also_while_they_pass():
    sender = make()
    sending(sender)
    tell(sender, say.CommitAcked(1, named(1)), say.Applied(sound=True), now=1.0)
    assert sender.view.missed == 0
    tell(sender, say.Woke(), say.TargetFailed(Gone()), now=35.0)
    tell(sender, say.Woke(), now=80.0)
    assert sender.view.missed == 0
    tell(sender, say.Woke(), say.TargetFailed(Gone()), now=100.0)
    assert sender.view.missed == 1
    tell(sender, say.Woke(), say.TargetFailed(Gone()), now=181.0)
    assert (sender.view.missed, sender.view.failures) == (4, 3)


def test_no_period_is_missed_while_paused():
    sender = make()
    sending(sender)
    tell(sender, say.CommitAcked(1, named(1)), say.Applied(sound=True), now=1.0)
    tell(sender, replace(ASSIGNED, paused=True), now=2.0)
    tell(sender, say.Woke(), now=900.0)
    assert sender.view.missed == 0
    tell(sender, ASSIGNED, now=1000.0)
    assert sender.view.missed == 0


@pytest.mark.parametrize(("doubt", "said"), [("the agent was killed", " (the agent was killed)"), ("", "")])
def test_a_slow_cycle_says_why(doubt, said):
    sender = make()
    tell(sender, ASSIGNED, target(), source(), replace(opened(whole=False), doubt=doubt))
    assert sender.view.note == f"changes were not known{said}: the disks are compared"


def test_a_copy_is_told_apart_in_what_is_counted():
    sender = make()
    tell(sender, ASSIGNED, target(), source(), opened(whole=False))
    tell(sender, say.SliceRead(1, ready(1), Position(1, 0), 0.5, 0.5), say.Durable(1, 1), now=2.0)
    tell(sender, say.CommitAcked(1, named(1)), say.Applied(sound=True), now=4.0)
    assert sender.view.last.copy
    assert sender.view.causes == Timing(source=0.5, compress=0.5, network=1.0, target=2.0)
    assert sender.state.committed == Committed(5, named(1).id)
    assert sender.view.phase is Phase.RESYNCHRONIZING
