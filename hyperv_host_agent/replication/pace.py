"""When a VM's next cycle may start, and how many were missed. State of one sender; seconds by its clock."""

from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.replication import schedule
from hyperv_host_agent.replication.sending import Assigned

_NEVER: Final = float("-inf")
_APPLICATION_RETRY: Final = 300.0  # after a freeze that failed: trying it with each cycle would bother the guest
_SMOOTHING: Final = 0.3  # of the newest cycle in what is expected of the next


@dataclass(slots=True)
class Pace:
    """Told what happens; asked when to go on."""

    due: float = 0.0
    opened: float = _NEVER  # when the point of the cycle on its way was ordered
    wanted: bool = False  # a cycle is wanted now, whatever the schedule says
    expected: float = 1.0  # seconds a cycle takes
    failures: int = 0  # in a row
    _retry_at: float = 0.0
    _missed: int = 0
    _missed_since: float | None = None  # counted from here; None: not yet consistent, or paused
    _application: float | None = None  # when the newest application-consistent point was opened; None: not asked yet
    _asked: float = _NEVER  # when one was asked for last

    def wait(self, assigned: Assigned, now: float, *, flying: bool, first: bool) -> float:
        """Until when nothing may start; 0: it may. `first`: nothing is known to be at the target yet."""
        if now < self._retry_at:
            return self._retry_at
        if flying:
            return 0.0
        if first and now < assigned.not_before:
            return assigned.not_before
        return self.due if now < self.due and not self.wanted else 0.0

    def deadline(self, assigned: Assigned, now: float) -> float:
        """When the cycle that is due should be committed."""
        return min(self.due, now) + assigned.frequency if self.due > 0 else now + assigned.frequency

    def want(self) -> None:
        self.wanted = True
        self._retry_at = 0.0

    def open(self, assigned: Assigned, now: float, *, ago: float) -> str:
        """A point is opened; the consistency to ask for. `ago`: seconds since the last application-consistent point, as
        far as an earlier life of the agent knew; infinite: there is none.
        """
        if self._application is None:
            self._application = now - max(0.0, ago)
        self.opened = now
        self.wanted = False  # now, not when it is open: a wish that comes in between is for a later instant
        every = assigned.application_every
        if not every or now < max(self._application + every, self._asked + min(every, _APPLICATION_RETRY)):
            return "crash"
        self._asked = now
        return "application"

    def committed(self, assigned: Assigned | None, now: float, *, copy: bool, consistency: str, seconds: float) -> None:
        """A cycle arrived; `seconds` it took without its turn, 0: not known."""
        self.failures = 0
        if copy or assigned is None:
            self.due = now  # a copy is worth nothing before its delta
            return
        if seconds:
            self.expected += _SMOOTHING * (seconds - self.expected)
        if consistency == "application":
            self._application = self.opened if self.opened != _NEVER else now
        self._missed = self.missed(assigned, now)
        self.due = schedule.due(self.opened, assigned.frequency, now)
        self._missed_since = None if assigned.paused else self.due

    def failed(self, assigned: Assigned | None, now: float) -> None:
        self.failures += 1
        self._retry_at = now + schedule.backoff(self.failures, assigned.frequency if assigned else 1)

    def postpone(self, assigned: Assigned, now: float) -> None:
        """There is nothing to do now; look again after a period."""
        self.due = now + max(1.0, assigned.frequency)

    def assigned(self, before: Assigned | None, after: Assigned, now: float, *, idle: bool) -> None:
        if before is None:
            return
        if idle:
            self.due = min(self.due, schedule.due(self.opened, after.frequency, now))
        if self._missed_since is not None:
            self._missed = self.missed(before, now)
            self._missed_since = None if after.paused else max(self.due, now)
        elif before.paused and not after.paused and self.opened != _NEVER:
            self._missed_since = max(self.due, now)

    def missed(self, assigned: Assigned | None, now: float) -> int:
        """Periods without a commit so far, those of a cycle that is late now included."""
        if assigned is None or self._missed_since is None:
            return self._missed
        return self._missed + schedule.missed(self._missed_since, now, assigned.frequency)
