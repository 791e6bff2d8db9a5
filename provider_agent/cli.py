"""`twinsite-provider`: register once, then serve."""
# ruff: noqa: D301  # \b is click's mark for lines that are not to be wrapped, and no raw text

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from provider_agent.settings import PROGRAM, Settings
from twinsite import __version__, program, units
from twinsite import settings as loading
from twinsite.cli import output
from twinsite.clock import SystemClock

if TYPE_CHECKING:  # grpc takes longer to import than --help may take
    from provider_agent.runfiles import Report
    from twinsite.credentials import Credentials

_DEFAULT_CONFIG: Final = Path("/etc/twinsite/provider.toml")
# `status`: twinsite help exit-codes
_WARNINGS, _REFUSED, _NOT_REGISTERED, _AWAY = 3, 4, 6, 9


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="twinsite-provider")
@click.option("--config", type=click.Path(path_type=Path), help=f"Settings file. Default: {_DEFAULT_CONFIG}")
@click.pass_context
def provider(context: click.Context, config: Path | None) -> None:
    """The management plane of one site, beside its VMM server.

    \b
    twinsite-provider register --key-file vault.key --name site-a
    twinsite-provider serve
    """
    if config is None and _DEFAULT_CONFIG.exists():
        config = _DEFAULT_CONFIG
    context.obj = loading.load(Settings, config, program=PROGRAM)


@provider.command()
@click.option("--key-file", required=True, type=click.Path(path_type=Path), help="As made by `twinsite key create`.")
@click.option("--name", required=True, help="Friendly name of this server in the vault.")
@click.option("--vault-name", default="", help="Refuse a key file of another vault.")
@click.option(
    "--sync-clouds",
    multiple=True,
    default=("all",),
    metavar="all|none|NAME",
    help="Clouds to synchronize; repeatable. Default: all.",
)
@click.option("--proxy", default="", help="http://[USER:PASSWORD@]HOST:PORT on the way to the coordinator.")
@click.pass_obj
def register(
    settings: Settings, key_file: Path, name: str, vault_name: str, sync_clouds: tuple[str, ...], proxy: str
) -> None:
    """Register this server with a vault. Safe to repeat until it succeeds.

    \b
    twinsite-provider register --key-file vault.key --name site-a
    twinsite-provider register --key-file vault.key --name site-a --vault-name main --sync-clouds gold
    """
    from provider_agent import registration
    from provider_agent.app import identity_folder
    from provider_agent.inventory import Selection

    whole = {"all", "none"} & set(sync_clouds)
    if whole and len(sync_clouds) > 1:
        raise click.UsageError(f"--sync-clouds {whole.pop()} does not go with other clouds")
    request = registration.Request(
        key_file, name, vault_name, Selection.parse(sync_clouds[0]).also(() if whole else sync_clouds), proxy
    )
    made = asyncio.run(registration.register(request, identity_folder(settings.state), settings.fabric, SystemClock()))
    click.echo(f"Vault:   {made.meta['vault_name']} ({made.identity.vault})")
    click.echo(f"Server:  {name} ({made.identity.id})")
    click.echo(f"Clouds:  {made.meta['selection']}")
    click.echo("Next: check the vault's name, delete the key file, then: twinsite-provider serve", err=True)


@provider.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    from twinsite import log

    log.configure(program=PROGRAM, level=settings.log_level, json=settings.log_json)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from provider_agent import app

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with app.provider(settings, SystemClock()):
        await stop.wait()


@provider.command("status")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def show_status(settings: Settings, form: str) -> None:
    """Whether it is registered, runs, and is connected.

    \b
    Exit codes: 0 all well · 3 a host is away or the fabric file is broken · 4 the coordinator refuses this server
    · 6 not registered · 9 not running, or the coordinator does not answer
    """
    from provider_agent import runfiles
    from provider_agent.app import identity_folder
    from twinsite.credentials import Credentials, NoCredentials

    try:
        credentials = Credentials.load(identity_folder(settings.state))
    except NoCredentials as error:
        if form == "json":
            click.echo(json.dumps({"registered": False}))
        output.error(error, _NOT_REGISTERED, as_json=form == "json")
        raise click.exceptions.Exit(_NOT_REGISTERED) from None
    running = runfiles.running(settings.state)
    report = runfiles.Report.read(settings.state) if running else None
    if form == "json":
        click.echo(json.dumps(_plain(credentials, running, report)))
    else:
        for line in _lines(credentials, running, report):
            click.echo(line)
    raise click.exceptions.Exit(_code(report))


