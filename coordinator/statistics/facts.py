"""Sentences on what was measured. No I/O."""

from coordinator.statistics.lateness import Pace, burst, busiest_disk, speed
from coordinator.statistics.situation import Situation
from twinsite.units import duration, size, span


def age(case: Situation) -> str:
    due = f"one is due every {span(case.policy.frequency_seconds)}"
    if case.rpo_age is None:
        return f"there is no recovery point yet; {due}"
    return f"the newest point is {duration(case.rpo_age)} old, {due}"


def attempts(case: Situation) -> list[str]:
    failures = case.hour.failures
    return [f"{failures} attempts of the last hour ended in an error"] if failures else []


def protected_for(case: Situation) -> tuple[str, ...]:
    since = case.now - case.protected_since
    return (f"it was protected {duration(max(0.0, since))} ago",) if case.protected_since else ()


def share(pace: Pace, cause: str) -> str:
    return f"{100 * pace.shares[cause]:.0f} %"


def cycle_facts(case: Situation, pace: Pace | None) -> list[str]:
    """Where the time goes, how much changes, and what brings it."""
    if pace is None or not pace.measured.cycles:
        return []
    measured = pace.measured
    facts = [f"a cycle takes {took(measured.average_seconds)} on average, {took(measured.seconds_max)} at most"]
    parts = [f"{name} {share(pace, name)}" for name, part in pace.shares.items() if part >= 0.05]
    if len(parts) > 1:
        facts.append(f"of it {', '.join(parts)}")
    if measured.disks and measured.wire_bytes:
        sent = f"{speed(pace.churn)} of changes against {speed(pace.sent)} sent" if pace.sent else ""
        facts.append(sent or f"{speed(pace.churn)} of changes")
        if pace.ratio >= 1.05:
            facts.append(f"compression makes {pace.ratio:.1f} : 1")
    disk = busiest_disk(measured, case.disks)
    if disk is not None:
        facts.append(f"disk {disk[0]} brings {100 * disk[1]:.0f} % of the changes")
    times = burst(case.rows, pace, case.now)
    if times:
        facts.append(f"that is {times:.0f} times what changed in an ordinary hour of the last day")
    if pace.falls_behind:
        facts.append(f"{size(pace.pending_bytes)} wait: changes come faster than they go, at any frequency")
    return facts


def took(value: float) -> str:
    return f"{value:.1f}s" if value < 10 else duration(value)
