"""Confirmation classes: B asks y/N, C wants the typed name, D the typed name, a reason and a login of minutes ago."""

from collections.abc import Sequence
from typing import Final

import click

from twinsite.cli.output import for_people, interactive
from twinsite.errors import TwinsiteError

EXIT: Final = 7
FRESH_SECONDS: Final = 300  # class D: how old the login may be


class NotConfirmed(TwinsiteError):
    public = "{error.action} was not confirmed"
    still_works = "nothing was changed"
    next_step = "{error.flags}"

    def __init__(self, action: str, flags: str) -> None:
        self.action, self.flags = action, flags


def show(consequences: Sequence[str], warnings: Sequence[str] = ()) -> None:
    for line in consequences:
        click.echo(f"  {for_people(line)}", err=True)
    for line in warnings:
        click.echo(f"  ! {for_people(line)}", err=True)


def yes(action: str, *, given: bool, no_input: bool) -> None:
    """Class B. Raises NotConfirmed."""
    if given:
        return
    if no_input or not interactive():
        raise NotConfirmed(action, "add -y")
    if not click.confirm("Proceed?", default=False, err=True):
        raise NotConfirmed(action, "run it again and answer y, or add -y")


def typed_name(action: str, name: str, *, given: str | None, no_input: bool) -> None:
    """Class C. Raises NotConfirmed."""
    answer = given
    if answer is None and not no_input and interactive():
        answer = click.prompt(
            f"Type {name} to proceed, or press Enter to stop", default="", show_default=False, err=True
        )
    if answer != name:
        raise NotConfirmed(action, f"add --confirm {name}")


def reason(action: str, *, given: str | None, no_input: bool) -> str:
    """Class D: goes to the audit log. Raises NotConfirmed."""
    text = given
    if text is None and not no_input and interactive():
        text = click.prompt("Reason (goes to the audit log)", default="", show_default=False, err=True)
    if not text:
        raise NotConfirmed(action, 'add --reason "…"')
    return text


def fresh_login(action: str, *, age_seconds: float) -> None:
    """Class D. Raises NotConfirmed."""
    if age_seconds > FRESH_SECONDS:
        raise NotConfirmed(action, "log in again first: twinsite login (it must be at most 5 minutes old)")
