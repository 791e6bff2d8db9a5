"""How well a protected VM is protected, from what its hosts reported and when. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from coordinator.protection.model import REPLICATING, Phase
from twinsite.api.types.v1 import types_pb2
from twinsite.units import count, duration, rate

FRESH_SECONDS: Final = 60.0  # so long the last word of a host that went away still counts
SLACK_SECONDS: Final = 10.0  # between a commit and our hearing of it
SLOW_CYCLE_SECONDS: Final = 300.0
MONITORED_SECONDS: Final = 12 * 3600.0
MISSED_SHARE: Final = 0.2  # of the cycles of that time may be missed
AHEAD_SECONDS: Final = 60.0  # so much two clocks may differ

NORMAL, WARNING, CRITICAL, PAUSED, UNKNOWN = "normal", "warning", "critical", "paused", "unknown"
WORST_FIRST: Final = (CRITICAL, UNKNOWN, WARNING, PAUSED, NORMAL)

_STATES: Final = {
    types_pb2.REPLICATION_STATE_WAITING: "initial",
    types_pb2.REPLICATION_STATE_INITIAL: "initial",
    types_pb2.REPLICATION_STATE_REPLICATING: "replicating",
    types_pb2.REPLICATION_STATE_RESYNCHRONIZING: "resynchronizing",
    types_pb2.REPLICATION_STATE_PAUSED: "paused",
    types_pb2.REPLICATION_STATE_BLOCKED: "blocked",
    types_pb2.REPLICATION_STATE_FENCED: "blocked",
}
_HALTED: Final = (types_pb2.REPLICATION_STATE_FENCED, types_pb2.REPLICATION_STATE_BLOCKED)
# What held a cycle longest, by the name of its field in Causes.
_CAUSES: Final = {
    "source": "reading the VM's disks takes longest",
    "compress": "compressing takes longest",
    "network": "the network takes longest",
    "target": "writing at the target takes longest",
    "cap": "a rate cap holds it back",
    "turn": "other VMs of its host come first",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one of the two hosts said last of one VM.

    Hosts say what changed, when it changed. So while a host is connected its last word holds, however old.
    """

    host: str  # its name
    connected: bool  # the host to its provider and that to us
    heard: float = 0.0  # seconds since 1970: when its last word was known to hold; 0: it never said one
    status: types_pb2.ReplicationStatus | None = None

    def fresh(self, now: float) -> bool:
        return self.status is not None and (self.connected or now - self.heard <= FRESH_SECONDS)

    def silence(self, now: float) -> str:
        """A sentence when the host says nothing now, else empty."""
        if self.status is None:
            return f"host {self.host} has not reported yet"
        if self.connected:
            return ""
        return f"host {self.host} is not connected and has not reported for {duration(max(0.0, now - self.heard))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that health is judged by."""

    phase: Phase
    paused: bool
    frequency_seconds: int
    source: Side
    target: Side
    newest_instant: float  # of the newest recoverable point the target told of, 0: none
    initial_start: float = 0.0  # seconds since 1970: the initial replication waits until then
    newest_damaged: int = 0  # clusters of the newest recoverable point that are damaged
    missed_share: float | None = None  # of the cycles due in the last MONITORED_SECONDS; None: nothing was measured


@dataclass(frozen=True, slots=True)
class Health:
    state: str  # as in admin.proto: Protection.state
    health: str
    reason: str  # a sentence, empty when normal


def rpo_age(newest_instant: float, now: float) -> float | None:
    """Seconds that would be lost now; None before the first point. Keeps growing when nobody reports."""
    return max(0.0, now - newest_instant) if newest_instant else None


def judge(evidence: Evidence, now: float) -> Health:
    """The state and health words of one VM. Normal needs fresh reports of both sides."""
    if evidence.phase not in REPLICATING:
        return _outside(evidence, now)
    state = _state(evidence, now)
    if evidence.paused:
        quiet = [side.silence(now) for side in (evidence.source, evidence.target) if not side.fresh(now)]
        return Health("paused", PAUSED, "; ".join(["replication was paused; what would be lost grows", *quiet]))
    if evidence.phase is Phase.INITIAL and evidence.initial_start > now:
        return Health(state, WARNING, f"initial replication begins in {duration(evidence.initial_start - now)}")
    if not evidence.target.fresh(now):
        return Health(state, UNKNOWN, evidence.target.silence(now))
    if any(_said(evidence, now, word) for word in _HALTED):
        state = "blocked"
    found = sorted(_findings(evidence, now), key=lambda finding: WORST_FIRST.index(finding[0]))
    if not found:
        return Health(state, NORMAL, "")
    return Health(state, found[0][0], "; ".join(dict.fromkeys(sentence for _, sentence in found)))


def _findings(evidence: Evidence, now: float) -> Iterator[tuple[str, str]]:
    """(health, sentence) of all that is not as it should be."""
    late = _late(evidence, now)
    fenced = _said(evidence, now, types_pb2.REPLICATION_STATE_FENCED)
    if fenced is not None:
        yield CRITICAL, f"{fenced.host} was told that another host owns this VM"
    blocked = _said(evidence, now, types_pb2.REPLICATION_STATE_BLOCKED)
    if blocked is not None:
        # It goes on by itself; while no point is overdue that is no emergency.
        patient = late == NORMAL and evidence.newest_instant
        yield WARNING if patient else CRITICAL, _why(blocked)
    yield from _damage(evidence)
    silent = evidence.source.silence(now)
    if evidence.phase is Phase.INITIAL:
        if blocked is None:
            yield WARNING, _initial(evidence)
    elif late != NORMAL and blocked is None:
        yield late, _overdue(evidence, now)
    if silent:
        yield WARNING, silent
    if evidence.phase is not Phase.INITIAL and blocked is None:
        yield from _slow(evidence, now, known_late=late != NORMAL)


