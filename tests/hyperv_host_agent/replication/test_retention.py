import pytest

from hyperv_host_agent.replication.retention import HOUR, KeptPoint, keep


def every(minutes, count, *, start=0.0):
    return [KeptPoint(n + 1, start + n * minutes * 60, recoverable=True) for n in range(count)]


def test_without_additional_points_only_the_newest_stays():
    assert keep(every(5, 100), additional=0) == [100]


def test_additional_points_are_the_first_of_the_newest_hours():
    assert keep(every(20, 10), additional=2) == [4, 7, 10]  # three to an hour; hours start at 1, 4, 7, 10


def test_a_point_that_was_chosen_stays_while_newer_ones_come():
    kept = set(keep(every(20, 8), additional=3))
    later = set(keep([point for point in every(20, 9) if point.cycle in kept or point.cycle == 9], additional=3))
    assert kept - {8} <= later


def test_an_outage_of_days_costs_no_point():
    before = every(20, 9)
    after = KeptPoint(10, 72 * HOUR, recoverable=True)
    assert keep([*before, after], additional=3) == [1, 4, 7, 10]


def test_a_pinned_point_stays():
    points = every(20, 9)
    points[1] = KeptPoint(2, points[1].instant, recoverable=True, pinned=True)
    assert keep(points, additional=0) == [2, 9]


def test_a_copy_is_no_recovery_point_but_the_base_of_the_next():
    points = [*every(20, 3), KeptPoint(4, 3600.0, recoverable=False)]
    assert keep(points, additional=0) == [3, 4]
    assert keep(points[-1:], additional=5) == [4]


@pytest.mark.parametrize("additional", [0, 3])
def test_nothing_to_keep(additional):
    assert keep([], additional=additional) == []
