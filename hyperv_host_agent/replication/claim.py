"""A sender's turn among the other VMs of its host: asked for, held, given back."""

from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.replication.pace import Pace
from hyperv_host_agent.replication.sending import Action, AskTurn, Assigned, EndTurn

_NO_TIME: Final = 0.0


@dataclass(slots=True)
class Claim:
    """At most one at a time. Numbers tell a turn that was given up before it came from the one that counts."""

    _number: int = 0
    _asked: bool = False
    _given: bool = False
    _copy: bool = False
    _urgent: bool = False
    _since: float = _NO_TIME  # when it was first asked for
    waited: float = _NO_TIME  # seconds, for the turn that is held

    def need(self, pace: Pace, assigned: Assigned, now: float, *, copy: bool) -> list[Action] | None:
        """What to order to get it; None: the VM has it."""
        held = self._asked and self._given
        if self._asked and self._copy == copy:
            if held:
                return None
            if self._urgent or not pace.wanted:
                return []
        if not self._asked or held:
            self._since = now
        self._number += 1
        self._asked, self._given, self._copy, self._urgent = True, False, copy, pace.wanted
        asked = AskTurn(self._number, pace.deadline(assigned, now), pace.expected, copy, pace.wanted)
        return [EndTurn(), asked] if held else [asked]

    def given(self, number: int, now: float) -> None:
        if self._asked and number == self._number and not self._given:
            self._given = True
            self.waited = now - self._since

    def end(self) -> list[Action]:
        if not self._asked:
            return []
        self._asked = self._given = False
        return [EndTurn()]
