import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinsite.retention import HOUR, KeptPoint, Tier, keep


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


TIERS = (Tier(0, HOUR), Tier(300, 24 * HOUR), Tier(HOUR, 7 * 24 * HOUR), Tier(24 * HOUR, 90 * 24 * HOUR))


def lived(points, *, additional=0, tiers=TIERS, frequency=30.0):
    """What is left when retention ran after every point."""
    left = []
    for point in points:
        left.append(point)
        kept = set(keep(left, additional=additional, tiers=tiers, frequency=frequency))
        left = [one for one in left if one.cycle in kept]
    return left


def test_tiers_thin_out_what_gets_older():
    left = lived([KeptPoint(n + 1, n * 30.0, recoverable=True) for n in range(2 * 2880)])  # two days
    ages = [left[-1].instant - point.instant for point in left]
    assert sum(age < HOUR for age in ages) == 120
    assert 274 <= sum(HOUR <= age < 24 * HOUR for age in ages) <= 278
    assert 23 <= sum(age >= 24 * HOUR for age in ages) <= 25
    assert left[0].cycle == 1


def test_an_outage_of_days_costs_no_point_of_any_tier():
    before = lived([KeptPoint(n + 1, n * 30.0, recoverable=True) for n in range(2880)])
    after = KeptPoint(5000, 2880 * 30.0 + 48 * HOUR, recoverable=True)
    kept = keep([*before, after], additional=0, tiers=TIERS, frequency=30.0)
    assert len(kept) >= len(before) - 1  # one more in the newest hour pushes the oldest of it out
    assert {point.cycle for point in before[-119:]} <= set(kept)


def test_points_asked_for_in_between_cost_none():
    points = [KeptPoint(n + 1, n * 30.0, recoverable=True) for n in range(120)]
    points += [KeptPoint(121 + n, 119 * 30.0 + n * 0.1, recoverable=True) for n in range(200)]
    assert keep(points, additional=0, tiers=TIERS[:1], frequency=30.0) == [point.cycle for point in points]


def test_a_source_whose_clock_was_ahead_for_a_while_does_not_fill_the_tiers_with_it():
    year = 365 * 24 * HOUR
    ahead = [KeptPoint(n, year + n * 300.0, recoverable=True) for n in range(1, 500)]
    later = [KeptPoint(500 + n, n * 300.0, recoverable=True) for n in range(400)]
    left = {point.cycle for point in lived([*ahead, *later], tiers=TIERS[:2], frequency=300.0)}
    assert left >= {point.cycle for point in later[-288:]}
    assert not left & {point.cycle for point in ahead}


gaps = st.lists(st.one_of(st.floats(1, 120), st.floats(600, 90_000), st.floats(-4000, -1)), min_size=1, max_size=120)


@given(
    gaps,
    st.integers(0, 24),
    st.lists(st.builds(Tier, st.sampled_from([0, 60, 300, 3600]), st.sampled_from([600, 7200, 90_000])), max_size=3),
    st.sets(st.integers(1, 120)),
    st.sets(st.integers(1, 120)),
)
@settings(max_examples=150)
def test_choices_are_stable_and_what_must_stay_stays(gaps, additional, tiers, pinned, copies):
    points, instant = [], 1_700_000_000.0
    for number, gap in enumerate(gaps, 1):
        instant += gap
        points.append(KeptPoint(number, instant, number not in copies, number in pinned))
    left = []
    for point in points:
        before = left
        left = [*before, point]
        kept = keep(left, additional=additional, tiers=tiers, frequency=30.0)
        assert kept == sorted(set(kept))
        assert kept == keep(reversed(left), additional=additional, tiers=tiers, frequency=30.0)
        assert set(kept) == set(
            keep([one for one in left if one.cycle in kept], additional=additional, tiers=tiers, frequency=30.0)
        )
        assert point.cycle in kept
        assert {one.cycle for one in left if one.pinned} <= set(kept)
        recoverable = [one.cycle for one in left if one.recoverable]
        assert not recoverable or recoverable[-1] in kept
        left = [one for one in left if one.cycle in kept]
        for width in {tier.every for tier in tiers} - {0}:
            first = {}
            for one in points[: point.cycle]:
                if one.recoverable:
                    first.setdefault(one.instant // width, one.cycle)
            last = point.instant // width
            if any(one.recoverable and one.instant // width == last for one in left):
                assert first[last] in kept
