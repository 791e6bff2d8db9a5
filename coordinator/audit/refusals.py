"""Calls the gate did not admit, for the log: of members only, and each kind once an hour."""

from typing import Final

from coordinator.audit.chain import record
from coordinator.store.engine import Database
from twinsite.access import Refusal
from twinsite.clock import Clock

_AGAIN_SECONDS: Final = 3600.0
_MOST: Final = 10_000  # remembered; then it starts anew


class Refusals:
    """A revoked provider dials for ever, and a stranger may call as often as it likes: neither may fill the disk."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._told: dict[tuple[str, str, str], float] = {}

    async def tell(self, refusal: Refusal) -> None:
        if refusal.identity is None:
            return
        now = self._clock.now()
        key = (str(refusal.identity), refusal.method, refusal.error.code)
        if now - self._told.get(key, float("-inf")) < _AGAIN_SECONDS:
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[key] = now
        async with self._database.write() as connection:
            await record(
                connection,
                actor=f"{refusal.identity.kind}/{refusal.identity.id}",
                action="call.refuse",
                target=refusal.method,
                outcome=refusal.error.code,
                address=refusal.address,
                now=now,
            )
