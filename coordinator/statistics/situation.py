"""What an explanation rests on, and what it is. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.protection.health import Health, Side
from coordinator.protection.model import Phase
from coordinator.protection.policy import Policy
from coordinator.statistics.lateness import Pace, like_last, of_last, recent
from coordinator.statistics.model import CAUSES, HOUR, Measured, Row, total
from twinsite.api.types.v1 import types_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that an explanation rests on."""

    name: str
    now: float
    phase: Phase | None = None  # None: not protected
    paused: bool = False
    health: Health = field(default_factory=lambda: Health("", "", ""))
    rpo_age: float | None = None
    newest_instant: float = 0.0
    protected_since: float = 0.0
    initial_start: float = 0.0
    pair: str = ""
    policy: Policy = field(default_factory=Policy)
    source: Side = field(default_factory=lambda: Side(host="", connected=False))
    target: Side = field(default_factory=lambda: Side(host="", connected=False))
    disks: Mapping[str, str] = field(default_factory=dict)  # id → name
    rows: Sequence[Row] = ()  # minutes of the last day, oldest first

    @property
    def sending(self) -> types_pb2.ReplicationStatus:
        """The source's last word; empty when it said none."""
        return self.source.status or types_pb2.ReplicationStatus()

    @property
    def receiving(self) -> types_pb2.ReplicationStatus:
        return self.target.status or types_pb2.ReplicationStatus()

    @property
    def hour(self) -> Measured:
        """The last one."""
        return total(row for row in self.rows if row.start >= self.now - HOUR)

    def pace(self) -> Pace | None:
        found = recent(self.rows, self.now, pending_bytes=self.sending.pending_bytes)
        return found or of_last(self._last_causes, self.policy.frequency_seconds)

    def turned(self) -> Pace | None:
        """Its pace with the time spent as in the last cycle, when that took far longer than those before: what held
        it up then is what matters, and an average says it too late.
        """
        found = recent(self.rows, self.now, pending_bytes=self.sending.pending_bytes)
        return like_last(found, self._last_causes) if found else None

    @property
    def _last_causes(self) -> Mapping[str, float]:
        return {name: getattr(self.sending.last_causes, name) for name in CAUSES}


@dataclass(frozen=True, slots=True)
class Explanation:
    verdict: str
    facts: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()  # empty: nothing has to be done
