"""`twinsite-coordinator`: serve the vault, make the first administrator."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Final

import click

from coordinator.settings import PROGRAM, Settings
from twinsite import __version__, program
from twinsite import settings as loading
from twinsite.clock import SystemClock
from twinsite.errors import InvalidInput

_DEFAULT_CONFIG: Final = Path("/etc/twinsite/coordinator.toml")


class PasswordFileUnusable(InvalidInput):
    public = "the password file {error.path} cannot be used: {error.why}"
    still_works = "no account was made"
    next_step = "put the password on its first line and make it readable for you alone"

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="twinsite-coordinator")
@click.option("--config", type=click.Path(path_type=Path), help=f"Settings file. Default: {_DEFAULT_CONFIG}")
@click.pass_context
def coordinator(context: click.Context, config: Path | None) -> None:
    """The vault: identities, policy, recovery and their durable jobs.

    \b
    twinsite-coordinator admin create ana --password-file pw
    twinsite-coordinator serve
    """  # noqa: D301  # click wants the character
    if config is None and _DEFAULT_CONFIG.exists():
        config = _DEFAULT_CONFIG
    context.obj = loading.load(Settings, config, program=PROGRAM)


@coordinator.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    from twinsite import log

    log.configure(program=PROGRAM, level=settings.log_level, json=settings.log_json)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from coordinator import app

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await app.serve_until(stop, settings, SystemClock())


@coordinator.group()
def admin() -> None:
    """Accounts of people."""


@admin.command("create")
@click.argument("user")
@click.option("--role", default="owner", show_default=True, help="owner, operator, recovery, auditor or viewer.")
@click.option(
    "--password-file", required=True, type=click.Path(path_type=Path), help="Its first line; - reads standard input."
)
@click.pass_obj
def create(settings: Settings, user: str, role: str, password_file: Path) -> None:
    """Make an account. The coordinator may be running, or never have run.

    \b
    twinsite-coordinator admin create ana --password-file pw
    twinsite-coordinator admin create ben --role recovery --password-file -
    """  # noqa: D301  # click wants the character
    from coordinator import app

    roots = asyncio.run(app.create_user(settings, SystemClock(), user, role, _password(password_file)))
    click.echo(str(roots))
    # Port 0 in the settings means that only the running coordinator knows.
    address = settings.advertise_enrollment or app.enrollment_address(settings) or settings.listen_enrollment
    click.echo(f"Next: twinsite login --coordinator {address} --ca-file {roots} --user {user}", err=True)


@coordinator.group("config")
def config_group() -> None:
    """The settings file."""


@config_group.command()
@click.pass_obj
def check(settings: Settings) -> None:
    """Read the settings and say what would be used. Nothing is started.

    \b
    twinsite-coordinator --config coordinator.toml config check
    """  # noqa: D301  # click wants the character
    click.echo(f"State:       {settings.state}")
    click.echo(f"Database:    {'PostgreSQL' if settings.database else settings.state / 'coordinator.db'}")
    click.echo(f"Enrollment:  {settings.listen_enrollment}")
    click.echo(f"Link:        {settings.listen}")


def _password(path: Path) -> str:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not text"
        raise PasswordFileUnusable(path, why) from None
    return text.splitlines()[0] if text else ""


def main() -> None:
    """`twinsite-coordinator`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    return program.run(coordinator, "twinsite-coordinator", arguments)


if __name__ == "__main__":
    main()
