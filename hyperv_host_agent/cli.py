"""`twinsite-host`: serve, and say how it does."""
# ruff: noqa: D301  # \b is click's mark for lines that are not to be wrapped, and no raw text

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Final

import click

from hyperv_host_agent.settings import PROGRAM, Settings
from twinsite import __version__, program, units
from twinsite import settings as loading
from twinsite.clock import SystemClock

_DEFAULT_CONFIG: Final = Path("/etc/twinsite/host.toml")
# twinsite help exit-codes
_NOT_JOINED, _NOT_RUNNING, _WARNINGS, _CRITICAL = 6, 9, 10, 11
_MARKS: Final = {"ok": "✓", "warning": "!", "critical": "✕"}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="twinsite-host")
@click.option("--config", type=click.Path(path_type=Path), help=f"Settings file. Default: {_DEFAULT_CONFIG}")
@click.pass_context
def host(context: click.Context, config: Path | None) -> None:
    """The data plane on one hypervisor host.

    \b
    twinsite-host --config host.toml check
    twinsite-host --config host.toml serve
    """
    if config is None and _DEFAULT_CONFIG.exists():
        config = _DEFAULT_CONFIG
    context.obj = loading.load(Settings, config, program=PROGRAM)


@host.command()
@click.pass_obj
def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; joins with the join file on the first start."""
    from hyperv_host_agent import allocator
    from twinsite import log

    log.configure(program=PROGRAM, level=settings.log_level, json=settings.log_json)
    allocator.keep_buffers()
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from hyperv_host_agent import app

    # Cancelled rather than told, because it may still wait for the provider to let it join.
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: task and task.cancel())
    async with app.agent(settings, SystemClock()):
        await asyncio.Event().wait()


@host.command("status")
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table")
@click.pass_obj
def show_status(settings: Settings, form: str) -> None:
    """Whether it has joined and runs, and what it was told to replicate.

    \b
    Exit codes: 0 it runs · 6 not joined · 9 not running
    """
    from hyperv_host_agent import runfile
    from hyperv_host_agent.assignments import FILE
    from twinsite.api.types.v1 import types_pb2
    from twinsite.credentials import Credentials, NoCredentials

    try:
        credentials = Credentials.load(runfile.identity_folder(settings.state))
    except NoCredentials:
        click.echo(json.dumps({"joined": False}) if form == "json" else "Not joined yet. Next: twinsite-host serve")
        raise click.exceptions.Exit(_NOT_JOINED) from None
    running = runfile.running(settings.state)
    path = settings.state / FILE
    assigned = types_pb2.Assignments.FromString(path.read_bytes() if path.exists() else b"")
    if form == "json":
        told = {
            "joined": True,
            "host_id": credentials.identity.id,
            "name": credentials.meta["host_name"],
            "vault_id": credentials.identity.vault,
            "certificate_expires": int(credentials.expires),
            "running": running is not None,
            "addresses": (running or {}).get("addresses", {}),
            "assignments": [
                {"vm_id": one.vm_id, "vm_name": one.vm_name, "role": _role(one.role), "paused": one.paused}
                for one in assigned.assignments
            ],
        }
        click.echo(json.dumps(told))
    else:
        now = SystemClock().now()
        click.echo(f"Host:         {credentials.meta['host_name']} ({credentials.identity.id})")
        click.echo(f"Vault:        {credentials.identity.vault}")
        click.echo(f"Certificate:  expires in {units.duration(max(0.0, credentials.expires - now))}")
        if running is None:
            click.echo("Agent:        not running (start it: twinsite-host serve)")
        else:
            lasted = units.duration(now - running["started"])
            click.echo(f"Agent:        running for {lasted}, process {running['pid']}")
            click.echo(f"Replication:  {running['addresses']['replication']}")
        for one in assigned.assignments:
            click.echo(f"VM:           {one.vm_name} ({one.vm_id}) {_role(one.role)}{', paused' if one.paused else ''}")
    raise click.exceptions.Exit(0 if running is not None else _NOT_RUNNING)


@host.command()
@click.option("-o", "--output", "form", type=click.Choice(["table", "json"]), default="table")
@click.option("--exit-code", is_flag=True, help="10 when there are warnings, 11 when something is critical.")
@click.pass_obj
def check(settings: Settings, form: str, exit_code: bool) -> None:
    """Would the agent work here? Folders, space, port, layer format, identity, provider.

    \b
    Exit codes: 0 it would · 1 something is critical; with --exit-code 10 warnings · 11 critical
    """
    from hyperv_host_agent import checks

    findings = []
    for finding in checks.run(settings, SystemClock()):
        findings.append(finding)
        if form == "table":
            click.echo(f"{_MARKS[finding.verdict.value]} {finding.what}: {finding.text}")
            if finding.next_step:
                click.echo(f"  Next: {finding.next_step}")
    if form == "json":
        click.echo(
            json.dumps(
                [
                    {"what": one.what, "verdict": one.verdict.value, "text": one.text, "next_step": one.next_step}
                    for one in findings
                ]
            )
        )
    verdicts = {one.verdict for one in findings}
    if checks.Verdict.CRITICAL in verdicts:
        raise click.exceptions.Exit(_CRITICAL if exit_code else 1)
    if checks.Verdict.WARNING in verdicts and exit_code:
        raise click.exceptions.Exit(_WARNINGS)


def main() -> None:
    """`twinsite-host`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; its exit status."""
    return program.run(host, "twinsite-host", arguments)


def _role(role: int) -> str:
    return {1: "source", 2: "target"}.get(role, "unknown")


if __name__ == "__main__":
    main()
