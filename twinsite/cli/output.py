"""What goes to stdout and stderr, and in which form. stdout is data; everything else is stderr."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from twinsite import units
from twinsite.errors import TwinsiteError

if TYPE_CHECKING:  # protobuf takes longer to import than --help may take
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

API_VERSION: Final = "twinsite/v1"
_INSTANT: Final = re.compile(r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?Z")
_GLYPHS: Final = {
    "normal": ("✓", "OK"),
    "warning": ("!", "WARN"),
    "critical": ("✕", "CRIT"),
    "unknown": ("?", "UNKN"),
    "paused": ("‖", "PAUS"),
}


@dataclass(slots=True)
class Output:
    """The form asked for by the global flags."""

    form: str = "table"  # table | json | csv | name
    quiet: bool = False
    ascii: bool = False

    @property
    def json(self) -> bool:
        return self.form == "json"

    @property
    def csv(self) -> bool:
        return self.form == "csv"

    def health(self, word: str) -> str:
        """Glyph and word, never colour alone."""
        glyph, letters = _GLYPHS.get(word, ("?", "UNKN"))
        if self.ascii or (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"):
            return letters
        return f"{glyph} {word.capitalize()}"

    def items(
        self,
        kind: str,
        message_type: "type[Message]",
        messages: "Sequence[Message]",
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
    ) -> None:
        """A list: a table for people, an object with `items` or the same as CSV for scripts, or one name a line."""
        if self.json:
            from twinsite.cli.plain import to_plain

            items = [to_plain(message) for message in messages]
            emit({"apiVersion": API_VERSION, "kind": kind, "metadata": {"continue": None}, "items": items})
            return
        if self.csv:
            from twinsite.cli.plain import flat_names, to_flat

            emit_csv(flat_names(message_type.DESCRIPTOR), (to_flat(message).values() for message in messages))
            return
        lines = [[cell or "<none>" for cell in row] for row in rows]
        if self.form == "name":
            for line in lines:
                click.echo(line[0])
            return
        if not lines:
            self.note(f"no {columns[0].lower()} found")
            return
        self.table(columns, lines)

    def table(self, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
        """Aligned, for people; at least one line."""
        lines = [[for_people(cell) for cell in line] for line in lines]
        widths = [max(len(column), *(len(line[at]) for line in lines)) for at, column in enumerate(columns)]
        for line in (columns, *lines):
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

    def one(self, kind: str, message: "Message", facts: Iterable[tuple[str, str]]) -> None:
        """One object: its facts for people, whole for scripts."""
        if self.json:
            from twinsite.cli.plain import to_plain

            emit({"apiVersion": API_VERSION, "kind": kind, **to_plain(message)})
            return
        if self.csv:
            from twinsite.cli.plain import to_flat

            emit_csv(("name", "value"), to_flat(message).items())
            return
        shown = [(name, value) for name, value in facts if value]
        if self.form == "name":
            click.echo(shown[0][1])
        else:
            self.facts(shown)

    def facts(self, shown: Sequence[tuple[str, str]]) -> None:
        """Names and values, aligned, for people."""
        width = max(len(name) for name, _ in shown) + 2
        for name, value in shown:
            click.echo(f"{name + ':':<{width}}{for_people(value)}")

    def done(self, line: str, *, following: str = "") -> None:
        """How a mutation ended, and what comes next."""
        self.note(line)
        if following:
            self.note(f"Next: {following}")

    def note(self, line: str) -> None:
        if not self.quiet:
            click.echo(for_people(line), err=True)


def emit(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def emit_csv(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """A head line of names, then a line for each row (RFC 4180)."""
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    writer.writerows(rows)


def age(instant: "Timestamp", now: float) -> str:
    """How long ago, for the last column of a table."""
    return units.duration(max(0.0, now - instant.seconds - instant.nanos / 1e9)) if instant.seconds else "<unknown>"


def local(instant: "Timestamp") -> str:
    """Local time with its offset."""
    if not instant.seconds:
        return ""
    return _local(datetime.fromtimestamp(instant.seconds, UTC))


def _local(instant: datetime) -> str:
    return instant.astimezone().isoformat(sep=" ", timespec="seconds")


def for_people(text: str) -> str:
    """With the instants that the coordinator and the hosts wrote in it, RFC 3339 in UTC, as `local` has them."""
    return _INSTANT.sub(_for_people, text)


def _for_people(found: re.Match[str]) -> str:
    try:
        return _local(datetime.fromisoformat(found[0]))
    except (ValueError, OverflowError):  # somebody's name for something: there is no such instant
        return found[0]


def error(problem: TwinsiteError, exit_code: int, *, as_json: bool) -> None:
    """The error block: what happened, why, what still works, what to do. Always on stderr."""
    texts = {name: problem.text(name) for name in ("public", "cause", "still_works", "next_step")}
    if as_json:
        body = {
            "reason": problem.code,
            "message": texts["public"],
            "cause": texts["cause"],
            "still_works": texts["still_works"],
            "next": [texts["next_step"]] if texts["next_step"] else [],
        }
        click.echo(
            json.dumps({"message_type": "exit_error", "code": exit_code, "error": body}, ensure_ascii=False), err=True
        )
        return
    cross = "✕" if (sys.stderr.encoding or "").lower() in ("utf-8", "utf8") else "x"
    click.echo(f"{cross} {for_people(texts['public'])}  ({problem.code})", err=True)
    for label, name in (("Cause:", "cause"), ("State:", "still_works"), ("Next:", "next_step")):
        if texts[name]:
            click.echo(f"  {label:<8} {for_people(texts[name])}", err=True)


def interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def silence_broken_pipe() -> None:
    """`twinsite … | head` ends without a traceback."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
