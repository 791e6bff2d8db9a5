import pytest

from hyperv_host_agent.replication.ownership import OlderTerm, admit
from hyperv_host_agent.replication.schedule import Timing, backoff, due


def test_a_newer_term_is_stored_first_and_the_same_one_is_not():
    assert admit(3, 4)
    assert not admit(3, 3)


def test_an_older_term_is_refused_with_the_newer_one():
    with pytest.raises(OlderTerm, match="term 2 is over: the VM is in term 3"):
        admit(3, 2)


def test_the_next_cycle_is_due_a_period_after_the_instant_of_the_last():
    assert due(100.0, 30.0, 110.0) == 130.0


def test_a_late_cycle_is_due_at_once_and_not_made_up():
    assert due(100.0, 30.0, 170.0) == 170.0


def test_failures_back_off_to_half_a_minute():
    assert [backoff(n, 300) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_frequent_cycle_waits_no_longer_than_its_period():
    assert [backoff(n, 5) for n in range(1, 6)] == [1, 2, 4, 5, 5]
    assert backoff(9, 0.5) == 1


def test_what_made_a_cycle_late_is_named():
    timing = Timing(source=1, compress=2, network=30, target=3)
    assert timing.late(30) == "network"
    assert timing.late(36) == ""
