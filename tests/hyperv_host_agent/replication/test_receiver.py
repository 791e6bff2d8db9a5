from dataclasses import replace

import pytest

from hyperv_host_agent.replication import receiving as say
from hyperv_host_agent.replication.cycle import (
    Batch,
    Committed,
    CycleHeader,
    DiskGeometry,
    Kind,
    TargetState,
    Unfinished,
    Wanted,
)
from hyperv_host_agent.replication.frames import Damaged, InvalidFrame, NotGranted, TakenOver, WrongPlace
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.replication.receiver import SYNC_SECONDS, Receiver
from twinsite.digest import CHAIN_START, chain
from twinsite.errors import Exhausted
from twinsite.extents import CLUSTER, Run

DISKS = (DiskGeometry("d1", 100 * CLUSTER),)
HEADER = CycleHeader("vm", b"i" * 16, 5, 4, 2, Kind.DELTA, 0.0, "crash", DISKS, b"", b"p" * 16)
STATE = TargetState(2, Committed(4, b"p" * 16), None)
GRANTED = say.Granted(2, DISKS)


class Full(Exhausted):
    public = "full"


def began(stream=1, header=HEADER, resume_after=0, granted=GRANTED):
    return say.Began(stream, header, resume_after, granted)


def batch(sequence, stream=1, size=10):
    made = Batch(sequence, 0, (sequence,), (size,), bytes(16), (), bytes(size))
    return say.BatchReceived(stream, made, (b"head", made.payload))


def digest_after(count, size=10):
    digest = CHAIN_START
    for _ in range(count):
        digest = chain(digest, b"head", bytes(size))
    return digest


def receiving(state=STATE, header=HEADER, **kwargs):
    receiver = Receiver("vm", state, **kwargs)
    receiver.handle(began(header=header), 0.0)
    receiver.handle(say.Begun(1, state), 0.0)
    return receiver


def only_error(actions):
    (refuse,) = actions
    assert isinstance(refuse, say.Refuse)
    return refuse.error


def test_a_cycle_is_acked_only_after_it_is_committed():
    receiver = receiving()
    assert receiver.handle(batch(1), 0.0) == [say.Put(batch(1).batch, digest_after(1))]
    committed = Committed(5, b"i" * 16)
    assert receiver.handle(say.EndReceived(1, 1, digest_after(1)), 0.1) == [
        say.Sync(),
        say.Commit(),
        say.AckCommitted(1, committed),
    ]
    assert receiver.state.committed == committed


def test_an_empty_cycle_is_a_point_too():
    assert say.Commit() in receiving().handle(say.EndReceived(1, 0, CHAIN_START), 0.0)


def test_batches_are_acked_only_once_they_are_synced_after_enough_bytes():
    receiver = receiving(sync_bytes=30)
    assert receiver.handle(batch(1), 0.0) == [say.Put(batch(1).batch, digest_after(1))]
    assert receiver.handle(batch(2), 0.0) == [say.Put(batch(2).batch, digest_after(2))]
    assert receiver.handle(batch(3), 0.0)[1:] == [say.Sync(), say.AckDurable(1, 3)]


def test_batches_are_acked_after_a_while_even_if_few():
    receiver = receiving()
    receiver.handle(batch(1), 5.0)
    assert receiver.handle(say.Ticked(), 5.0 + SYNC_SECONDS / 2) == []
    assert receiver.handle(say.Ticked(), 5.0 + SYNC_SECONDS) == [say.Sync(), say.AckDurable(1, 1)]
    assert receiver.handle(say.Ticked(), 9.0) == []


def test_another_digest_commits_nothing_and_drops_what_came():
    receiver = receiving()
    receiver.handle(batch(1), 0.0)
    abandon, refuse = receiver.handle(say.EndReceived(1, 1, b"x" * 16), 0.0)
    assert abandon == say.Abandon()
    assert isinstance(refuse, say.Refuse)
    assert isinstance(refuse.error, Damaged)
    assert receiver.state == STATE


def test_an_end_that_counts_otherwise_is_refused():
    receiver = receiving()
    receiver.handle(batch(1), 0.0)
    assert isinstance(only_error(receiver.handle(say.EndReceived(1, 2, digest_after(1)), 0.0)), InvalidFrame)


def test_after_a_refusal_nothing_of_the_stream_counts():
    receiver = receiving()
    assert isinstance(only_error(receiver.handle(batch(7), 0.0)), InvalidFrame)
    assert receiver.handle(batch(1), 0.0) == []
    assert receiver.handle(say.EndReceived(1, 0, CHAIN_START), 0.0) == []


def test_a_newer_term_is_stored_before_anything_is_received():
    actions = Receiver("vm", STATE).handle(began(header=replace(HEADER, term=3), granted=say.Granted(3, DISKS)), 0.0)
    assert actions[0] == say.SetTerm(3)
    assert isinstance(actions[1], say.Begin)


def test_an_older_term_is_refused_with_the_newer_one():
    error = only_error(Receiver("vm", replace(STATE, term=3)).handle(began(), 0.0))
    assert isinstance(error, OlderTerm)
    assert error.current == 3


def test_a_raised_term_ends_the_stream_of_the_old_owner():
    receiver = receiving()
    refuse, term = receiver.handle(say.TermRaised(3), 0.0)
    assert isinstance(refuse, say.Refuse)
    assert isinstance(refuse.error, OlderTerm)
    assert term == say.SetTerm(3)
    assert isinstance(only_error(receiver.handle(began(stream=2), 0.0)), OlderTerm)
    assert receiver.handle(say.TermRaised(3), 0.0) == []
    with pytest.raises(OlderTerm):
        receiver.handle(say.TermRaised(2), 0.0)


