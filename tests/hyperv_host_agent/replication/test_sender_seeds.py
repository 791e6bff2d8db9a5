"""A sender whose target lacks something: the fingerprints it would compare with, a whole base, single clusters."""

from dataclasses import replace

from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication.cycle import Committed, Kind, Wanted
from hyperv_host_agent.replication.fetch import RETRY_SECONDS
from hyperv_host_agent.replication.progress import Phase
from hyperv_host_agent.replication.sender import LOOK_SECONDS
from hyperv_host_agent.replication.state import SenderState, dump, load
from tests.hyperv_host_agent.replication.senders import (
    ASSIGNED,
    DISKS,
    FOUR,
    STATE,
    Gone,
    kinds,
    make,
    named,
    one,
    opened,
    source,
    target,
    tell,
)
from twinsite.extents import Run

OFFLINE = replace(ASSIGNED, offline=True)
UNTRUSTED = replace(STATE, trusted=False)
ONE = named(1, after=0)


def awaiting(committed=ONE, **kwargs):
    return target(committed, awaiting_seed=True, **kwargs)


def placeholder():
    """A sender whose placeholder was committed."""
    sender = make(SenderState())
    tell(sender, OFFLINE, target(None), source(None), opened())
    tell(sender, say.CommitAcked(1, ONE))
    return sender


def delta(sender, number, committed, now, *answers):
    """What a cycle of changes orders to be read, and the state after its commit."""
    actions = tell(sender, say.Woke(), *answers, source(committed, index=None), now=now)
    actions = tell(sender, opened(), now=now) if "OpenPoint" in kinds(actions) else actions
    read = one(actions, say.ReadPoint)
    tell(sender, say.PointRead(()), say.CommitAcked(number, Committed(read.header.number, read.header.id)), now=now)
    return read, one(tell(sender, say.Applied(sound=False), now=now), say.Persist).state


def test_an_index_that_is_not_trusted_is_had_from_the_target_before_a_point_is_opened():
    sender = make(UNTRUSTED)
    actions = tell(sender, ASSIGNED, target(), source())
    assert one(actions, say.FetchIndex).committed == FOUR
    assert "OpenPoint" not in kinds(actions)
    assert "the target sends them" in sender.view.note
    state = one(tell(sender, say.IndexFetched(sound=True, disks=DISKS)), say.Persist).state
    assert (state.trusted, state.disks) == (True, DISKS)


def test_after_fingerprints_were_had_lost_tracking_is_a_comparison_and_not_a_copy():
    sender = make(replace(SenderState(), term=1))
    tell(sender, ASSIGNED, target(), source(None, index=None), source(None, index=None))
    tell(sender, say.IndexFetched(sound=True, disks=DISKS), source(None), opened(whole=False))
    assert sender.state.flight.header.kind is Kind.RESYNC
    assert sender.state.flight.suppressed


def test_a_disk_the_target_does_not_have_is_copied_whole_also_when_the_rest_is_compared():
    sender = make(replace(SenderState(), term=1))
    tell(sender, ASSIGNED, target(), source(None, index=None), source(None, index=None))
    tell(sender, say.IndexFetched(sound=True, disks=()), source(None))
    actions = tell(sender, opened(whole=False))
    assert one(actions, say.ReadSlice).whole == frozenset()  # nothing is known of the disks of that cycle
    sender = make(replace(SenderState(), term=1))
    tell(sender, ASSIGNED, target(), source(None, index=None), source(None, index=None))
    tell(sender, say.IndexFetched(sound=True, disks=(replace(DISKS[0], id="d0"),)), source(None))
    assert one(tell(sender, opened(whole=False)), say.ReadSlice).whole == {"d1"}


def test_a_target_that_says_no_fingerprints_is_asked_again_later_and_not_with_each_cycle():
    sender = make(UNTRUSTED)
    tell(sender, ASSIGNED, target(), source())
    actions = tell(sender, say.IndexFetched(sound=False), source(index=None))
    assert not one(tell(sender, opened()), say.ReadPoint).suppress
    tell(sender, say.PointRead(()), say.CommitAcked(1, named(1)), say.Applied(sound=False))
    actions = tell(sender, say.SyncRequested(), source(named(1), index=None), now=1.0)
    assert "FetchIndex" not in kinds(actions)
    tell(sender, opened(), say.PointRead(()), say.CommitAcked(2, named(2)), say.Applied(sound=False), now=1.0)
    late = RETRY_SECONDS + 1
    actions = tell(sender, say.Woke(), target(named(2)), source(named(2), index=None), now=late)
    assert one(actions, say.FetchIndex).committed == named(2)


