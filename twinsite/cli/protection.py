"""A VM's protection in words, for a row and for a page."""

from twinsite import units
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.cli.output import Output, local


def facts(output: Output, p: admin_pb2.Protection) -> list[tuple[str, str]]:
    """What `vm show` says of it."""
    saved = f", {p.changed_bytes / p.wire_bytes:.1f} : 1 on the wire" if 0 < p.wire_bytes <= p.changed_bytes else ""
    return [
        ("Health", output.health(p.health)),
        ("Reason", p.reason),
        ("State", state(p)),
        ("Pair", p.pair),
        ("Replica on", p.target_host),
        ("Owner", f"{p.owner_host}, term {p.term}"),
        ("RPO", f"now {rpo(p).replace('/', ', target ')}"),
        ("Newest point", f"{p.newest_cycle}, {local(p.newest_instant)}" if p.newest_cycle else ""),
        ("Points", str(p.points)),
        ("Initial copy", _initial(p)),
        ("Cycles", f"{p.cycles}, last took {p.last_cycle_seconds:.1f} s{_causes(p)}"),
        ("Note", p.note),
        ("Rate cap", f"{units.rate(p.rate_bytes_per_second)} now" if p.rate_bytes_per_second else ""),
        ("Changed", f"{units.size(p.changed_bytes)}, sent {units.size(p.wire_bytes)}{saved}"),
        ("Checked", _scrub(p.scrub) if p.HasField("scrub") else ""),
        ("Failed over to", str(p.failover_cycle) if p.failover_cycle else ""),
        ("Tests", ", ".join(p.tests)),
        ("Protected since", local(p.protected_since)),
    ]


def state(p: admin_pb2.Protection) -> str:
    """With the percentage of an initial replication."""
    if p.state == "initial" and p.initial_total_bytes:
        return f"initial {100 * p.initial_done_bytes // p.initial_total_bytes} %"
    return p.state.replace("_", " ")


def rpo(p: admin_pb2.Protection) -> str:
    """Age of the newest point and how often one is due."""
    now = units.duration(p.rpo_age_seconds) if p.rpo_known else "<none>"
    return f"{now}/{units.duration(p.frequency_seconds)}"


def _initial(p: admin_pb2.Protection) -> str:
    if p.initial_start.seconds:
        return f"begins {local(p.initial_start)}  (now: twinsite vm start-initial)"
    return "on media: waits for its seed  (twinsite seed status)" if p.awaiting_seed else ""


def _causes(p: admin_pb2.Protection) -> str:
    """Where its seconds went, the longest first."""
    spent = {field.name: float(seconds) for field, seconds in p.last_causes.ListFields() if seconds >= 0.05}
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{cause} {seconds:.1f} s' for cause, seconds in ranked)})" if ranked else ""


def _scrub(scrub: types_pb2.Scrub) -> str:
    words = [f"whole on {local(scrub.completed)}"] if scrub.completed.seconds else ["not whole yet"]
    if scrub.total_bytes:
        words.append(f"this round {100 * scrub.checked_bytes // scrub.total_bytes} %")
    return ", ".join([*words, f"{scrub.damaged_clusters} damaged, {scrub.repaired_clusters} repaired"])
