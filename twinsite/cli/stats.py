"""`twinsite vm stats` and `twinsite vm explain`: what was measured of replication, and what it means."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import click

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli import names
from twinsite.cli.command import DURATION, Context, command
from twinsite.cli.output import emit_csv, for_people, local

_DAY: Final = 86400
_CAUSES: Final = tuple(field.name for field in types_pb2.Causes.DESCRIPTOR.fields)
_NUMBERS: Final = (
    "resolution_seconds",
    "cycles",
    "missed",
    "failures",
    "changed_bytes",
    "content_bytes",
    "wire_bytes",
    "rpo_max_seconds",
    "seconds_max",
    "seconds_sum",
)


@click.command()
@click.argument("name", shell_complete=names.vms)
@click.option("--since", type=DURATION, default="24h", help="So far back, at most 30d; 24h unless told.")
@click.option("--pair", is_flag=True, help="NAME is a pair: all its VMs together.")
@command(watches=True)
async def stats(context: Context, name: str, since: int, pair: bool) -> None:
    """What replication did: points in time, changes, bytes sent, and where the time went.

    Minutes for 2 days, quarters of an hour for 7, hours for 30; csv and json have them as they were measured.

    \b
    twinsite vm stats web01
    twinsite vm stats web01 --since 7d -o csv
    twinsite vm stats gold-a:gold-b --pair
    """
    async with context.connect() as api:
        answer = await api.machines.Stats(admin_pb2.StatsRequest(name=name, pair=pair, since_seconds=since))
        machine = None if pair else await api.machines.Show(admin_pb2.ShowRequest(name=name))
    disks = {disk.id: disk.name for disk in machine.machine.disks} if machine is not None else {}
    out = context.output
    if out.csv:
        _csv(answer.rows, disks)
        return
    if out.json or out.form == "name":
        out.items(
            "StatsList", admin_pb2.StatsRow, answer.rows, ("START",), [(local(row.start),) for row in answer.rows]
        )
        return
    if not answer.rows:
        out.note(_nothing(answer, name, since, pair=pair))
        return
    out.facts([each for each in _summary(answer, machine) if each[1]])
    click.echo()
    columns = ("FROM", "CYCLES", "MISSED", "CHANGED", "SENT", "RATIO", "OLDEST", "AVERAGE", "LONGEST", "MOSTLY")
    out.table(columns, [_line(begin, rows) for begin, rows in _stretches(answer.rows, since)])
    if churn := _churn(answer.rows, disks):
        click.echo()
        out.table(("DISK", "CHANGED", "SHARE", "PER-HOUR", "BUSIEST-HOUR", "IT-BEGAN"), churn)


def _nothing(answer: admin_pb2.StatsResponse, name: str, since: int, *, pair: bool) -> str:
    if not answer.HasField("protected_since"):
        if pair:
            return f"nothing was measured: no VM is protected through {name}"
        return f"nothing was measured: {name} is not protected  (twinsite vm protect {name} --pair SOURCE:TARGET)"
    begun = f"protected since {local(answer.protected_since)}; the first minute comes within two after its first"
    return f"nothing was measured in the last {units.span(since)}: {name} is {begun}"


def _csv(rows: Sequence[admin_pb2.StatsRow], disks: Mapping[str, str]) -> None:
    known = list(disks) + sorted({change.disk_id for row in rows for change in row.disks} - set(disks))
    columns = ["start", *_NUMBERS, *(f"{cause}_seconds" for cause in _CAUSES)]
    columns += [f"changed_bytes:{disks.get(disk, disk)}" for disk in known]

    def line(row: admin_pb2.StatsRow) -> list[object]:
        changed = {change.disk_id: change.changed_bytes for change in row.disks}
        cells: list[object] = [units.rfc3339(row.start.seconds), *(getattr(row, name) for name in _NUMBERS)]
        cells += [getattr(row.causes, cause) for cause in _CAUSES]
        return cells + [changed.get(disk, 0) for disk in known]

    emit_csv(columns, map(line, rows))


def _summary(answer: admin_pb2.StatsResponse, machine: admin_pb2.MachineView | None) -> list[tuple[str, str]]:
    rows = answer.rows
    cycles, missed, failures = (sum(getattr(row, name) for row in rows) for name in ("cycles", "missed", "failures"))
    changed, content, wire = (
        sum(getattr(row, f"{name}_bytes") for row in rows) for name in ("changed", "content", "wire")
    )
    share = f" ({100 * missed / (cycles + missed):.1f} %)" if missed else ""
    failed = f", {failures} attempts failed" if failures else ""
    age = ""
    if machine is not None and machine.HasField("protection") and machine.protection.rpo_known:
        age = f"now {units.duration(machine.protection.rpo_age_seconds)}, "
        age += f"target {units.span(machine.protection.frequency_seconds)}, "
    return [
        ("Measured", f"{local(rows[0].start)} to {local(rows[-1].start)}"),
        ("VMs", str(answer.vms) if machine is None else ""),
        ("RPO age", f"{age}at most {units.duration(max(row.rpo_max_seconds for row in rows))}"),
        ("Cycles", f"{cycles}, {missed} missed{share}{failed}"),
        ("A cycle took", f"{_average(rows)} on average, {_seconds(max(row.seconds_max for row in rows))} at most"),
        ("Changed", f"{units.size(changed)}, sent {units.size(wire)}"),
        ("Compression", _ratio(content, wire)),
        ("Where it went", ", ".join(f"{cause} {100 * part:.0f} %" for cause, part in _shares(rows) if part >= 0.01)),
    ]


def _stretches(rows: Iterable[admin_pb2.StatsRow], since: int) -> Iterable[tuple[int, list[admin_pb2.StatsRow]]]:
    """Hours of the local day; days when it is more than two."""
    found: dict[int, list[admin_pb2.StatsRow]] = {}
    for row in rows:
        begin = datetime.fromtimestamp(row.start.seconds).astimezone().replace(minute=0, second=0)
        if since > 2 * _DAY:
            begin = begin.replace(hour=0)
        found.setdefault(int(begin.timestamp()), []).append(row)
    return sorted(found.items())


def _line(begin: int, rows: Sequence[admin_pb2.StatsRow]) -> tuple[str, ...]:
    wire = sum(row.wire_bytes for row in rows)
    cause = next(iter(_shares(rows)), ("", 0.0))
    return (
        f"{datetime.fromtimestamp(begin).astimezone():%Y-%m-%d %H:%M}",
        str(sum(row.cycles for row in rows)),
        str(sum(row.missed for row in rows)),
        units.size(sum(row.changed_bytes for row in rows)),
        units.size(wire),
        _ratio(sum(row.content_bytes for row in rows), wire) or "<none>",
        units.duration(max(row.rpo_max_seconds for row in rows)),
        _average(rows),
        _seconds(max(row.seconds_max for row in rows)),
        f"{cause[0]} {100 * cause[1]:.0f} %" if cause[0] else "<none>",
    )


def _churn(rows: Sequence[admin_pb2.StatsRow], disks: Mapping[str, str]) -> list[tuple[str, ...]]:
    """What the guest changed, by disk, most first."""
    by_disk: dict[str, dict[int, int]] = {}
    for row in rows:
        for change in row.disks:
            hours = by_disk.setdefault(change.disk_id, {})
            hour = row.start.seconds - row.start.seconds % 3600
            hours[hour] = hours.get(hour, 0) + change.changed_bytes
    totals = {disk: sum(hours.values()) for disk, hours in by_disk.items()}
    whole = sum(totals.values())
    span = max(1.0, (rows[-1].start.seconds + rows[-1].resolution_seconds - rows[0].start.seconds) / 3600)
    lines: list[tuple[str, ...]] = []
    for disk in sorted(totals, key=lambda each: totals[each], reverse=True):
        busiest = max(by_disk[disk], key=lambda hour: by_disk[disk][hour])
        lines.append(
            (
                disks.get(disk, disk),
                units.size(totals[disk]),
                f"{100 * totals[disk] / whole:.0f} %" if whole else "<none>",
                units.size(int(totals[disk] / span)),
                units.size(by_disk[disk][busiest]),
                f"{datetime.fromtimestamp(busiest).astimezone():%Y-%m-%d %H:%M}",
            )
        )
    return lines


def _shares(rows: Iterable[admin_pb2.StatsRow]) -> list[tuple[str, float]]:
    """Causes and their part of the time, largest first; empty when nothing was timed."""
    sums = dict.fromkeys(_CAUSES, 0.0)
    for row in rows:
        for cause in _CAUSES:
            sums[cause] += getattr(row.causes, cause)
    whole = sum(sums.values())
    return sorted(((cause, part / whole) for cause, part in sums.items()), key=lambda each: -each[1]) if whole else []


def _average(rows: Sequence[admin_pb2.StatsRow]) -> str:
    cycles = sum(row.cycles for row in rows)
    return _seconds(sum(row.seconds_sum for row in rows) / cycles) if cycles else "<none>"


def _seconds(value: float) -> str:
    return f"{value:.1f}s" if value < 60 else units.duration(value)


def _ratio(content: int, wire: int) -> str:
    return f"{content / wire:.1f} : 1" if content and wire else ""


@click.command()
@click.argument("name", shell_complete=names.vms)
@command(watches=True)
async def explain(context: Context, name: str) -> None:
    """How late a VM's newest point is, why, and what would fix it.

    \b
    twinsite vm explain web01
    """
    async with context.connect() as api:
        found = await api.machines.Explain(admin_pb2.ShowRequest(name=name))
    if context.output.form != "table":
        told = [("Verdict", found.verdict), *(("Fact", fact) for fact in found.facts)]
        context.output.one("Explanation", found, [*told, *(("Remedy", remedy) for remedy in found.remedies)])
        return
    click.echo(for_people(found.verdict))
    for fact in found.facts:
        click.echo(f"  {for_people(fact)}")
    for remedy in found.remedies:
        click.echo(f"What would help: {for_people(remedy)}")
