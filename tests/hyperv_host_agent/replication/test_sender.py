import pytest

from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry, Kind, Unfinished
from hyperv_host_agent.replication.frames import NotGranted
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.replication.progress import Phase
from hyperv_host_agent.replication.state import Checkpoint, Flight, Position, SenderState
from tests.hyperv_host_agent.replication.senders import (
    ASSIGNED,
    DISKS,
    FOUR,
    Full,
    Gone,
    kinds,
    make,
    one,
    opened,
    ready,
    sending,
    source,
    target,
    tell,
)
from twinsite.extents import CLUSTER


def test_a_new_session_asks_target_and_source_before_it_opens_a_point():
    sender = make()
    assert kinds(tell(sender, ASSIGNED)) == ["AskTarget"]
    assert kinds(tell(sender, target())) == ["AskSource"]
    assert kinds(tell(sender, source())) == ["DropPending", "DiscardPoint", "OpenPoint"]


def test_changes_are_spooled_and_the_point_closed_before_they_are_sent():
    sender = make()
    read = one(tell(sender, ASSIGNED, target(), source(), opened()), say.ReadPoint)
    assert (read.header.kind, read.header.number, read.header.parent, read.suppress) == (Kind.DELTA, 5, 4, True)
    actions = tell(sender, say.PointRead((ready(1), ready(2))))
    assert kinds(actions) == [
        "ClosePoint",
        "BeginStream",
        "SendBatch",
        "SendBatch",
        "StorePending",
        "Persist",
        "SendEnd",
    ]


def test_fingerprints_and_the_flight_are_stored_before_the_end_is_sent():
    *_, pending, persist, end = sending(make())
    assert pending == say.StorePending((1).to_bytes(16, "big"), 2)
    assert persist.state.flight.ended
    assert end == say.SendEnd(1, 2, ready(2).digest)


def test_after_the_commit_index_then_state_then_source():
    sender = make()
    sending(sender)
    five = Committed(5, (1).to_bytes(16, "big"))
    assert kinds(tell(sender, say.CommitAcked(1, five))) == ["ApplyPending"]
    actions = tell(sender, say.Applied(sound=True), now=3.0)
    assert kinds(actions) == ["Persist", "AckPoint", "DropPending", "DropSpool", "Wake"]
    state = one(actions, say.Persist).state
    assert (state.committed, state.flight, state.trusted, state.instant) == (five, None, True, 100.0)
    assert one(actions, say.Wake).at == 30.0  # from instant to instant
    assert sender.view.phase is Phase.REPLICATING


def test_a_cycle_that_took_longer_than_its_period_says_why_and_is_followed_at_once():
    sender = make()
    tell(sender, ASSIGNED, target(), source())
    tell(sender, opened(), say.PointRead((ready(1),), compress_seconds=1.0), now=2.0)
    tell(sender, say.CommitAcked(1, Committed(5, (1).to_bytes(16, "big"))), now=50.0)
    assert kinds(tell(sender, say.Applied(sound=True), now=51.0))[-1] == "AskTarget"
    assert sender.view.late == "target"
    assert sender.view.last_seconds == 51.0


def test_without_sound_fingerprints_the_index_is_not_trusted_again():
    sender = make()
    sending(sender)
    tell(sender, say.CommitAcked(1, Committed(5, (1).to_bytes(16, "big"))))
    assert not one(tell(sender, say.Applied(sound=False)), say.Persist).state.trusted
    read = one(tell(sender, say.Woke(), source(sender.state.committed), opened(), now=31.0), say.ReadPoint)
    assert not read.suppress


@pytest.mark.parametrize("index", [None, Committed(5, b"5" * 16)])
def test_an_index_that_is_missing_or_of_another_cycle_is_had_from_the_target(index):
    sender = make()
    actions = tell(sender, ASSIGNED, target(), source(index=index))
    assert one(actions, say.FetchIndex).committed == FOUR
    assert kinds(tell(sender, say.IndexFetched(sound=True, disks=DISKS))) == ["Persist", "AskSource"]
    assert one(tell(sender, source(), opened()), say.ReadPoint).suppress


def test_a_target_that_cannot_send_fingerprints_is_asked_once_and_nothing_suppressed():
    sender = make()
    tell(sender, ASSIGNED, target(), source(index=None), say.IndexFetched(sound=False))
    read = one(tell(sender, source(index=None), opened()), say.ReadPoint)
    assert not read.suppress


