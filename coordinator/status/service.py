"""The summary, put together from what the other domains know."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.inventory.servers import Servers, ServerView
from coordinator.jobs import Jobs
from coordinator.protection.service import Protections
from coordinator.status.model import by_health, problems
from twinsite.clock import Clock

_DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Summary:
    vault_name: str
    now: float  # seconds since 1970
    servers: tuple[ServerView, ...]
    vms: int
    vms_protected: int
    health: Counter[str]
    jobs: Mapping[str, int]  # by state; final ones of the last 24 hours
    problems: tuple[str, ...]


class StatusService:
    def __init__(
        self,
        clock: Clock,
        servers: Servers,
        protections: Protections,
        jobs: Jobs,
        vault_name: Callable[[], Awaitable[str]],
    ) -> None:
        self._clock, self._servers, self._protections = clock, servers, protections
        self._jobs, self._vault_name = jobs, vault_name

    async def show(self) -> Summary:
        now = self._clock.now()
        servers = await self._servers.all()
        vms = await self._protections.all()
        return Summary(
            vault_name=await self._vault_name(),
            now=now,
            servers=tuple(servers),
            vms=len(vms),
            vms_protected=sum(vm.protection is not None for vm in vms),
            health=by_health(vms),
            jobs=await self._jobs.counts(ended_after=now - _DAY),
            problems=tuple(problems(servers, vms, now)),
        )