def test_fingerprints_that_do_not_come_do_not_hold_replication_up_for_ever():
    sender = make(UNTRUSTED)
    tell(sender, ASSIGNED)
    now = 0.0
    for _ in range(3):
        assert "FetchIndex" in kinds(tell(sender, target(), source(), now=now))
        tell(sender, say.TargetFailed(Gone()), now=now)
        now += 10.0
        tell(sender, say.Woke(), now=now)
    assert "OpenPoint" in kinds(tell(sender, target(), source(), now=now))


def test_a_first_copy_that_comes_on_media_is_a_placeholder_without_content():
    sender = make(SenderState())
    actions = tell(sender, OFFLINE, target(None), source(None), opened())
    assert kinds(actions) == [
        "ClosePoint",
        "DropPending",
        "Persist",
        "BeginStream",
        "StorePending",
        "Persist",
        "SendEnd",
    ]
    assert one(actions, say.BeginStream).header.placeholder
    assert one(actions, say.SendEnd).batches == 0
    assert load(dump(sender.state)) == sender.state
    actions = tell(sender, say.CommitAcked(1, ONE))
    assert "ApplyPending" not in kinds(actions)  # an index of it would say that all is zero
    assert not sender.state.trusted
    assert kinds(actions)[-1] == "AskTarget"
    assert sender.view.phase is Phase.INITIAL


def test_changes_flow_while_the_seed_is_on_its_way_and_are_no_recovery_points():
    sender = placeholder()
    read, state = delta(sender, 1, ONE, 0.0, awaiting())
    assert (read.header.kind, read.suppress) == (Kind.DELTA, False)
    assert (state.instant, state.recoverable, state.trusted) == (0.0, False, False)
    assert sender.view.phase is Phase.INITIAL


def test_once_the_seed_is_there_fingerprints_are_had_and_the_next_cycle_is_a_recovery_point():
    sender = placeholder()
    two = Committed(2, delta(sender, 2, ONE, 0.0, awaiting())[0].header.id)
    actions = tell(sender, say.Woke(), target(two, seed_after=2), source(two, index=None), now=30.0)
    assert one(actions, say.FetchIndex).committed == two
    tell(sender, say.IndexFetched(sound=True, disks=DISKS), source(two, index=two), now=30.0)
    read = one(tell(sender, opened(), now=30.0), say.ReadPoint)
    assert read.suppress
    tell(sender, say.PointRead(()), say.CommitAcked(3, Committed(3, read.header.id)), now=31.0)
    state = one(tell(sender, say.Applied(sound=True), now=31.0), say.Persist).state
    assert (state.recoverable, state.trusted, state.instant) == (True, True, 100.0)


def test_a_cycle_that_is_older_than_the_seed_by_its_number_is_followed_at_once():
    sender = placeholder()
    two = Committed(2, delta(sender, 2, ONE, 0.0, awaiting())[0].header.id)
    tell(sender, say.Woke(), target(two, seed_after=3), source(two, index=None), now=30.0)
    tell(sender, say.IndexFetched(sound=True, disks=DISKS), source(two, index=two), now=30.0)
    read = one(tell(sender, opened(), now=30.0), say.ReadPoint)
    tell(sender, say.PointRead(()), say.CommitAcked(3, Committed(3, read.header.id)), now=31.0)
    actions = tell(sender, say.Applied(sound=True), now=31.0)
    assert not one(actions, say.Persist).state.recoverable
    assert kinds(actions)[-1] == "AskTarget"


def test_with_the_seed_on_its_way_and_changes_lost_nothing_is_copied():
    sender = placeholder()
    tell(sender, awaiting(), source(ONE, index=None))
    actions = tell(sender, opened(whole=False))
    assert kinds(actions) == ["ClosePoint", "DiscardPoint", "Wake"]
    assert one(actions, say.Wake).at == 30.0
    assert "seed" in sender.view.note
    assert kinds(tell(sender, say.Woke(), now=30.0)) == ["AskTarget"]


def test_a_seed_that_was_called_off_is_a_copy_of_everything():
    sender = placeholder()
    tell(sender, ASSIGNED, awaiting(), source(ONE, index=None))
    read = one(tell(sender, opened()), say.ReadSlice)
    assert (read.header.kind, read.suppress) == (Kind.RESYNC, False)


