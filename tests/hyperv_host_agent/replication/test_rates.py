"""Calendars of rate caps, and how exactly a cap is held."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperv_host_agent.replication.rates import BURST_SECONDS, Bucket, Rule, cap, least, message_bytes, problem

MON, FRI, SAT, SUN = 0, 4, 5, 6
WEEKDAYS = 0b0011111
MB = 1_000_000


def at(hour: int, minute: int = 0) -> int:
    return hour * 60 + minute


OFFICE = Rule(WEEKDAYS, at(8), at(18), 1 * MB)
NIGHT = Rule(WEEKDAYS, at(22), at(6), 5 * MB)


@pytest.mark.parametrize(
    ("rule", "weekday", "minute", "covered"),
    [
        (OFFICE, MON, at(8), True),
        (OFFICE, MON, at(7, 59), False),
        (OFFICE, FRI, at(17, 59), True),
        (OFFICE, FRI, at(18), False),
        (OFFICE, SAT, at(12), False),
        (NIGHT, FRI, at(23), True),
        (NIGHT, SAT, at(5, 59), True),  # it began on Friday
        (NIGHT, SAT, at(6), False),
        (NIGHT, MON, at(3), False),  # Sunday's night is not named
        (NIGHT, SUN, at(23), False),
        (Rule(0, 0, 0, MB), SUN, at(23, 59), True),
        (Rule(1 << SUN, 0, 0, MB), SUN, at(0), True),
        (Rule(1 << SUN, 0, 0, MB), MON, at(0), False),
        (Rule(1 << SUN, at(23), at(1), MB), MON, at(0, 30), True),  # over the end of the week
        (Rule(0, at(0), at(24), MB), SAT, at(23, 59), True),
    ],
)
def test_a_rule_covers_just_its_part_of_the_week(rule: Rule, weekday: int, minute: int, covered: bool) -> None:
    assert rule.covers(weekday, minute) is covered


def test_the_first_rule_that_covers_a_moment_holds_and_without_one_there_is_no_cap() -> None:
    calendar = [OFFICE, Rule(0, at(12), at(20), 3 * MB)]
    assert cap(calendar, MON, at(13)) == 1 * MB
    assert cap(calendar, MON, at(19)) == 3 * MB
    assert cap(calendar, MON, at(21)) == 0
    assert cap([], MON, at(13)) == 0


def test_of_several_caps_the_least_holds() -> None:
    assert least([0, 5, 3]) == 3
    assert least([0, 0]) == least([]) == 0


@pytest.mark.parametrize("rule", [Rule(128, 0, 0, MB), Rule(0, -1, 0, MB), Rule(0, 0, 1441, MB), Rule(0, 0, 0, 1023)])
def test_a_rule_that_makes_no_sense_is_named(rule: Rule) -> None:
    assert problem(rule)
    assert not problem(OFFICE)


def sent(bucket: Bucket, message: int, start: float, end: float, *, slept_late: float = 0.0) -> int:
    """Bytes a busy sender gets through from `start` to `end`; it wakes a little late each time."""
    now, count = start, 0
    while True:
        if wait := bucket.wait(now):
            now += wait + slept_late
        if now >= end:
            return count
        bucket.take(message, now)
        count += message


@settings(max_examples=50)
@given(
    st.sampled_from([1 * MB, 10 * MB, 200 * MB]),
    st.floats(0.1, 1.0),
    st.floats(0, 0.02),
    st.floats(0, 100),
)
def test_a_cap_is_held_within_a_tenth_over_ten_seconds(rate: int, fill: float, late: float, idle: float) -> None:
    bucket = Bucket()
    bucket.set(rate, 5.0)
    message = message_bytes(rate, int(fill * (1 << 20)), 1 << 16)
    count = sent(bucket, message, 5.0 + idle, 15.0 + idle, slept_late=late)
    assert 0.9 * 10 * rate <= count <= 1.1 * 10 * rate


def test_an_idle_bucket_saves_up_a_quarter_of_a_second_and_no_more() -> None:
    bucket = Bucket()
    bucket.set(MB, 0.0)
    assert BURST_SECONDS <= 1
    count = 0
    while not bucket.wait(1000.0):
        bucket.take(1000, 1000.0)
        count += 1000
    assert count <= MB * BURST_SECONDS + 1000


def test_a_new_cap_counts_at_once_and_no_cap_forgets_what_is_owed() -> None:
    bucket = Bucket()
    bucket.set(1000, 0.0)
    bucket.take(100_000, 0.0)
    assert bucket.wait(0.0) == pytest.approx(100)
    bucket.set(100_000, 50.0)
    assert bucket.wait(50.0) == pytest.approx(0.5)
    bucket.set(0, 50.0)
    assert bucket.wait(50.0) == 0
    bucket.take(1 << 40, 50.0)
    bucket.set(1000, 50.0)
    assert bucket.wait(50.0) == 0


def test_a_clock_that_stands_still_or_steps_back_earns_nothing() -> None:
    bucket = Bucket()
    bucket.set(1000, 10.0)
    bucket.take(1000, 10.0)
    assert bucket.wait(10.0) == bucket.wait(3.0) == pytest.approx(1)
    assert bucket.wait(10.5) == pytest.approx(0.5)


def test_under_a_cap_messages_are_small_enough_for_several_in_a_second() -> None:
    assert message_bytes(0, 1 << 20, 1 << 16) == 1 << 20
    assert message_bytes(1 * MB, 1 << 20, 1 << 16) == 125_000
    assert message_bytes(1024, 1 << 20, 1 << 16) == 1 << 16