def test_a_cycle_of_another_vm_or_term_than_the_grant_is_refused():
    receiver = Receiver("vm", STATE)
    assert isinstance(only_error(receiver.handle(began(header=replace(HEADER, vm_id="other")), 0.0)), NotGranted)
    assert isinstance(only_error(receiver.handle(began(granted=say.Granted(3, DISKS)), 0.0)), NotGranted)


def test_a_newer_stream_takes_over():
    receiver = receiving()
    refuse, begin = receiver.handle(began(stream=2), 0.0)
    assert isinstance(refuse, say.Refuse)
    assert (refuse.stream, type(refuse.error)) == (1, TakenOver)
    assert begin == say.Begin(2, HEADER, 0)
    assert receiver.handle(batch(1, stream=1), 0.0) == []


def test_what_relies_on_a_seed_is_refused_by_a_target_that_awaits_it():
    restored = replace(STATE, awaiting_seed=True)
    compared = replace(HEADER, compared=True)
    refused = only_error(Receiver("vm", restored).handle(began(header=compared), 0.0))
    assert isinstance(refused, WrongPlace)
    assert Receiver("vm", restored).handle(began(), 0.0) == [say.Begin(1, HEADER, 0)]
    assert Receiver("vm", STATE).handle(began(header=compared), 0.0) == [say.Begin(1, compared, 0)]


def test_a_stream_that_is_not_entitled_takes_nothing_over():
    receiver = receiving()
    refuse = only_error(receiver.handle(began(stream=2, header=replace(HEADER, number=9, parent=8)), 0.0))
    assert isinstance(refuse, WrongPlace)
    assert receiver.handle(batch(1), 0.0)


def test_an_answer_to_open_stays_true_because_it_ends_older_streams():
    receiver = receiving()
    refuse, answer = receiver.handle(say.Asked(2, STATE), 0.0)
    assert isinstance(refuse, say.Refuse)
    assert answer == say.Answer(2, STATE)
    assert receiver.handle(say.EndReceived(1, 0, CHAIN_START), 0.0) == []


def test_a_cycle_goes_on_after_what_is_durable_with_the_stores_digest():
    state = replace(STATE, unfinished=Unfinished(5, b"i" * 16, 7, digest_after(7)))
    receiver = Receiver("vm", state)
    assert receiver.handle(began(resume_after=5), 0.0) == [say.Begin(1, HEADER, 5)]
    cut = replace(STATE, unfinished=Unfinished(5, b"i" * 16, 5, digest_after(5)))
    assert receiver.handle(say.Begun(1, cut), 0.0) == []
    assert receiver.handle(batch(6), 0.0) == [say.Put(batch(6).batch, digest_after(6))]
    assert say.Commit() in receiver.handle(say.EndReceived(1, 6, digest_after(6)), 0.0)


def test_a_full_store_refuses_the_stream_and_keeps_what_is_durable():
    receiver = receiving()
    receiver.handle(batch(1), 0.0)
    kept = replace(STATE, unfinished=Unfinished(5, b"i" * 16, 1, digest_after(1)))
    assert isinstance(only_error(receiver.handle(say.StoreFailed(Full(), kept), 0.0)), Full)
    assert receiver.state == kept
    assert receiver.handle(began(stream=2, resume_after=1), 0.0) == [say.Begin(2, HEADER, 1)]


def test_a_stream_that_closes_leaves_the_next_one_alone():
    receiver = receiving()
    receiver.handle(began(stream=2), 0.0)
    receiver.handle(say.Begun(2, STATE), 0.0)
    assert receiver.handle(say.StreamClosed(1), 0.0) == []
    assert receiver.handle(batch(1, stream=2), 0.0)
    assert receiver.handle(say.StreamClosed(2), 0.0) == []
    assert receiver.handle(batch(2, stream=2), 0.0) == []


def test_what_the_store_says_after_a_commit_is_what_is_answered():
    receiver = receiving(replace(STATE, wanted=(Wanted("d1", Run(3, 1)),)))
    receiver.handle(say.EndReceived(1, 0, CHAIN_START), 0.0)
    stored = TargetState(2, Committed(5, b"i" * 16), None)
    assert receiver.handle(say.Stored(stored), 0.0) == []
    assert receiver.state == stored


def test_what_the_scrub_found_since_is_answered_too():
    found = replace(STATE, wanted=(Wanted("d1", Run(7, 2)),))
    assert receiving().handle(say.Asked(3, found), 0.0)[-1] == say.Answer(3, found)


def test_a_placeholder_is_an_initial_cycle_without_batches():
    header = replace(HEADER, number=1, parent=0, parent_id=b"", kind=Kind.INITIAL, consistency="none", placeholder=True)
    empty = TargetState(2, None, None)
    receiver = receiving(empty, header)
    assert isinstance(only_error(receiver.handle(batch(1), 0.0)), InvalidFrame)
    assert say.Commit() in receiving(empty, header).handle(say.EndReceived(1, 0, CHAIN_START), 0.0)
    delta = replace(HEADER, placeholder=True)
    assert isinstance(only_error(Receiver("vm", STATE).handle(began(header=delta), 0.0)), InvalidFrame)
