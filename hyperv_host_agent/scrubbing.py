"""The continuous check of all replicas of this host: a little of one after the other, so that nobody feels it."""

from typing import Final

import structlog

from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.store.base import ScrubState
from hyperv_host_agent.targets import Targets
from twinsite.clock import Clock
from twinsite.errors import NotFound, TwinsiteError

_log = structlog.get_logger()
_SLICE_SECONDS: Final = 1.0
_IDLE_SECONDS: Final = 60.0
_REST_SECONDS: Final = 86400.0  # a replica that was checked whole is left alone for so long
_DAY: Final = 86400.0


class Scrubbing:
    """`run` never ends by itself."""

    def __init__(self, replicas: Replicas, targets: Targets, clock: Clock, *, bytes_per_second: int, days: int) -> None:
        """Not faster than `bytes_per_second`, unless all of it would then take more than `days`."""
        self._replicas = replicas
        self._targets = targets
        self._clock = clock
        self._rate = bytes_per_second
        self._seconds = days * _DAY
        self._totals: dict[str, int] = {}  # bytes of a round

    async def run(self) -> None:
        while True:
            busy = False
            ids = await self._ids()
            self._totals = {vm_id: total for vm_id, total in self._totals.items() if vm_id in ids}
            for vm_id in ids:
                if await self._slice(vm_id):
                    busy = True
                    await self._clock.sleep(_SLICE_SECONDS)
            if not busy:
                await self._clock.sleep(_IDLE_SECONDS)

    async def _ids(self) -> list[str]:
        try:
            return await self._replicas.ids()
        except OSError as error:
            _log.warning("scrub_without_store", reason=error.strerror)
            return []

    async def _slice(self, vm_id: str) -> bool:
        """A second's worth of one replica, unless it rests."""
        now = self._clock.now()
        try:
            held = await self._replicas.get(vm_id)
            before = await held.aside(held.replica.scrubbed)
            self._totals[vm_id] = before.total_bytes
            if not before.total_bytes or self._rests(before, now):
                return False
            after = await held.aside(held.replica.scrub, self._budget(), now)
        except NotFound:
            return False  # it was removed
        except TwinsiteError as error:
            _log.warning("scrub_failed", vm_id=vm_id, reason=str(error), cause=error.text("cause"))
            return False
        except Exception:  # noqa: BLE001  # one replica's trouble must not stop the check of the others
            _log.exception("scrub_broke", vm_id=vm_id)
            return False
        if (after.damaged, after.repaired) != (before.damaged, before.repaired):
            _log.warning("replica_damage", vm_id=vm_id, damaged=after.damaged, repaired=after.repaired)
            await self._targets.refresh(vm_id)
        await self._targets.scrubbed(vm_id)
        return True

    def _budget(self) -> int:
        """Bytes of a slice."""
        return int(max(self._rate, sum(self._totals.values()) / self._seconds) * _SLICE_SECONDS)

    def _rests(self, state: ScrubState, now: float) -> bool:
        running = 0 < state.checked_bytes < state.total_bytes
        return (
            not (running or state.retry) and state.completed is not None and 0 <= now - state.completed < _REST_SECONDS
        )
