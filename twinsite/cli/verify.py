"""Checking a replica: the job, and what it found as a table."""

import json

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import commands_pb2
from twinsite.cli import confirm, waiting
from twinsite.cli.command import Context


async def run(context: Context, request: admin_pb2.VerifyRequest) -> None:
    """Ends with 3 when damage remains."""
    async with context.connect() as api:
        answer = await api.machines.Verify(request)
        if request.dry_run:
            confirm.show(answer.consequences, answer.warnings)
            return
        confirm.show([], answer.warnings)
        if not context.wait or context.output.json:  # the job's result is in the summary
            await context.finish(api, answer.job_id)
            return
        code = await waiting.follow(api, answer.job_id, context.output, timeout=context.wait_timeout)
        result = dict((await api.jobs.Show(admin_pb2.ShowRequest(name=answer.job_id))).result)
    if "checked_bytes" in result:
        _show(context, result)
    if code:
        raise click.exceptions.Exit(code)


def _show(context: Context, result: dict[str, str]) -> None:
    damage = json.loads(result["damage"])
    if damage:
        messages = [
            commands_pb2.Damage(
                disk_id=one["disk"],
                file=one["file"],
                cluster=one["cluster"],
                whole_file=one["whole_file"],
                problem=one["problem"],
                repaired=one["repaired"],
                points=one["points"],
            )
            for one in damage
        ]
        rows = [
            (
                one.file,
                "all" if one.whole_file else str(one.cluster),
                one.problem,
                "repaired" if one.repaired else "damaged",
                ",".join(map(str, one.points)),
                one.disk_id[:8],
            )
            for one in messages
        ]
        columns = ("FILE", "CLUSTER", "PROBLEM", "STATE", "POINTS", "DISK")
        context.output.items("DamageList", commands_pb2.Damage, messages, columns, rows)
    counts = {name: int(result[f"{name}_clusters"]) for name in ("damaged", "repaired", "wanted")}
    shown = f", {len(damage)} of them shown" if len(damage) < counts["damaged"] + counts["repaired"] else ""
    damaged, repaired = counts["damaged"], counts["repaired"]
    found = f"{units.count(damaged, 'cluster')} {'is' if damaged == 1 else 'are'} damaged"
    found += f", {repaired} {'was' if repaired == 1 else 'were'} repaired{shown}"
    asked = f", {counts['wanted']} asked of the source" if counts["wanted"] else ""
    context.output.note(f"{units.size(int(result['checked_bytes']))} checked: {found}{asked}")
