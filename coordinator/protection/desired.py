"""What hosts have to do, published as versions: grants are signed here, assignments computed and stored."""

import dataclasses
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory import store as inventory
from coordinator.jobs.wakes import Wakes, wait
from coordinator.protection import store
from coordinator.protection.model import GRANT_SECONDS, Protected, assignments, direction, sending_hosts
from twinsite import grants
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.documents import Signer

POLL_SECONDS: Final = 5.0  # another replica may have published
_TOPIC: Final = "assignments"


class Desired:
    """`vault` is its id; `signer` signs grants."""

    def __init__(self, vault: str, signer: Signer, clock: Clock) -> None:
        self._vault, self._signer, self._clock = vault, signer, clock
        self._wakes = Wakes()

    def granted(self, item: Protected) -> Protected:
        """The same with a new grant for its term, owner and disks, good for GRANT_SECONDS."""
        source, target = direction(item)
        expires = int(self._clock.now()) + GRANT_SECONDS
        grant = grants.Grant(
            grant_id=f"g-{secrets.token_hex(8)}",
            vault=self._vault,
            vm_id=item.vm_id,
            vm_name=item.vm_name,
            disks=item.disks,
            source_host=source,
            target_host=target,
            mode="https",
            term=item.term,
            not_after=expires,
        )
        return dataclasses.replace(item, grant=grants.sign(grant, self._signer), grant_expires=float(expires))

    async def publish(self, connection: AsyncConnection, host_ids: Iterable[str]) -> None:
        """Store a new version for each of these hosts whose work changed, and of those that share a link with them.

        Call `changed` after the commit.
        """
        await store.alone(connection)
        policies = {pair.id: pair.policy for pair in await store.list_pairs(connection)}
        senders = sending_hosts(await store.list_protected(connection))
        for pair_id, sharing in senders.items():
            if policies[pair_id].link_rates:  # one host more or less changes the part of every other
                host_ids = {*host_ids, *sharing}
        told = {
            pair_id: policy.told(source_hosts=len(senders.get(pair_id, ()))) for pair_id, policy in policies.items()
        }
        addresses = {host.id: host.replication_address for host in await inventory.list_hosts(connection)}
        for host_id in sorted(set(host_ids)):
            mine = [(item, told[item.pair_id]) for item in await store.list_protected(connection, host_id=host_id)]
            wanted = assignments(host_id, mine, await store.list_fences(connection, host_id), addresses)
            before = await store.get_published(connection, host_id)
            if before is not None and list(before.assignments) == wanted:
                continue
            version = before.version + 1 if before is not None else 1
            await store.put_published(
                connection, types_pb2.Assignments(host_id=host_id, version=version, assignments=wanted)
            )

    async def overtake(self, connection: AsyncConnection, host_id: str, held: int) -> types_pb2.Assignments:
        """The host's assignments in a version greater than one its provider holds, for instance of a lost database."""
        await store.alone(connection)
        before = await store.get_published(connection, host_id)
        if before is None:
            await self.publish(connection, [host_id])
            before = await store.get_published(connection, host_id) or types_pb2.Assignments(host_id=host_id)
        if before.version <= held:
            before.version = held + 1
            await store.put_published(connection, before)
        return before

    def changed(self) -> None:
        self._wakes.wake(_TOPIC)

    async def wakes(self) -> AsyncIterator[None]:
        """Once at the start, then whenever a version may be new; never ends."""
        with self._wakes.listening(_TOPIC) as event:
            while True:
                yield
                await wait(event, POLL_SECONDS)
