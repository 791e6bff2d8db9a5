"""What hosts report of protected VMs, and what they are told: the link's side of protection, and its duty."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.inventory import service as inventory
from coordinator.inventory import store as inventory_store
from coordinator.inventory.model import LARGEST, LONGEST_NAME, Changes, disks_of, instant
from coordinator.protection import store, totals
from coordinator.protection.desired import Desired
from coordinator.protection.model import Phase, Protected, grant_is_due
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock

log = structlog.get_logger()
DUTY_SECONDS: Final = 60.0


class Reports:
    def __init__(self, database: Database, clock: Clock, desired: Desired) -> None:
        self._database, self._clock, self._desired = database, clock, desired

    # ---- up -----------------------------------------------------------------------------------------------------

    async def reported(self, server_id: str, statuses: list[types_pb2.ReplicationStatus]) -> None:
        """Keep what hosts of this server say of VMs they are source or target of; the rest is not theirs to say."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            await inventory_store.touch_link(connection, server_id, now=now)
            servers = await inventory.host_servers(connection)
            known = {item.vm_id: item for item in await store.list_protected(connection)}
            for status in statuses:
                item = known.get(status.vm_id)
                host_id = _speaker(item, status.role) if item is not None else None
                if item is None or host_id is None or servers.get(host_id) != server_id:
                    continue
                await store.put_status(connection, item.vm_id, host_id, status, now=now)
                if status.role == types_pb2.ROLE_SOURCE:
                    await totals.count(connection, host_id, status)
                await self._failed_over(connection, item, host_id, status)

    async def _failed_over(
        self, connection: AsyncConnection, item: Protected, host_id: str, status: types_pb2.ReplicationStatus
    ) -> None:
        """The replica runs although nobody waits for the answer any more: what happened is what is recorded."""
        runs = status.state == types_pb2.REPLICATION_STATE_FAILED_OVER
        if not runs or item.phase is not Phase.FAILING_OVER or host_id != item.owner_host or status.term != item.term:
            return
        now = self._clock.now()
        over = dataclasses.replace(
            item,
            phase=Phase.FAILED_OVER,
            failed_over_at=now,
            failover_cycle=min(status.committed_cycle, LARGEST),
            failover_instant=instant(status.committed_instant),
        )
        await store.update_protected(connection, over)
        host = await inventory_store.get_host(connection, host_id)
        await audit.record(
            connection,
            actor=f"host/{host.name if host is not None else host_id}",
            action="vm.failed-over",
            target=f"vm/{item.vm_name}",
            outcome="ok",
            facts={"term": str(item.term)},
            now=now,
        )

    async def points(self, server_id: str, points: link_pb2.Points) -> bool:
        """All points of one VM at its target host, or their changes; those with impossible numbers are left out.

        False: what is known is not what the changes count from.
        """
        async with self._database.write() as connection:
            await store.alone(connection)
            item = await store.get_protected(connection, points.vm_id)
            servers = await inventory.host_servers(connection)
            if item is None or item.target_host != points.host_id or servers.get(points.host_id) != server_id:
                log.info("points of no target", server=server_id, host=points.host_id)
                return True
            good = [
                point
                for point in points.points
                if point.vm_id == item.vm_id
                and 0 < point.cycle <= LARGEST
                and instant(point.instant)
                and max(map(len, (point.consistency, point.pinned_by, point.name))) <= LONGEST_NAME
            ]
            if not points.changes:
                await store.replace_points(connection, item.vm_id, points.host_id, good)
                return True
            known = await store.change_points(connection, item.vm_id, points.host_id, good, points.gone)
            return known == points.total

    async def inventory_changed(self, changes: Changes) -> None:
        del changes  # reconciling is cheap, and a rule less
        await self.reconcile()

    # ---- down ---------------------------------------------------------------------------------------------------

    async def assignments(self, server_id: str, held: Mapping[str, int]) -> list[types_pb2.Assignments]:
        """Of every host of the server, in versions greater than those in `held` if these are ahead of ours."""
        async with self._database.read() as connection:
            servers = await inventory.host_servers(connection)
            mine = sorted(host_id for host_id, server in servers.items() if server == server_id)
            found = {host_id: await store.get_published(connection, host_id) for host_id in mine}
        behind = [
            host_id
            for host_id, published in found.items()
            if published is None or held.get(host_id, 0) > published.version
        ]
        if behind:
            async with self._database.write() as connection:
                for host_id in behind:
                    found[host_id] = await self._desired.overtake(connection, host_id, held.get(host_id, 0))
        return [published for published in found.values() if published is not None]

    def wakes(self) -> AsyncIterator[None]:
        return self._desired.wakes()

    # ---- the duty -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reconcile now and once a minute, for ever; a database that is away is no reason to stop."""
        while True:
            try:
                await self.reconcile()
            except SQLAlchemyError:
                log.exception("reconciling failed")
            await self._clock.sleep(DUTY_SECONDS)

    async def reconcile(self) -> None:
        """Issue the grants that are due and publish what changed for any host."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            everything = await store.list_protected(connection)
            if not everything and not await store.list_fences(connection):
                return
            owners = {item.vm_id: item.owner_host for item in everything}
            machines = await inventory.machines(connection, owners)
            hosts = {fence.host_id for fence in await store.list_fences(connection)}
            for item in everything:
                hosts |= {item.source_host, item.target_host}
                view = machines.get(item.vm_id)
                here = view is not None and view.present and view.host.id == item.owner_host
                name = view.name if view is not None and here else None
                disks = disks_of(view.machine.document) if view is not None and here else None
                if grant_is_due(item, now=now, vm_name=name, disks=disks):
                    renewed = dataclasses.replace(item, vm_name=name or item.vm_name, disks=disks or item.disks)
                    await store.update_protected(connection, self._desired.granted(renewed))
                    log.info("grant issued", vm=item.vm_id, term=item.term)
            await self._desired.publish(connection, hosts)
        self._desired.changed()


def _speaker(item: Protected, role: "types_pb2.Role.ValueType") -> str | None:
    if role == types_pb2.ROLE_SOURCE:
        return item.source_host
    return item.target_host if role == types_pb2.ROLE_TARGET else None
