"""`twinsite login`, `logout`, `whoami`."""

import sys
from pathlib import Path

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import confirm, home, session
from twinsite.cli.command import Context, command
from twinsite.cli.output import interactive


@click.command()
@click.option("--coordinator", help="HOST:PORT of its enrolment listener; the last one unless told.")
@click.option("--ca-file", type=click.Path(path_type=Path, dir_okay=False), help="roots.pem of the coordinator.")
@click.option("--user", help="The last one unless told.")
@click.option("--password-file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), help="- is stdin.")
@command()
async def login(
    context: Context, coordinator: str | None, ca_file: Path | None, user: str | None, password_file: Path | None
) -> None:
    """Log in with a password, once; the session is bound to a key pair made here and lasts 12 hours.

    \b
    twinsite login --coordinator dr.example:9443 --ca-file roots.pem --user admin
    twinsite login --password-file ~/.secret      (again, same coordinator and user)
    """
    known = {}
    if coordinator is None or user is None or ca_file is None:
        try:
            known = context.home.context()
        except home.NotLoggedIn:
            if coordinator is None or user is None or ca_file is None:
                raise click.UsageError("the first login needs --coordinator, --ca-file and --user") from None
    roots = home.read_file(ca_file) if ca_file else home.read_file(context.home.identity / "roots.pem")
    answer = await session.login(
        context.home,
        address=coordinator or known["enrollment_address"],
        roots_pem=roots,
        user=user or known["user"],
        password=_password(context, password_file),
        now=context.clock.now(),
        timeout=context.timeout,
    )
    left = units.duration(answer.expires_unix - context.clock.now())
    context.output.done(f"logged in as {user or known['user']} ({answer.role}) for {left}", following="twinsite status")


def _password(context: Context, file: Path | None) -> str:
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else home.read_file(file).decode()
        return text.rstrip("\n")
    if context.no_input or not interactive():
        raise confirm.NotConfirmed("login", "add --password-file FILE (- is stdin)")
    password: str = click.prompt("Password", hide_input=True, err=True)
    return password


@click.command()
@command()
async def logout(context: Context) -> None:
    """End this login; its certificate and token are worth nothing afterwards.

    \b
    twinsite logout
    """
    async with context.connect() as api:
        await api.sessions.Logout(admin_pb2.Empty())
    context.home.forget()
    context.output.done("logged out")


@click.command()
@command()
async def whoami(context: Context) -> None:
    """The login in use.

    \b
    twinsite whoami -o json
    """
    async with context.connect() as api:
        me = await api.sessions.WhoAmI(admin_pb2.Empty())
    left = units.duration(max(0, me.expires_unix - context.clock.now()))
    facts = [("User", me.user), ("Role", me.role), ("Vault", me.vault_name or "<unset>"), ("Login ends in", left)]
    context.output.one("Session", me, facts)
