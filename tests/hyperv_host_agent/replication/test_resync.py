import pytest

from hyperv_host_agent.replication.cycle import (
    Committed,
    CycleHeader,
    DiskGeometry,
    Kind,
    TargetState,
    Unfinished,
    Wanted,
)
from hyperv_host_agent.replication.resync import Fate, Plan, added, adopt, fate, forced, lasts, plan
from hyperv_host_agent.replication.state import Checkpoint, Flight, SenderState
from twinsite.extents import CLUSTER, Run

FOUR, FIVE, OTHER = Committed(4, b"4" * 16), Committed(5, b"5" * 16), Committed(4, b"x" * 16)
DISKS = (DiskGeometry("d1", 1024), DiskGeometry("d2", 2048))
STATE = SenderState(term=1, committed=FOUR, disks=DISKS, recoverable=True, trusted=True)


def flight(checkpoint=None, **kwargs):
    header = CycleHeader("vm", FIVE.id, 5, 4, 1, Kind.DELTA, 0.0, "crash", DISKS, b"", FOUR.id)
    return Flight(header, checkpoint, suppressed=kwargs.pop("suppressed", False), **kwargs)


def target(committed=FOUR, durable=0, id_=FIVE.id):
    return TargetState(1, committed, Unfinished(5, id_, durable, bytes(16)) if durable else None)


def test_a_first_cycle_is_a_whole_copy():
    assert plan(SenderState(), None, whole=True) == Plan(Kind.INITIAL, suppress=False)


def test_where_all_agree_changes_are_enough_and_unchanged_ones_are_left_out():
    assert plan(STATE, FOUR, whole=True) == Plan(Kind.DELTA, suppress=True)


def test_with_tracking_lost_everything_is_read_and_only_differences_sent():
    assert plan(STATE, FOUR, whole=False) == Plan(Kind.RESYNC, suppress=True)


@pytest.mark.parametrize("anchor", [None, Committed(3, b"3" * 16), OTHER])
def test_changes_counted_from_another_cycle_than_the_targets_are_not_enough(anchor):
    assert plan(STATE, anchor, whole=True) == Plan(Kind.RESYNC, suppress=True)


@pytest.mark.parametrize("there", [FIVE, OTHER, Committed(3, b"3" * 16), None])
def test_with_another_cycle_at_the_target_the_index_suppresses_nothing(there):
    adopted = adopt(STATE, target(there))
    assert adopted.committed == there
    assert not adopted.trusted
    assert not plan(adopted, FOUR, whole=True).suppress


def test_a_target_that_is_ahead_gets_changes_if_the_source_counts_from_there():
    assert plan(adopt(STATE, target(FIVE)), FIVE, whole=True) == Plan(Kind.DELTA, suppress=False)


def test_a_target_as_believed_changes_nothing():
    assert adopt(STATE, target()) is STATE


def test_a_cycle_the_target_has_committed_has_arrived():
    assert fate(flight(), target(FIVE), None) is Fate.ARRIVED


def test_a_spooled_cycle_goes_on_from_what_is_durable():
    assert fate(flight(), target(durable=3), 3) is Fate.GOES_ON
    assert fate(flight(), target(durable=3), 0) is Fate.GOES_ON


def test_a_spooled_cycle_is_given_up_when_its_process_died():
    assert fate(flight(), target(durable=3), None) is Fate.GIVEN_UP


def test_a_cycle_is_given_up_when_the_target_lost_what_it_acked_or_has_another_parent():
    assert fate(flight(), target(durable=2), 3) is Fate.GIVEN_UP
    assert fate(flight(), target(durable=3, id_=b"y" * 16), 1) is Fate.GIVEN_UP
    assert fate(flight(), target(OTHER), 0) is Fate.GIVEN_UP
    assert fate(flight(), target(None), 0) is Fate.GIVEN_UP


def test_a_copy_goes_on_from_its_checkpoint_also_after_a_restart():
    assert fate(flight(Checkpoint(3)), target(durable=5), None) is Fate.GOES_ON
    assert fate(flight(Checkpoint(3)), target(durable=2), None) is Fate.GIVEN_UP
    assert fate(flight(Checkpoint()), target(), None) is Fate.GOES_ON


def test_an_added_disk_is_sent_whole():
    assert added(STATE, (*DISKS, DiskGeometry("d3", 512))) == {"d3"}
    assert added(STATE, DISKS[:1]) == frozenset()


def test_a_copy_ends_with_the_index_it_relies_on_and_with_nothing_else():
    assert lasts(flight(checkpoint=Checkpoint()), None, None)
    copy = flight(suppressed=True, checkpoint=Checkpoint())
    assert lasts(copy, FOUR, None)
    assert not lasts(copy, None, None)
    assert not lasts(copy, FIVE, None)


def test_with_its_seed_on_the_way_changes_flow_unsuppressed():
    assert plan(STATE, FOUR, whole=True, offline=True, awaiting=True) == Plan(Kind.DELTA, suppress=False)


def test_with_its_seed_on_the_way_and_changes_not_known_nothing_is_sent():
    assert plan(STATE, FOUR, whole=False, offline=True, awaiting=True) is None
    assert plan(STATE, FIVE, whole=True, offline=True, awaiting=True) is None


def test_a_seed_that_was_called_off_is_a_whole_copy_over_the_network():
    assert plan(STATE, FOUR, whole=True, offline=False, awaiting=True) == Plan(Kind.RESYNC, suppress=False)


def test_a_first_cycle_whose_content_comes_on_media_is_a_placeholder():
    assert plan(SenderState(), None, whole=True, offline=True) == Plan(Kind.INITIAL, suppress=False, placeholder=True)


def test_wanted_clusters_are_asked_of_the_disks_as_they_are():
    wanted = (Wanted("d1", Run(3, 10)), Wanted("d1", Run(20, 1)), Wanted("gone", Run(0, 1)), Wanted("d2", Run(0, 2)))
    disks = (DiskGeometry("d1", 8 * CLUSTER), DiskGeometry("d2", 512))
    assert forced(wanted, disks) == (Wanted("d1", Run(3, 5)), Wanted("d2", Run(0, 1)))
