"""Keeps the inventory that the coordinator is told up to date with the fabric and the hosts."""

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from provider_agent.inventory import Presence, Selection, merge
from provider_agent.outbox import Outbox
from provider_agent.vmm.base import Reading, Vmm
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError

_log = structlog.get_logger()
_LOOK_SECONDS: Final = 1.0


class Site:
    def __init__(
        self,
        vmm: Vmm,
        hosts: Callable[[], Iterable[Presence]],
        selection: Selection,
        outbox: Outbox,
        clock: Clock,
        *,
        on_problem: Callable[[], None],
    ) -> None:
        """`on_problem` is called when `problem` may have changed."""
        self._vmm, self._hosts, self._outbox, self._clock = vmm, hosts, outbox, clock
        self._on_problem = on_problem
        self._chosen_here = self._selection = selection
        self._reading: Reading | None = None

    @property
    def problem(self) -> TwinsiteError | None:
        """Why the newest fabric is not in force."""
        return self._reading.problem if self._reading is not None else None

    def chosen_there(self, clouds: Iterable[str]) -> None:
        """The coordinator says which clouds an administrator chose in addition."""
        self._selection = self._chosen_here.also(clouds)
        self.refresh()

    def refresh(self) -> None:
        if self._reading is not None:
            self._outbox.inventory(merge(self._reading.fabric, self._hosts(), self._selection))

    async def look(self) -> None:
        """Raises what the first look meets: without any fabric there is nothing to serve."""
        reading = await self._vmm.read()
        if reading is not self._reading:
            self._reading = reading
            self._on_problem()
            self.refresh()

    async def watch(self) -> None:
        """For ever; ends when it is cancelled."""
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            await self.look()
