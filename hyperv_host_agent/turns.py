"""The turns of this host's transfers: the rule in `replication.turns`, with a clock and senders to tell."""

from collections.abc import Callable, Iterable
from typing import Final

from hyperv_host_agent.replication import turns
from hyperv_host_agent.replication.sending import AskTurn
from twinsite.clock import Clock

MEASURE_SECONDS: Final = 3.0  # between two looks at what all transfers move together


class Turns:
    """Of this host; on the event loop."""

    def __init__(self, *, cycles: int, copies: int, clock: Clock) -> None:
        """`cycles` and `copies` at once; `cycles` 0: learned."""
        self._rule = turns.Turns(cycles=cycles, copies=copies)
        self._clock = clock
        self._told: dict[str, Callable[[int], None]] = {}
        self._moved = 0

    @property
    def concurrency(self) -> int:
        """Cycles that may run at once now."""
        return self._rule.concurrency

    def of(self, vm_id: str, on_given: Callable[[int], None]) -> "Turn":
        """For one life of a sender; `on_given` is told the number of a turn that is given."""
        self._told[vm_id] = on_given
        return Turn(self, vm_id)

    def ask(self, vm_id: str, order: AskTurn) -> None:
        self._tell(self._rule.ask(vm_id, order, self._clock.monotonic()))

    def end(self, vm_id: str) -> None:
        self._tell(self._rule.end(vm_id, self._clock.monotonic()))

    def leave(self, vm_id: str) -> None:
        self._told.pop(vm_id, None)
        self.end(vm_id)

    def moved(self, count: int) -> None:
        """Bytes that were sent."""
        self._moved += count

    async def run(self) -> None:
        """Learns; runs for ever."""
        while True:
            await self._clock.sleep(MEASURE_SECONDS)
            self._tell(self._rule.measure(self._moved, self._clock.monotonic()))

    def _tell(self, given: Iterable[turns.Given]) -> None:
        for one in given:
            if (told := self._told.get(one.vm)) is not None:
                told(one.turn)


class Turn:
    """One VM's."""

    def __init__(self, host: Turns, vm_id: str) -> None:
        self._host, self._vm_id = host, vm_id

    def ask(self, order: AskTurn) -> None:
        self._host.ask(self._vm_id, order)

    def end(self) -> None:
        self._host.end(self._vm_id)

    def moved(self, count: int) -> None:
        self._host.moved(count)

    def close(self) -> None:
        """The sender is dropped."""
        self._host.leave(self._vm_id)
