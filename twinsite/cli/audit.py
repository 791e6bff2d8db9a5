"""`twinsite audit`."""

import click

from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli.command import Context, command
from twinsite.cli.output import local


@click.group()
def audit() -> None:
    """The audit log."""


@audit.command(name="list")
@click.option("--limit", type=click.IntRange(1, 10000), default=100, show_default=True)
@click.option("--actor", default="", help="For example user/ana or server/vmm-a.")
@command()
async def list_(context: Context, limit: int, actor: str) -> None:
    """Who did what, newest first; the hash chain is checked on the way.

    \b
    twinsite audit list --limit 20
    """
    async with context.connect() as api:
        answer = await api.audit.List(admin_pb2.ListAuditRequest(limit=limit, actor=actor))
    rows = [
        (
            str(r.sequence),
            local(r.at),
            r.actor,
            r.action,
            r.target,
            r.outcome,
            " ".join(f"{name}={value}" for name, value in sorted(r.facts.items())),
        )
        for r in answer.records
    ]
    columns = ("SEQ", "TIME", "ACTOR", "ACTION", "TARGET", "OUTCOME", "FACTS")
    context.output.items("AuditList", admin_pb2.AuditRecord, answer.records, columns, rows)
    if not answer.chain_intact:
        context.output.note(f"! the chain is broken: record {answer.first_broken} was altered")
        raise click.exceptions.Exit(1)
