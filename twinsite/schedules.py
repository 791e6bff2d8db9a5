"""Retention and rate caps as people write them, and the other way: `all:1h,5m:24h`, `10MB/s mon-fri 08:00-18:00`."""

import re
from collections.abc import Iterable
from typing import Final

from twinsite import units
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput

NONE: Final = "none"
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_LARGEST: Final = 2**32 - 1  # seconds a message can say
_RATE: Final = re.compile(r"([0-9.]+ ?[A-Za-z]+/s)(?: +(.*))?")
_HOURS: Final = re.compile(r"([01]?[0-9]|2[0-4]):([0-5][0-9])-([01]?[0-9]|2[0-4]):([0-5][0-9])")


class NotRetention(InvalidInput):
    public = "{error.part} is not a retention: {error.why}"
    still_works = "nothing was changed"
    next_step = "write EVERY:FOR, separated by commas, for example all:1h,5m:24h,1h:7d,1d:90d; or none"

    def __init__(self, part: str, why: str) -> None:
        self.part, self.why = ascii(part[:60]), why


class NotRate(InvalidInput):
    public = "{error.part} is not a rate: {error.why}"
    still_works = "nothing was changed"
    next_step = 'write RATE [DAYS] [FROM-TO], for example "10MB/s mon-fri 08:00-18:00" or "100Mbit/s"'

    def __init__(self, part: str, why: str) -> None:
        self.part, self.why = ascii(part[:60]), why


# ---- retention --------------------------------------------------------------------------------------------------


def parse_keep(text: str) -> list[types_pb2.RetentionTier]:
    """The tiers of `all:1h,5m:24h`; `all`: each cycle; `none`: no tier. Raises NotRetention."""
    if text.strip() == NONE:
        return []
    return [_tier(part.strip()) for part in text.split(",")]


def keep_text(tiers: Iterable[types_pb2.RetentionTier]) -> str:
    """As `parse_keep` reads it."""
    return ",".join(map(tier_text, tiers)) or NONE


def tier_text(tier: types_pb2.RetentionTier) -> str:
    return f"{units.span(tier.every_seconds) if tier.every_seconds else 'all'}:{units.span(tier.for_seconds)}"


def _tier(part: str) -> types_pb2.RetentionTier:
    every, colon, keep = part.partition(":")
    if not colon:
        raise NotRetention(part, "there is no colon between how often and how long")
    return types_pb2.RetentionTier(
        every_seconds=0 if every == "all" else _seconds(part, every), for_seconds=_seconds(part, keep)
    )


def _seconds(part: str, text: str) -> int:
    try:
        seconds = units.parse_duration(text.strip())
    except ValueError as error:
        raise NotRetention(part, str(error)) from None
    if not 0 < seconds <= _LARGEST:
        raise NotRetention(part, f"{text} is not a possible time")
    return seconds


# ---- rates ------------------------------------------------------------------------------------------------------


def parse_rate(text: str) -> types_pb2.RateRule:
    """The rule of `10MB/s mon-fri 08:00-18:00`; days and hours may be left out. Raises NotRate."""
    found = _RATE.fullmatch(text.strip())
    try:
        count = units.parse_rate(found[1] if found else text)
    except ValueError as error:
        raise NotRate(text, str(error)) from None
    rule = types_pb2.RateRule(bytes_per_second=min(count, 2**63))
    rest = ((found and found[2]) or "").split()
    if rest and ":" not in rest[0]:
        try:
            rule.days = parse_days(rest.pop(0))
        except ValueError as error:
            raise NotRate(text, str(error)) from None
    if rest:
        rule.from_minute, rule.to_minute = _hours(text, rest.pop(0))
    if rest:
        raise NotRate(text, f"{rest[0]} is one word too many")
    return rule


def rate_text(rule: types_pb2.RateRule) -> str:
    """As `parse_rate` reads it, to the byte."""
    words = [units.rate(rule.bytes_per_second)]
    if rule.days:
        words.append(_days_text(rule.days))
    if rule.from_minute or rule.to_minute:
        words.append(f"{_clock(rule.from_minute)}-{_clock(rule.to_minute)}")
    return " ".join(words)


def rates_text(rules: Iterable[types_pb2.RateRule]) -> str:
    return "; ".join(map(rate_text, rules)) or "no cap"


def parse_days(word: str) -> int:
    """Bit 0 Monday … bit 6 Sunday of ``mon-fri,sun``. Raises ValueError."""
    days = 0
    for part in word.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part} names no days; days are {', '.join(DAYS)}, as in mon-fri,sun")
        at, end = DAYS.index(first), DAYS.index(last if dash else first)
        while True:  # sat-mon goes over the end of the week
            days |= 1 << at
            if at == end:
                break
            at = (at + 1) % 7
    return days


def _hours(text: str, word: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(word)
    if found is None:
        raise NotRate(text, f"{word} is not a time of day such as 08:00-18:00")
    begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
    if begin >= 1440 or end > 1440 or begin == end:
        raise NotRate(text, f"{word} is not a part of a day")
    return begin, end


def _days_text(days: int) -> str:
    """Runs of three and more with a dash."""
    named = [at for at in range(7) if days >> at & 1]
    runs: list[list[int]] = []
    for at in named:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return ",".join(
        f"{DAYS[run[0]]}-{DAYS[run[-1]]}" if len(run) > 2 else ",".join(DAYS[at] for at in run) for run in runs
    )


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