def test_a_target_that_awaits_a_seed_again_makes_the_index_worthless():
    actions = tell(make(), OFFLINE, target(awaiting_seed=True), source(), opened())
    assert not one(actions, say.ReadPoint).suppress


def test_wanted_clusters_are_forced_and_the_target_asked_again_whether_they_came():
    wanted = (Wanted("d1", Run(3, 100)), Wanted("gone", Run(0, 1)))
    sender = make()
    actions = tell(sender, ASSIGNED, target(wanted=wanted), source(), opened())
    assert one(actions, say.ReadPoint).forced == (Wanted("d1", Run(3, 5)),)
    tell(sender, say.PointRead(()), say.CommitAcked(1, named(1)))
    assert one(tell(sender, say.Applied(sound=True)), say.Persist).state.recoverable
    assert kinds(tell(sender, say.Woke(), now=30.0)) == ["AskTarget"]


def lacking(sender, run, number, committed, *, seconds, seed_after=0):
    """A cycle of a target that wants `run`: what of it is read, whether the cycle is a point, and what comes next."""
    now = 1000.0 * number
    disks = (replace(DISKS[0], size=1 << 44),)
    said = target(committed, wanted=(Wanted(DISKS[0].id, run),), seed_after=seed_after)
    actions = tell(sender, say.Woke(), said, source(committed, index=committed), opened(disks=disks), now=now)
    read = one(actions, say.ReadPoint)
    assert read.header.number == number
    (forced,) = read.forced
    assert forced.run.start == run.start
    done = Committed(number, read.header.id)
    tell(sender, say.PointRead(()), say.CommitAcked(number - 4, done), now=now + seconds)
    actions = tell(sender, say.Applied(sound=True), now=now + seconds)
    return forced.run.count, one(actions, say.Persist).state.recoverable, kinds(actions)[-1], done


def test_a_gibibyte_that_is_wanted_comes_in_slices_that_delay_no_point():
    sender, run, committed, counts = make(), Run(0, 16384), FOUR, []
    tell(sender, replace(ASSIGNED, frequency=4.0))
    for number, seconds in enumerate((1.0, 1.0, 9.0, 9.0, 3.0, 1.0), 5):
        count, recoverable, following, committed = lacking(sender, run, number, committed, seconds=seconds)
        assert recoverable
        assert following == "AskTarget"  # at once: it says what is left
        counts.append(count)
        run = Run(run.start + count, run.count - count)
    assert counts == [1024, 2048, 4096, 2048, 1024, 1024]
    while run.count:
        number += 1
        count, recoverable, following, committed = lacking(sender, run, number, committed, seconds=1.0)
        run = Run(run.start + count, run.count - count)
    assert following != "AskTarget"
    assert number < 20


def test_while_slices_of_a_seed_are_on_their_way_no_cycle_is_a_recovery_point():
    sender = make()
    tell(sender, replace(ASSIGNED, frequency=4.0))
    _, recoverable, _, committed = lacking(sender, Run(0, 1500), 5, FOUR, seconds=1.0, seed_after=2)
    assert not recoverable
    assert lacking(sender, Run(1024, 476), 6, committed, seconds=1.0, seed_after=2)[1]


def test_what_was_wanted_only_after_the_cycle_was_planned_is_not_in_it():
    sender = make()
    tell(sender, ASSIGNED, target(), source(), opened(), say.PointRead(()))
    tell(sender, say.StreamLost(1, Gone()))
    tell(sender, say.Woke(), target(wanted=(Wanted("d1", Run(3, 1)),)), now=5.0)
    tell(sender, say.CommitAcked(2, named(1)), now=5.0)
    assert not one(tell(sender, say.Applied(sound=True), now=5.0), say.Persist).state.recoverable


def test_the_target_is_asked_now_and_then_what_it_wants():
    sender = make()
    tell(sender, replace(ASSIGNED, frequency=1.0), target(), source(), opened(), say.PointRead(()))
    tell(sender, say.CommitAcked(1, named(1)), say.Applied(sound=True))
    assert kinds(tell(sender, say.Woke(), now=1.0)) == ["AskSource"]
    tell(sender, source(named(1), index=named(1)), opened(), say.PointRead(()), say.CommitAcked(2, named(2)), now=1.0)
    tell(sender, say.Applied(sound=True), now=1.0)
    assert kinds(tell(sender, say.Woke(), now=LOOK_SECONDS + 1)) == ["AskTarget"]
