"""What every command shares: the global flags, taken before and after the verb, and the loop a command runs in."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec

import click

from twinsite import units
from twinsite.cli.home import Home
from twinsite.cli.output import Output
from twinsite.clock import Clock, SystemClock
from twinsite.errors import Unreachable

if TYPE_CHECKING:  # grpc takes longer to import than --help may take
    from twinsite.cli.session import Api

P = ParamSpec("P")


DETACHED: Final = 130


class Detached(Exception):
    """Ctrl-C while waiting: not an error, the job goes on."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id


@dataclass(slots=True)
class Context:
    """One invocation: flags, login folder, and the form of the output."""

    output: Output
    home: Home
    timeout: float
    no_input: bool
    clock: Clock
    request_id: str | None = None
    wait: bool = True
    wait_timeout: float = 0.0

    def connect(self) -> "AbstractAsyncContextManager[Api]":
        from twinsite.cli import session

        return session.connect(self.home, timeout=self.timeout, request_id=self.request_id)

    async def finish(self, api: "Api", job_id: str, *, following: str = "", meanwhile: str = "") -> None:
        """Wait for the job a mutation started, or say its id with --no-wait; ends with its exit code.

        `meanwhile`: what to do next when the job waits for a time that was chosen, or for a person: it is not waited
        for then.
        """
        if not job_id:
            return
        if not self.wait:
            click.echo(job_id)
            self.output.done(f"job {job_id} started", following=f"twinsite job watch {job_id}")
            return
        from twinsite.cli import waiting

        code = await waiting.follow(api, job_id, self.output, timeout=self.wait_timeout, until_it_waits=bool(meanwhile))
        following = meanwhile if code == waiting.WAITS else following
        if code in (0, waiting.WAITS):
            if following:
                self.output.note(f"Next: {following}")
        else:
            raise click.exceptions.Exit(code)


class Duration(click.ParamType[int]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return units.parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()

_GLOBAL = (
    click.option(
        "-o", "--output", "form", type=click.Choice(["table", "json", "csv", "name"]), help="Form of the data."
    ),
    click.option("-q", "--quiet", is_flag=True, default=None, help="No messages on stderr but errors."),
    click.option("--ascii", "ascii_only", is_flag=True, default=None, help="No glyphs."),
    click.option("--no-input", is_flag=True, default=None, envvar="TWINSITE_NO_INPUT", help="Never ask."),
    click.option("--timeout", type=DURATION, help="How long one call may take; 30s unless told."),
    click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="TWINSITE_HOME",
        help="Folder of the login; ~/.config/twinsite unless told.",
    ),
)
_WAITING = (
    click.option("--wait/--no-wait", default=True, help="Wait for the job, or print its id."),
    click.option("--wait-timeout", type=DURATION, default=0, help="Exit 8 when the job takes longer; 0: never."),
)
_MUTATION = (click.option("--request-id", help="UUID: a repeat with the same one is answered from the first result."),)


_WATCHING = (
    click.option("-w", "--watch", is_flag=True, help="Again and again until Ctrl-C; on a terminal in place."),
    click.option("--every", type=DURATION, default=2, help="How often --watch looks; 2s unless told."),
)


def global_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_GLOBAL):
        function = option(function)
    return function


def context_from(flags: dict[str, Any], parent: dict[str, Any]) -> Context:
    """Flags after the verb win over those before it."""

    def flag(name: str, default: Any) -> Any:
        return next((value for value in (flags.get(name), parent.get(name)) if value is not None), default)

    return Context(
        output=Output(form=flag("form", "table"), quiet=flag("quiet", False), ascii=flag("ascii_only", False)),
        home=Home(flag("home", Path(click.get_app_dir("twinsite", force_posix=False)))),
        timeout=float(flag("timeout", 30)),
        no_input=flag("no_input", False),
        clock=SystemClock(),
        request_id=flags.get("request_id"),
        wait=flags.get("wait", True),
        wait_timeout=float(flags.get("wait_timeout") or 0),
    )


def command(
    *, mutates: bool = False, waits: bool = False, watches: bool = False
) -> Callable[[Callable[Concatenate[Context, P], Awaitable[None]]], Callable[..., None]]:
    """Make a coroutine `(context, …)` a command with the global flags; `waits` adds --wait, `mutates` --request-id.

    `watches` adds --watch: the command is run again and again.
    """

    def decorate(function: Callable[Concatenate[Context, P], Awaitable[None]]) -> Callable[..., None]:
        @click.pass_context
        @functools.wraps(function)
        def run(ctx: click.Context, /, *args: Any, **kwargs: Any) -> None:
            shared = {
                "form",
                "quiet",
                "ascii_only",
                "no_input",
                "timeout",
                "home",
                "request_id",
                "wait",
                "wait_timeout",
            }
            flags = {name: kwargs.pop(name) for name in shared & kwargs.keys()}
            context = context_from(flags, ctx.find_root().params)
            watch, every = kwargs.pop("watch", False), kwargs.pop("every", 0)

            async def once() -> None:
                await function(context, *args, **kwargs)

            asyncio.run(_again_and_again(context, once, every) if watch else once())

        wrapped: Callable[..., None] = global_options(run)
        more = (*(_WAITING if waits else ()), *(_MUTATION if mutates else ()), *(_WATCHING if watches else ()))
        for option in reversed(more):
            wrapped = option(wrapped)
        return wrapped

    return decorate


async def _again_and_again(context: Context, once: Callable[[], Awaitable[None]], every: int) -> None:
    """Until Ctrl-C. A coordinator that is away, and exit codes of what was found, end nothing."""
    while True:
        if sys.stdout.isatty() and not context.output.json:
            click.echo("\x1b[H\x1b[2J", nl=False)
        try:
            await once()
        except click.exceptions.Exit:
            pass
        except Unreachable as away:
            context.output.note(str(away))
        sys.stdout.flush()
        await context.clock.sleep(max(1, every))