@provider.group("host-key")
def host_key() -> None:
    """Keys with which hosts join."""


@host_key.command()
@click.option("--host", required=True, help="Name of the host, as in the fabric file.")
@click.option("-O", "--file", "path", required=True, type=click.Path(path_type=Path), help="The join file to write.")
@click.pass_obj
def create(settings: Settings, host: str, path: Path) -> None:
    """Make a join file: one host, one key pair, five days. The provider may be running.

    \b
    twinsite-provider host-key create --host hv1 -O hv1.join.json
    """
    from provider_agent import runfiles
    from provider_agent.app import host_keys_folder, identity_folder
    from provider_agent.host_keys import LIFE_SECONDS, FileExists, HostKeys, write_join_file
    from twinsite.credentials import Credentials

    credentials = Credentials.load(identity_folder(settings.state))
    if path.exists():
        raise FileExists(path)
    running = runfiles.running(settings.state) or {}
    # Port 0 in the settings means that only the running provider knows.
    address = settings.advertise_join or running.get("addresses", {}).get("join") or settings.listen_join
    key, secret = HostKeys(host_keys_folder(settings.state), SystemClock()).create(host)
    write_join_file(path, key, secret, address=address, provider=credentials)
    click.echo(str(path))
    click.echo(
        f"Next: copy it to {host} and name it as join_file there. Good for {units.duration(LIFE_SECONDS)}.", err=True
    )


def main() -> None:
    """`twinsite-provider`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    return program.run(provider, "twinsite-provider", arguments)


def _code(report: "Report | None") -> int:
    if report is None or report.coordinator == "connecting":
        return _AWAY
    if report.coordinator == "refused":
        return _REFUSED
    healthy = report.fabric_problem is None and all(host.connected for host in report.hosts)
    return 0 if healthy else _WARNINGS


def _lines(credentials: "Credentials", running: dict[str, Any] | None, report: "Report | None") -> list[str]:
    now = SystemClock().now()
    left = credentials.expires - now
    lines = [
        f"Server:       {credentials.meta['name']} ({credentials.identity.id})",
        f"Vault:        {credentials.meta['vault_name']} ({credentials.identity.vault})",
        f"Certificate:  {'expires in ' + units.duration(left) if left > 0 else 'EXPIRED'}",
    ]
    if running is None:
        return [*lines, "Provider:     not running (start it: twinsite-provider serve)"]
    lines.append(f"Provider:     running for {units.duration(now - running['started'])}, process {running['pid']}")
    if report is None:
        return lines
    words = {"connecting": "not connected", "refused": "refuses this server"}.get(report.coordinator, "connected")
    lines.append(f"Coordinator:  {words} for {units.duration(now - report.since)}")
    for problem in (report.problem, report.fabric_problem):
        if problem is not None:
            texts = (problem.message, problem.cause, problem.next_step)
            lines += [f"              {text}" for text in texts if text]
    lines += [
        f"Host:         {host.name} ({host.id}) {'connected' if host.connected else 'away'}" for host in report.hosts
    ]
    return lines


def _plain(credentials: "Credentials", running: dict[str, Any] | None, report: "Report | None") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "registered": True,
        "server_id": credentials.identity.id,
        "name": credentials.meta["name"],
        "vault_id": credentials.identity.vault,
        "vault_name": credentials.meta["vault_name"],
        "certificate_expires": int(credentials.expires),
        "running": running is not None,
        "addresses": (running or {}).get("addresses", {}),
        "report": asdict(report) if report is not None else None,
    }


if __name__ == "__main__":
    main()
