"""Instants on the command line: `+2h`, `02:00`, `2026-11-23 02:00`, with or without an offset."""

import re
from datetime import datetime, timedelta
from typing import Any

import click

from twinsite import units
from twinsite.clock import SystemClock


def moment(text: str, now: float) -> float:
    """Seconds since 1970. A time of day is the next one; without an offset it is local. Raises ValueError."""
    word = text.strip()
    if word == "now":
        return now
    if word.startswith("+"):
        return now + units.parse_duration(word[1:])
    here = datetime.fromtimestamp(now).astimezone()
    if found := re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", word):
        # Built anew from its date, so that a change of the clocks in the night moves it along.
        for days in (0, 1):
            day = here.date() + timedelta(days=days)
            at = (
                datetime(day.year, day.month, day.day, int(found[1]), int(found[2])).astimezone().timestamp()
            )  # local by intent
            if at > now:
                break
        return at
    try:
        at_ = datetime.fromisoformat(word)
    except ValueError:
        raise ValueError(f"{text!r} is no time such as +2h, 02:00 or 2026-11-23T02:00") from None
    return (at_ if at_.tzinfo else at_.astimezone()).timestamp()


class Moment(click.ParamType[float]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return moment(value, SystemClock().now())
        except (ValueError, OverflowError) as error:
            self.fail(str(error), param, ctx)


MOMENT = Moment()
