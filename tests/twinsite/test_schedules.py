"""Retention and rates as people write them."""

import pytest

from twinsite import schedules
from twinsite.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "tiers"),
    [
        ("none", []),
        ("all:1h", [(0, 3600)]),
        ("all:1h,5m:1d,1h:7d,1d:90d", [(0, 3600), (300, 86400), (3600, 604800), (86400, 7776000)]),
        ("90s:1h30m", [(90, 5400)]),
    ],
)
def test_retention_reads_back_the_same(text, tiers):
    read = schedules.parse_keep(text)
    assert [(tier.every_seconds, tier.for_seconds) for tier in read] == tiers
    assert schedules.parse_keep(schedules.keep_text(read)) == read


@pytest.mark.parametrize(
    "text", ["", "all", "1h", "all:", ":1h", "0:1h", "all:1h,", "5x:1h", "-5m:1h", "all:99999999999d"]
)
def test_what_is_no_retention_is_refused_with_an_example(text):
    with pytest.raises(InvalidInput) as refused:
        schedules.parse_keep(text)
    assert "all:1h" in refused.value.text("next_step")


@pytest.mark.parametrize(
    ("text", "rule", "back"),
    [
        ("10MB/s", (0, 0, 0, 10_000_000), "10 MB/s"),
        ("100 Mbit/s sat,sun", (0b1100000, 0, 0, 12_500_000), "12.5 MB/s sat,sun"),
        ("10 MB/s mon-fri 08:00-18:00", (0b11111, 480, 1080, 10_000_000), "10 MB/s mon-fri 08:00-18:00"),
        ("512 KiB/s 22:00-6:00", (0, 1320, 360, 524288), "512 KiB/s 22:00-06:00"),
        ("1 MB/s Sat-Mon 0:00-24:00", (0b1100001, 0, 1440, 1_000_000), "1 MB/s mon,sat,sun 00:00-24:00"),
    ],
)
def test_rates_read_back_the_same(text, rule, back):
    read = schedules.parse_rate(text)
    assert (read.days, read.from_minute, read.to_minute, read.bytes_per_second) == rule
    assert schedules.rate_text(read) == back
    assert schedules.parse_rate(back) == read


@pytest.mark.parametrize(
    "text",
    ["", "fast", "10MB", "MB/s", "10MB/s someday", "10MB/s mon-", "10MB/s 8-18", "10MB/s 08:00-08:00",
     "10MB/s 24:00-06:00", "10MB/s mon 08:00-18:00 x", "10MB/s 25:00-26:00"],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_an_example(text):
    with pytest.raises(InvalidInput) as refused:
        schedules.parse_rate(text)
    assert "10MB/s mon-fri" in refused.value.text("next_step")