def test_the_window_bounds_what_is_sent_and_not_durable():
    sender = make(window=250)
    actions = sending(sender, batches=6)
    assert kinds(actions).count("SendBatch") == 3
    assert kinds(tell(sender, say.Durable(1, 2))) == ["SendBatch", "SendBatch"]
    assert kinds(tell(sender, say.Durable(1, 5))) == ["SendBatch", "StorePending", "Persist", "SendEnd"]


def test_a_cut_stream_goes_on_from_the_targets_watermark_with_the_same_cycle():
    sender = make()
    sending(sender, batches=4)
    tell(sender, say.Durable(1, 1))
    assert kinds(tell(sender, say.StreamLost(1, Gone()), now=10.0)) == ["Wake"]
    assert sender.view.phase is Phase.BLOCKED
    assert kinds(tell(sender, say.Woke(), now=11.0)) == ["AskTarget"]
    actions = tell(sender, target(unfinished=Unfinished(5, (1).to_bytes(16, "big"), 3, bytes(16))), now=11.0)
    assert one(actions, say.BeginStream).resume_after == 3
    assert [action.sequence for action in actions if isinstance(action, say.SendBatch)] == [4]
    assert one(actions, say.SendEnd).digest == ready(4).digest


def test_what_still_comes_of_an_older_stream_is_ignored():
    sender = make()
    sending(sender)
    tell(sender, say.StreamLost(1, Gone()), say.Woke(), now=10.0)
    tell(sender, target(unfinished=None), now=12.0)
    for late in (
        say.Durable(1, 2),
        say.StreamLost(1, Gone()),
        say.CommitAcked(1, Committed(5, (1).to_bytes(16, "big"))),
    ):
        assert tell(sender, late, now=12.0) == []


def test_a_cycle_the_target_had_committed_before_the_cut_is_finished_here():
    sender = make()
    sending(sender)
    tell(sender, say.StreamLost(1, Gone()))
    actions = tell(sender, say.Woke(), target(Committed(5, (1).to_bytes(16, "big"))), now=2.0)
    assert kinds(actions) == ["ApplyPending"]


def test_after_a_restart_a_committed_cycle_is_finished_from_the_stored_state():
    before = make()
    sending(before)
    sender = make(before.state)
    five = Committed(5, (1).to_bytes(16, "big"))
    assert kinds(tell(sender, ASSIGNED, target(five))) == ["ApplyPending"]
    assert one(tell(sender, say.Applied(sound=True)), say.AckPoint).committed == five


def test_after_a_restart_a_cycle_that_did_not_arrive_is_given_up_and_its_changes_kept():
    before = make()
    sending(before)
    sender = make(before.state)
    actions = tell(sender, ASSIGNED, target(unfinished=Unfinished(5, (1).to_bytes(16, "big"), 2, bytes(16))))
    assert kinds(actions) == ["Persist", "DropSpool", "DropPending", "DiscardPoint", "AskSource"]
    assert one(actions, say.Persist).state.flight is None


def test_after_a_restart_the_source_is_told_again_what_is_committed():
    sender = make()
    actions = tell(sender, ASSIGNED, target(), source(Committed(3, b"3" * 16)))
    assert actions == [say.AckPoint(FOUR), say.AskSource()]
    assert kinds(tell(sender, source())) == ["DropPending", "DiscardPoint", "OpenPoint"]


