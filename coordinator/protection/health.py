"""How well a protected VM is protected, from what its hosts reported and when. No I/O."""

from dataclasses import dataclass
from typing import Final

from coordinator.protection.model import REPLICATING, Phase
from twinsite.api.types.v1 import types_pb2
from twinsite.units import duration

FRESH_SECONDS: Final = 60.0  # so long the last word of a host that went away still counts
SLACK_SECONDS: Final = 10.0  # between a commit and our hearing of it
SLOW_CYCLE_SECONDS: Final = 300.0
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
    if not evidence.target.fresh(now):
        return Health(state, UNKNOWN, evidence.target.silence(now))
    late = _late(evidence, now)
    fenced = _said(evidence, now, types_pb2.REPLICATION_STATE_FENCED)
    if fenced is not None:
        return Health("blocked", CRITICAL, f"{fenced.host} was told that another host owns this VM")
    blocked = _said(evidence, now, types_pb2.REPLICATION_STATE_BLOCKED)
    if blocked is not None:
        # It goes on by itself; while no point is overdue that is no emergency.
        patient = late == NORMAL and evidence.newest_instant
        return Health("blocked", WARNING if patient else CRITICAL, _why(blocked))
    silent = evidence.source.silence(now)
    if evidence.phase is Phase.INITIAL:
        return Health(state, WARNING, "; ".join(part for part in (_initial(evidence), silent) if part))
    if late != NORMAL:
        age = rpo_age(evidence.newest_instant, now)
        old = f"the newest point is {duration(age)} old" if age is not None else "there is no recovery point"
        reason = f"{old}, one is due every {duration(evidence.frequency_seconds)}"
        return Health(state, late, f"{reason}; {silent}" if silent else reason)
    if silent:
        return Health(state, WARNING, silent)
    ahead = evidence.newest_instant - now
    if ahead > AHEAD_SECONDS:
        reason = f"the newest point is dated {duration(ahead)} ahead of the coordinator's clock, so a missed one would"
        return Health(state, WARNING, f"{reason} not be noticed; set the clock of host {evidence.source.host}")
    if state == "resynchronizing":
        return Health(state, WARNING, "what differs is being found and sent again")
    cycle = _cycle_seconds(evidence)
    if cycle > max(SLOW_CYCLE_SECONDS, evidence.frequency_seconds):
        return Health(state, WARNING, f"a cycle takes {duration(cycle)}")
    return Health(state, NORMAL, "")


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
