"""What was refused, for the log: of members each kind once an hour, of strangers so much that the disk stands it."""

from typing import Final

from coordinator.access import store
from coordinator.access.model import TooManyTries
from coordinator.access.rate import Rate
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
            name = await store.name_of(connection, refusal.identity)
            await record(
                connection,
                actor=f"{refusal.identity.kind}/{name}",
                action="call.refuse",
                target=refusal.method,
                outcome=refusal.error.code,
                address=refusal.address,
                now=now,
            )


class Strangers:
    """Refused registrations and logins: 200 at once, then one a minute, whatever number of addresses they come from."""

    def __init__(self, clock: Clock) -> None:
        self._rate = Rate(clock, per_second=1 / 60, burst=200)
        self._left_out = 0

    def facts(self) -> dict[str, str] | None:
        """None: leave this one out. Else facts for its entry: how many were left out before it."""
        try:
            self._rate.take("")
        except TooManyTries:
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return {"left_out": str(left_out)} if left_out else {}