def test_an_initial_copy_is_read_beside_the_running_guest_and_followed_by_a_delta_at_once():
    sender = make(SenderState())
    assert kinds(tell(sender, ASSIGNED, target(None), source(None))) == ["DropPending", "DiscardPoint", "OpenPoint"]
    actions = tell(sender, opened())
    assert kinds(actions) == ["ClosePoint", "DropPending", "Persist", "BeginStream", "ReadSlice"]
    begin = one(actions, say.BeginStream)
    assert (begin.header.kind, begin.header.consistency, begin.header.parent) == (Kind.INITIAL, "none", 0)
    assert sender.view.phase is Phase.INITIAL
    actions = tell(sender, say.SliceRead(1, ready(1), Position(0, 4)))
    assert kinds(actions) == ["SendBatch", "ReadSlice"]
    assert one(actions, say.ReadSlice).position == Position(0, 4)
    assert sender.view.copied_bytes == 4 * CLUSTER
    assert tell(sender, say.SliceRead(1, None, Position(1, 0))) == []  # its end waits until all is durable
    actions = tell(sender, say.Durable(1, 1))
    assert kinds(actions)[-3:] == ["StorePending", "Persist", "SendEnd"]
    tell(sender, say.CommitAcked(1, Committed(1, begin.header.id)))
    actions = tell(sender, say.Applied(sound=True), now=1.0)
    assert not one(actions, say.Persist).state.recoverable
    assert kinds(actions)[-1] == "AskSource"
    assert sender.view.phase is Phase.INITIAL
    read = one(tell(sender, source(Committed(1, begin.header.id)), opened(), now=1.0), say.ReadPoint)
    assert read.header.kind is Kind.DELTA


def copying(sender):
    tell(sender, ASSIGNED, target(None), source(None), opened())
    tell(sender, say.SliceRead(1, ready(1), Position(0, 2)), say.SliceRead(1, ready(2), Position(0, 4)))
    return tell(sender, say.Durable(1, 1))


def test_a_copys_checkpoint_follows_the_targets_acks_fingerprints_first():
    actions = copying(make(SenderState()))
    assert kinds(actions) == ["StorePending", "Persist"]
    assert one(actions, say.Persist).state.flight.checkpoint == Checkpoint(1, ready(1).digest, Position(0, 2))


def test_a_copy_goes_on_after_a_restart_from_its_own_checkpoint_though_the_target_has_more():
    before = make(SenderState())
    copying(before)
    sender = make(before.state)
    id_ = before.state.flight.header.id
    actions = tell(sender, ASSIGNED, target(None, Unfinished(1, id_, 2, bytes(16))), source(None))
    assert one(actions, say.BeginStream).resume_after == 1
    read = one(actions, say.ReadSlice)
    assert (read.sequence, read.digest, read.position) == (2, ready(1).digest, Position(0, 2))


def test_a_copy_does_not_go_on_while_a_slice_of_the_stream_that_was_cut_is_still_being_read():
    sender = make(SenderState())
    copying(sender)
    tell(sender, say.StreamLost(1, Gone()))
    assert tell(sender, say.Woke(), now=5.0) == []
    assert kinds(tell(sender, say.SliceRead(1, ready(3), Position(0, 6)), now=6.0)) == ["AskTarget"]
    id_ = sender.state.flight.header.id
    actions = tell(sender, target(None, Unfinished(1, id_, 1, bytes(16))), source(None), now=6.0)
    assert one(actions, say.ReadSlice).sequence == 2


def test_a_copy_whose_end_was_sent_reads_nothing_again():
    before = make(SenderState())
    copying(before)
    tell(before, say.SliceRead(1, None, Position(1, 0)), say.Durable(1, 2))
    sender = make(before.state)
    id_ = before.state.flight.header.id
    actions = tell(sender, ASSIGNED, target(None, Unfinished(1, id_, 2, bytes(16))), source(None))
    assert kinds(actions) == ["BeginStream", "StorePending", "SendEnd"]
    assert one(actions, say.SendEnd).digest == ready(2).digest


def test_a_copy_starts_again_at_a_target_that_lost_what_it_acked():
    before = make(SenderState())
    copying(before)
    actions = tell(make(before.state), ASSIGNED, target(None), source(None))
    assert one(actions, say.OpenPoint).number == 1


def test_lost_tracking_is_a_copy_of_what_differs_over_the_point_that_is_open():
    sender = make()
    actions = tell(sender, ASSIGNED, target(), source(), opened(whole=False))
    assert kinds(actions) == ["ClosePoint", "DropPending", "Persist", "BeginStream", "ReadSlice"]
    assert one(actions, say.ReadSlice).suppress
    assert one(actions, say.BeginStream).header.kind is Kind.RESYNC
    assert sender.view.phase is Phase.RESYNCHRONIZING


