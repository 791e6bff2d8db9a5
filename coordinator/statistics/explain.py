"""Why a VM is late, or is not: rules over its situation. No I/O."""

from typing import Final

from coordinator.protection.health import AHEAD_SECONDS, MISSED_SHARE, MONITORED_SECONDS
from coordinator.protection.model import REPLICATING, Phase
from coordinator.statistics.causes import BY_CAUSE, cap, cap_remedies
from coordinator.statistics.facts import age, attempts, cycle_facts, protected_for, share, took
from coordinator.statistics.lateness import Pace, busiest_disk, minutes_unseen, speed
from coordinator.statistics.model import CAUSES, DAY, HOUR, MINUTE, total
from coordinator.statistics.situation import Explanation, Situation
from twinsite import units
from twinsite.api.types.v1 import types_pb2
from twinsite.units import count, duration, size

_LATE: Final = 2.0  # frequencies; a point is as old as one and a cycle just before the next arrives
_SLACK_SECONDS: Final = 10.0


def explain(case: Situation) -> Explanation:
    """The first that holds, worst first."""
    for rule in (_not_replicating, _stopped, _silent, _first_copy, _clock, _late, _damaged, _was_late, _again):
        found = rule(case)
        if found is not None:
            return found
    return _fine(case)


# ---- what is not lateness ---------------------------------------------------------------------------------------


def _not_replicating(case: Situation) -> Explanation | None:
    if case.phase is None:
        protect = f"twinsite vm protect {case.name} --pair SOURCE:TARGET"
        return Explanation(f"{case.name} is not protected: nothing is replicated", (), (protect,))
    if case.phase not in REPLICATING:
        return Explanation(f"{case.name} is not replicated now: {case.health.reason}")
    if case.paused:
        facts = [f"what would be lost grows: {age(case)}"]
        if case.sending.pending_bytes:
            facts.append(f"{size(case.sending.pending_bytes)} have changed and wait")
        return Explanation(
            f"replication of {case.name} was paused by an administrator",
            tuple(facts),
            (f"twinsite vm resume {case.name}",),
        )
    return None


def _stopped(case: Situation) -> Explanation | None:
    for side in (case.target, case.source):
        status = side.status
        if status is None or not side.fresh(case.now):
            continue
        if status.state == types_pb2.REPLICATION_STATE_FENCED:
            verdict = f"{case.name} is not replicated: {side.host} was told that another host owns it"
            return Explanation(verdict, (age(case),), (f"twinsite vm show {case.name}",))
        if status.state == types_pb2.REPLICATION_STATE_BLOCKED:
            reason = status.reason
            facts = [reason.cause, reason.still_works, age(case), *attempts(case)]
            verdict = f"{case.name} cannot be replicated now: {side.host}: {reason.message or 'it does not go on'}"
            return Explanation(verdict, tuple(filter(None, facts)), tuple(filter(None, [reason.next_step])))
    return None


def _silent(case: Situation) -> Explanation | None:
    for side, part in ((case.target, "the target"), (case.source, "the source")):
        silence = side.silence(case.now)
        if silence and not (side is case.source and case.phase is Phase.INITIAL and side.status is None):
            verdict = f"how {case.name} is replicated is not known: {silence}"
            remedies = (
                f"check that host {side.host} runs and reaches its provider, and that one us: twinsite host list",
            )
            return Explanation(verdict, (f"{side.host} is {part}", age(case)), remedies)
    return None


def _first_copy(case: Situation) -> Explanation | None:
    if case.phase is not Phase.INITIAL:
        return None
    if case.initial_start > case.now:
        verdict = f"the initial replication of {case.name} begins in {duration(case.initial_start - case.now)}"
        return Explanation(
            verdict,
            ("that time was chosen when it was protected",),
            (f"twinsite vm start-initial {case.name} begins it now",),
        )
    if case.receiving.awaiting_seed:
        return Explanation(
            f"{case.name} waits for its initial copy, which comes on media",
            ("changes are sent meanwhile",),
            (f"twinsite seed export {case.name} --to PATH, carry it, twinsite seed import {case.name} --from PATH",),
        )
    done, whole = case.sending.initial_done_bytes, case.sending.initial_total_bytes
    if not whole:
        return Explanation(f"the initial replication of {case.name} has not begun", protected_for(case))
    facts = [f"{size(done)} of {size(whole)} are at {case.target.host}"]
    lately = [row for row in case.rows if row.start >= case.now - 900]
    copied = total(lately)
    if lately and copied.changed_bytes:
        pace = copied.changed_bytes / max(60.0, case.now - lately[0].start)
        left = duration(max(0, whole - done) / pace)
        facts.append(f"{speed(pace)} are copied: it ends in about {left}")
    remedies: tuple[str, ...] = ()
    if case.sending.rate_bytes_per_second:
        facts.append(f"{cap(case)} holds it back")
        remedies = cap_remedies(case)
    return Explanation(f"the initial replication of {case.name} is at {100 * done // whole} %", tuple(facts), remedies)


def _clock(case: Situation) -> Explanation | None:
    ahead = case.newest_instant - case.now
    if ahead <= AHEAD_SECONDS:
        return None
    verdict = f"the age of {case.name}'s points is not known: the newest is dated {duration(ahead)} in the future"
    return Explanation(
        verdict, (f"it has the clock of host {case.source.host}",), (f"set the clock of {case.source.host}",)
    )


