"""Sizes and durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsite.units import GiB, KiB, MiB, duration, parse_duration, parse_rate, rate, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KiB, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (100 * MiB, "100 MiB"),
        (int(1.4 * GiB), "1.4 GiB"),
        (5000 * GiB * 1024 * 1024, "5000 PiB"),
    ],
)
def test_sizes_read_in_the_largest_fitting_unit(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m"), (86400 * 3 + 4 * 3600, "3d4h")],
)
def test_durations_read_in_their_two_largest_parts(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("5d", 432000), ("1w", 604800)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5x", "-5s", "5 s", "s5", "1.5h", "\u0665s", "5S"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 10**9))
def test_what_is_printed_is_read_back_as_no_more_than_it_was(seconds: int) -> None:
    assert seconds - 3600 < parse_duration(duration(seconds)) <= seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("10 MB/s", 10_000_000),
        ("10MB/s", 10_000_000),
        ("1.5 GB/s", 1_500_000_000),
        ("512 KiB/s", 512 * KiB),
        ("100 Mbit/s", 12_500_000),
        ("2048 B/s", 2048),
        ("200KB/s", 200_000),
        ("200 kB/s", 200_000),
    ],
)
def test_rates_read_as_networks_and_people_write_them(text: str, count: int) -> None:
    assert parse_rate(text) == count


@pytest.mark.parametrize("text", ["10", "10 MB", "fast", "-1 MB/s", "10 mb/s", "1e3 MB/s", "1..5 MB/s", ""])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="10 MB/s"):
        parse_rate(text)


@given(st.integers(1, 10**12))
def test_a_rate_that_was_shown_reads_back_the_same(count: int) -> None:
    assert parse_rate(rate(count)) == count


def test_rates_are_shown_in_the_unit_they_were_meant_in() -> None:
    assert [rate(count) for count in (10_000_000, 1_500_000_000, 512 * KiB, 12_345)] == [
        "10 MB/s",
        "1.5 GB/s",
        "512 KiB/s",
        "12345 B/s",
    ]