def test_what_a_copy_compared_and_found_equal_is_not_compared_again_after_a_cut():
    disks = (DiskGeometry("d1", 100_000 * CLUSTER),)
    sender = make(SenderState(1, FOUR, disks, recoverable=True, instant=90.0, trusted=True))
    tell(sender, ASSIGNED, target(), say.SourceKnown(FOUR, disks, FOUR), opened(whole=False, disks=disks))
    assert kinds(tell(sender, say.SliceRead(1, None, Position(0, 500)))) == ["ReadSlice"]  # not worth a sync
    actions = tell(sender, say.SliceRead(1, None, Position(0, 20_000)))
    assert kinds(actions) == ["Persist", "ReadSlice"]
    assert one(actions, say.Persist).state.flight.checkpoint == Checkpoint(position=Position(0, 20_000))
    tell(sender, say.SliceRead(1, None, Position(0, 20_500)), say.StreamLost(1, Gone()))
    tell(sender, say.SliceRead(1, None, Position(0, 20_600)))  # read for nobody
    actions = tell(sender, say.Woke(), target(), say.SourceKnown(FOUR, disks, FOUR), now=60.0)
    assert one(actions, say.ReadSlice).position == Position(0, 20_500)
    tell(sender, say.SliceRead(2, ready(1), Position(0, 20_600)))
    tell(sender, say.SliceRead(2, None, Position(0, 90_000)))
    # What is on its way counts first: its place is before what was found equal after it.
    actions = tell(sender, say.Durable(2, 1))
    assert one(actions, say.Persist).state.flight.checkpoint.position == Position(0, 20_600)


def test_a_target_that_is_behind_gets_what_differs():
    three = Committed(3, b"3" * 16)
    sender = make()
    assert one(tell(sender, ASSIGNED, target(three), source(), source()), say.FetchIndex).committed == three
    actions = tell(sender, say.IndexFetched(sound=True, disks=DISKS), source(index=three), opened())
    assert one(actions, say.BeginStream).header.parent == 3
    assert one(actions, say.ReadSlice).suppress


def test_an_added_disk_is_read_whole():
    actions = tell(make(), ASSIGNED, target(), source(), opened(disks=(*DISKS, DiskGeometry("d2", CLUSTER))))
    assert one(actions, say.ReadPoint).whole == {"d2"}


def test_a_newer_term_at_the_target_fences_until_a_newer_assignment():
    sender = make()
    assert kinds(tell(sender, ASSIGNED, target(term=2))) == ["DropSpool"]
    assert sender.view.phase is Phase.FENCED
    assert isinstance(sender.view.reason, OlderTerm)
    assert tell(sender, say.Woke(), say.SyncRequested(), ASSIGNED, now=1e6) == []
    assert kinds(tell(sender, say.Assigned(term=3, frequency=30.0))) == ["Persist", "AskTarget"]
    assert sender.view.phase is not Phase.FENCED


def test_an_assignment_of_an_older_term_fences():
    sender = make()
    sending(sender)
    assert kinds(tell(sender, say.Assigned(term=0, frequency=30.0))) == ["CloseStream", "DropSpool"]
    assert sender.view.phase is Phase.FENCED


def test_a_term_that_rose_while_a_cycle_waited_is_the_one_it_goes_on_in():
    sender = make()
    sending(sender)
    assert kinds(tell(sender, say.Assigned(term=2, frequency=30.0))) == ["Persist", "CloseStream", "AskTarget"]
    assert one(tell(sender, target()), say.BeginStream).header.term == 2


def test_paused_no_cycle_starts_and_one_that_is_spooled_is_finished():
    paused = say.Assigned(term=1, frequency=30.0, paused=True)
    idle = make()
    assert tell(idle, paused, say.SyncRequested(), now=1e6) == []
    assert idle.view.phase is Phase.PAUSED
    busy = make()
    sending(busy)
    tell(busy, paused, say.StreamLost(1, Gone()))
    assert kinds(tell(busy, say.Woke(), target(), now=5.0))[0] == "BeginStream"


def test_paused_a_copy_stops_and_goes_on_later():
    sender = make(SenderState())
    copying(sender)
    assert kinds(tell(sender, say.Assigned(term=1, frequency=30.0, paused=True))) == ["CloseStream"]
    assert tell(sender, say.SliceRead(1, None, Position(0, 6))) == []
    assert kinds(tell(sender, ASSIGNED)) == ["AskTarget"]


def test_a_point_that_opens_while_paused_is_given_back():
    sender = make()
    tell(sender, ASSIGNED, target(), source(), say.Assigned(term=1, frequency=30.0, paused=True))
    assert kinds(tell(sender, opened())) == ["ClosePoint", "DiscardPoint"]