def _damaged(case: Situation) -> Explanation | None:
    count = case.receiving.scrub.damaged_clusters
    if not count:
        return None
    tried = count <= case.receiving.scrub.tried_clusters
    found = f"{count} damaged cluster{'s were' if count != 1 else ' was'} found at {case.target.host}"
    return Explanation(
        f"{case.name} is in time, but {found}",
        (
            "what the source still has is sent again with the next cycles; the point list marks points on the rest",
            age(case),
        ),
        (
            f"a repair was tried; twinsite point list {case.name} shows which points are good"
            if tried
            else f"twinsite vm verify {case.name} --repair; twinsite point list {case.name}",
            f"look at the health of the disk that holds {case.target.host}'s store",
        ),
    )


def _again(case: Situation) -> Explanation | None:
    """Slower than usual, and in time all the same."""
    if case.sending.note:
        verdict = f"{case.name} is in time; a cycle is slower than usual: {case.sending.note}"
        return Explanation(verdict, (age(case), *cycle_facts(case, case.pace())))
    if case.sending.state == types_pb2.REPLICATION_STATE_RESYNCHRONIZING:
        verdict = f"{case.name} is being compared with its replica; only what differs is sent"
        return Explanation(verdict, (age(case), "points at the target stay"))
    return None


# ---- lateness---------------------------------------------------------------------------------------------------


def _late(case: Situation) -> Explanation | None:
    frequency = case.policy.frequency_seconds
    old = case.rpo_age
    overdue = old is None or old > _LATE * frequency + _SLACK_SECONDS
    hour = case.hour
    missed = (hour.missed_share or 0.0) > MISSED_SHARE
    if not overdue and not missed and not case.sending.late:
        return None
    pace = case.pace()
    if case.sending.note:
        verdict = f"{case.name} is late: a cycle is slower than usual: {case.sending.note}"
        return Explanation(verdict, (age(case), *cycle_facts(case, pace)))
    if hour.failures and hour.failures >= hour.cycles:
        verdict = f"{case.name} is late: {count(hour.failures, 'attempt')} of the last hour ended in an error"
        told = [age(case), f"{count(hour.cycles, 'cycle')} of the last hour arrived"]
        remedy = f"look at the logs of the host agents of {case.source.host} and {case.target.host}"
        return Explanation(verdict, tuple(told), (remedy,))
    unseen = minutes_unseen(case.rows, case.now, since=case.protected_since)
    if unseen > 2 and (pace is None or pace.measured.average_seconds < frequency):
        verdict = f"{case.name} is late: the agent of {case.source.host} did not run for {duration(60 * unseen)}"
        told = [f"of the last hour; {age(case)}", *cycle_facts(case, pace)]
        return Explanation(verdict, tuple(told), (f"see why it ended in the log of host {case.source.host}",))
    if pace is None or not pace.cause:
        verdict = f"{case.name} is late, and no cycle was measured that could say why"
        return Explanation(verdict, (age(case),), (f"look at the log of the host agent of {case.source.host}",))
    last = case.turned()
    because, remedies = BY_CAUSE[last.cause](case, last) if last else BY_CAUSE[pace.cause](case, pace)
    were = "was" if hour.missed == 1 else "were"
    missing = f"{hour.missed} of {count(hour.missed + hour.cycles, 'cycle')} of the last hour {were} missed"
    told = [age(case), *cycle_facts(case, pace), *([missing] if hour.missed else [])]
    if last:
        spent = sum(getattr(case.sending.last_causes, cause) for cause in CAUSES)
        told.insert(1, f"the last cycle took {took(spent)}, {share(last, last.cause)} of it {last.cause}")
    how = "is late" if overdue else "has late cycles"
    return Explanation(f"{case.name} {how}: {because}", tuple(told), tuple(remedies))


def _was_late(case: Situation) -> Explanation | None:
    """In time now, and not over the time that health looks at."""
    rows = [row for row in case.rows if row.start >= case.now - MONITORED_SECONDS]
    share = total(rows).missed_share or 0.0
    bad = [row for row in rows if row.measured.missed]
    if share <= MISSED_SHARE:
        return None
    by_hour: dict[int, int] = {}
    for row in bad:
        by_hour[row.start // HOUR] = by_hour.get(row.start // HOUR, 0) + row.measured.missed
    worst = units.rfc3339(HOUR * max(by_hour, key=lambda hour: by_hour[hour]))
    span = units.span(int(MONITORED_SECONDS))
    verdict = f"{case.name} is in time now, but {share:.0%} of the cycles of the last {span} were missed"
    told = [age(case), f"most of them in the hour from {worst}"]
    pace = Pace(measured=total(bad), seconds=float(MINUTE * len(bad)))
    if not pace.cause:
        return Explanation(verdict, tuple(told))
    because, remedies = BY_CAUSE[pace.cause](case, pace)
    return Explanation(f"{verdict}: {because}", (*told, *cycle_facts(case, pace)), tuple(remedies))


def _fine(case: Situation) -> Explanation:
    day = total(row for row in case.rows if row.start >= case.now - DAY)
    facts = [age(case)]
    if day.cycles:
        missed = f"{day.missed} missed" if day.missed else "none missed"
        facts.append(f"{count(day.cycles, 'cycle')} in the last day, {missed}, {took(day.average_seconds)} on average")
        facts.append(f"{size(sum(day.disks.values()))} changed, {size(day.wire_bytes)} sent")
        disk = busiest_disk(day, case.disks)
        if disk is not None:
            facts.append(f"disk {disk[0]} brings {100 * disk[1]:.0f} % of the changes")
    elif not case.rows:
        facts.append("nothing was measured yet; the first minute comes within two")
    return Explanation(f"{case.name} is replicated in time", tuple(facts))