def _damage(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.newest_damaged:
        where = count(evidence.newest_damaged, "cluster")
        yield CRITICAL, f"the newest point is damaged in {where}; an older one may be good"
        return
    status = evidence.target.status
    found = status.scrub.damaged_clusters if status is not None else 0
    if found:
        what = count(found, "damaged cluster")
        where = f"at {evidence.target.host}: what can be had from the source or elsewhere is mended"
        yield WARNING, f"{what} {where}, the point list marks points that stand on the rest"


def _overdue(evidence: Evidence, now: float) -> str:
    age = rpo_age(evidence.newest_instant, now)
    old = f"the newest point is {duration(age)} old" if age is not None else "there is no recovery point"
    return f"{old}, one is due every {duration(evidence.frequency_seconds)}{_because(evidence)}"


def _slow(evidence: Evidence, now: float, *, known_late: bool) -> Iterator[tuple[str, str]]:
    """What makes points rarer than they should be, though none may be overdue now."""
    ahead = evidence.newest_instant - now
    if ahead > AHEAD_SECONDS:
        reason = f"the newest point is dated {duration(ahead)} ahead of the coordinator's clock, so a missed one would"
        yield WARNING, f"{reason} not be noticed; set the clock of host {evidence.source.host}"
    if _state(evidence, now) == "resynchronizing":
        yield WARNING, "what differs is being found and sent again"
    because = "" if known_late else _because(evidence)
    if evidence.missed_share is not None and evidence.missed_share > MISSED_SHARE:
        hours = int(MONITORED_SECONDS / 3600)
        yield WARNING, f"{evidence.missed_share:.0%} of the cycles of the last {hours} hours were missed{because}"
    cycle = _cycle_seconds(evidence)
    if cycle > max(SLOW_CYCLE_SECONDS, evidence.frequency_seconds):
        yield WARNING, f"a cycle takes {duration(cycle)}{because}"


def _because(evidence: Evidence) -> str:
    """What held the last cycle longest, and why it is slower than others; empty when the source knows nothing."""
    status = evidence.source.status
    if status is None:
        return ""
    cause = _CAUSES.get(status.late, "")
    if status.late == "cap" and status.rate_bytes_per_second:
        cause = f"the cap of {rate(status.rate_bytes_per_second)} holds it back"
    return "".join(f": {part}" for part in (cause, status.note) if part)


def _outside(evidence: Evidence, now: float) -> Health:
    if evidence.phase is Phase.PREPARING:
        return Health("preparing", WARNING, "not protected yet: the target is being prepared")
    if evidence.phase is Phase.FAILING_OVER:
        reason = f"the failover to {evidence.target.host} has not finished; if its job failed, fail over again"
        return Health("failed_over", CRITICAL, reason)
    if evidence.phase is Phase.FAILED_OVER:
        reason = f"it runs on {evidence.target.host} since its failover and is not protected there"
        if not evidence.target.fresh(now):
            return Health("failed_over", UNKNOWN, evidence.target.silence(now))
        return Health("failed_over", WARNING, reason)
    return Health("unprotecting", WARNING, "its protection is being removed")


def _state(evidence: Evidence, now: float) -> str:
    """The source knows what it does; the target only what it received."""
    if evidence.phase is Phase.INITIAL:
        return "initial"
    for side in (evidence.source, evidence.target):
        if side.fresh(now) and side.status is not None and side.status.state in _STATES:
            state = _STATES[side.status.state]
            return "replicating" if state in {"paused", "initial"} else state
    return "replicating"


def _said(evidence: Evidence, now: float, state: "types_pb2.ReplicationState.ValueType") -> Side | None:
    """The side that reports this state now."""
    for side in (evidence.target, evidence.source):
        if side.fresh(now) and side.status is not None and side.status.state == state:
            return side
    return None


def _why(side: Side) -> str:
    reason = side.status.reason if side.status is not None else types_pb2.ErrorDetail()
    why = " ".join(part for part in (reason.message, reason.cause and f"({reason.cause})") if part)
    return f"{side.host}: {why or 'replication cannot go on'}"


def _initial(evidence: Evidence) -> str:
    if evidence.target.status is not None and evidence.target.status.awaiting_seed:
        return "the replica waits for its seed; what changes is replicated, and there is no recovery point before"
    for side in (evidence.source, evidence.target):
        if side.status is not None and side.status.initial_total_bytes:
            done = min(1.0, side.status.initial_done_bytes / side.status.initial_total_bytes)
            return f"initial replication is at {int(done * 100)} %"
    return "initial replication has not begun"


def _cycle_seconds(evidence: Evidence) -> float:
    seconds = [side.status.last_cycle_seconds for side in (evidence.source, evidence.target) if side.status is not None]
    return max((one for one in seconds if 0 < one < 7 * 86400), default=0.0)


def _late(evidence: Evidence, now: float) -> str:
    """A point is as old as one frequency plus one cycle just before the next arrives; twice is a missed one."""
    age = rpo_age(evidence.newest_instant, now)
    if age is None:
        return NORMAL if evidence.phase is Phase.INITIAL else CRITICAL
    spare = SLACK_SECONDS + _cycle_seconds(evidence)
    if age > 4 * evidence.frequency_seconds + spare:
        return CRITICAL
    return WARNING if age > 2 * evidence.frequency_seconds + spare else NORMAL