@pytest.mark.parametrize("failures", [1, 3])
def test_a_target_that_does_not_answer_is_asked_again_after_a_growing_wait(failures):
    sender = make()
    tell(sender, ASSIGNED)
    for _ in range(failures - 1):
        tell(sender, say.TargetFailed(Gone()))
        tell(sender, say.Woke(), now=1e3)
        sender.handle(say.Woke(), 0.0)
    assert one(tell(sender, say.TargetFailed(Gone()), now=2e3), say.Wake).at == 2e3 + 2 ** (failures - 1)
    assert isinstance(sender.view.reason, Gone)


def test_a_target_without_space_is_tried_again_and_progress_clears_the_reason():
    sender = make()
    sending(sender)
    tell(sender, say.StreamLost(1, Full()))
    assert isinstance(sender.view.reason, Full)
    tell(sender, say.Woke(), target(), now=9.0)
    tell(sender, say.Durable(2, 1), now=9.0)
    assert sender.view.reason is None


def test_a_point_that_cannot_be_read_goes_back_and_a_new_one_is_opened_later():
    sender = make()
    tell(sender, ASSIGNED, target(), source(), opened())
    assert kinds(tell(sender, say.SourceFailed(Gone()))) == ["DropSpool", "DropPending", "DiscardPoint", "Wake"]
    assert kinds(tell(sender, say.Woke(), target(), source(), now=5.0)) == ["OpenPoint"]


def test_a_cycle_asked_for_now_does_not_wait_for_its_time():
    sender = make()
    sending(sender)
    tell(sender, say.CommitAcked(1, Committed(5, (1).to_bytes(16, "big"))), say.Applied(sound=True))
    assert kinds(tell(sender, say.SyncRequested(), now=1.0)) == ["AskSource"]


def test_a_cycle_asked_for_while_a_point_is_being_opened_is_one_of_a_later_instant():
    sender = make()
    tell(sender, ASSIGNED, target(), source())
    tell(sender, say.SyncRequested(), opened(), say.PointRead(()))
    tell(sender, say.CommitAcked(1, Committed(5, (1).to_bytes(16, "big"))))
    assert kinds(tell(sender, say.Applied(sound=True)))[-1] == "AskSource"


def test_an_ack_of_a_cycle_that_was_not_sent_is_not_believed():
    sender = make()
    sending(sender)
    actions = tell(sender, say.CommitAcked(1, Committed(9, b"9" * 16)))
    assert kinds(actions) == ["CloseStream", "Wake"]


def test_a_restored_state_folder_that_missed_a_copys_end_does_not_trust_its_index():
    copy = make(SenderState())
    copying(copy)
    flight = copy.state.flight
    assert isinstance(flight, Flight)
    sender = make(copy.state)
    actions = tell(sender, ASSIGNED, target(flight.named))
    state = one(actions, say.Persist).state
    assert (state.committed, state.trusted) == (flight.named, False)


def test_a_refused_cycle_of_disks_the_vm_still_has_waits_for_the_grant():
    sender = make()
    sending(sender)
    tell(sender, say.StreamLost(1, NotGranted("disk d1 has more")))
    assert kinds(tell(sender, say.Woke(), now=100.0)) == ["AskTarget"]
    assert kinds(tell(sender, target(), now=100.0)) == ["AskSource"]
    assert "BeginStream" in kinds(tell(sender, source(), now=100.0))


@pytest.mark.parametrize("disks", [(DiskGeometry("d1", 4 * CLUSTER),), (DiskGeometry("d2", 8 * CLUSTER),)])
def test_a_refused_cycle_of_disks_that_no_grant_will_cover_leaves_its_changes_to_the_next_one(disks):
    sender = make()
    sending(sender)
    tell(sender, say.StreamLost(1, NotGranted("it is not in it")))
    tell(sender, say.Woke(), now=100.0)
    answer = tell(sender, target(), say.SourceKnown(FOUR, disks, FOUR), now=100.0)
    assert {"DropSpool", "DropPending", "DiscardPoint", "AskSource"} <= set(kinds(answer))
    answer = tell(sender, say.SourceKnown(FOUR, disks, FOUR), now=100.0)
    assert kinds(answer) == ["OpenPoint"]
