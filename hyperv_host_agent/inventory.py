"""What this host is and has, told to the provider when it changes."""

from collections.abc import Callable
from typing import Final

import structlog

from hyperv_host_agent import blocking
from hyperv_host_agent.hypervisors.base import Hypervisor
from hyperv_host_agent.hypervisors.description import to_proto
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.store.base import ReplicaStore
from twinsite import __version__
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError
from twinsite.units import MiB

_log = structlog.get_logger()
LOOK_SECONDS: Final = 2.0
_FREE_STEP: Final = 64 * MiB  # smaller changes of the free space are not news


class Inventory:
    """`address` says where the replication server can be reached."""

    def __init__(
        self,
        membership: Membership,
        hypervisor: Hypervisor,
        store: ReplicaStore,
        outbox: Outbox,
        clock: Clock,
        *,
        address: Callable[[], str],
    ) -> None:
        self._membership = membership
        self._hypervisor = hypervisor
        self._store = store
        self._outbox = outbox
        self._clock = clock
        self._address = address

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except (TwinsiteError, OSError) as error:
                _log.warning("inventory_failed", reason=str(error))
            await self._clock.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        machines, free, total = await blocking.finish(self._read)
        self._outbox.host(
            types_pb2.HostStatus(
                host_id=self._membership.identity.id,
                name=self._membership.host_name,
                agent_version=__version__,
                hypervisor=self._hypervisor.name(),
                replication_address=self._address(),
                store_free_bytes=free - free % _FREE_STEP,
                store_total_bytes=total,
                machines=machines,
            )
        )

    def _read(self) -> tuple[list[types_pb2.Machine], int, int]:
        machines = [to_proto(state) for state in self._hypervisor.machines()]
        return machines, self._store.free_bytes(), self._store.total_bytes()
