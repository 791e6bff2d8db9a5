"""Statistics: minutes come in from the hosts, tables and explanations go out."""

from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from coordinator.inventory import service as inventory
from coordinator.inventory.model import Unknown, resolve, shown
from coordinator.protection import store as protection
from coordinator.protection.service import Protections
from coordinator.protection.views import VmView
from coordinator.statistics import store
from coordinator.statistics.explain import explain
from coordinator.statistics.model import (
    DAY,
    DEFAULT_SPAN,
    MINUTE,
    SAMPLES,
    Measured,
    NoVmButPair,
    Row,
    TooManySamples,
    measured,
    resolution_for,
)
from coordinator.statistics.situation import Explanation, Situation
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.clock import Clock

log = structlog.get_logger()
_EXPIRE_SECONDS: Final = 600.0
_STEP_SECONDS: Final = 0.5  # between two transactions that delete


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured, oldest first."""

    rows: list[Row]
    protected_since: float  # of the VM, or of the pair's first one; 0: not protected
    vms: int


class Statistics:
    def __init__(self, database: Database, clock: Clock, protections: Protections) -> None:
        self._database, self._clock, self._protections = database, clock, protections

    # ---- up -----------------------------------------------------------------------------------------------------

    async def take(self, server_id: str, batch: link_pb2.HostSamples) -> None:
        """Count what a host of this server measured of VMs it is the source of. Stored when it returns; repeatable.

        The rest of the batch is not the host's to say, or impossible: it is left out and never asked for again.
        Raises TooManySamples.
        """
        if len(batch.samples) > SAMPLES:
            raise TooManySamples(len(batch.samples))
        now = self._clock.now()
        async with self._database.write() as connection:
            servers = await inventory.host_servers(connection)
            mine: set[str] = set()
            if servers.get(batch.host_id) == server_id:
                sources = await protection.list_protected(connection, host_id=batch.host_id)
                mine = {item.vm_id for item in sources if item.source_host == batch.host_id}
            minutes: dict[store.Minute, Measured] = {}
            refused = 0
            for sample in batch.samples:
                good = measured(sample, now) if sample.vm_id in mine else None
                if good is None:
                    refused += 1
                else:
                    minutes.setdefault((sample.vm_id, sample.start_unix), good)
            await store.count(connection, minutes, now=now)
        if refused:
            log.info("samples refused", server=server_id, host=shown(batch.host_id), count=refused)

    # ---- out ----------------------------------------------------------------------------------------------------

    async def of_vm(self, name: str, span: int = DEFAULT_SPAN) -> Series:
        """Of the last `span` seconds. Raises Unknown, NoVmButPair, Ambiguous, SpanTooShort, SpanTooLong."""
        resolution = resolution_for(span)
        try:
            vm = await self._protections.one(name)
        except Unknown:
            async with self._database.read() as connection:
                pairs = {pair.name for pair in await protection.list_pairs(connection)}
            if name in pairs:
                raise NoVmButPair(name) from None
            raise
        async with self._database.read() as connection:
            since = self._clock.now() - span
            rows = await store.rows_of(connection, vm.id, resolution, since)
        return Series(rows, vm.protection.item.created if vm.protection is not None else 0.0, 1)

    async def of_pair(self, name: str, span: int = DEFAULT_SPAN) -> Series:
        """Of all VMs that are protected through the pair; otherwise as `of_vm`."""
        async with self._database.read() as connection:
            pair = resolve("pair", name, await protection.list_pairs(connection))
            items = await protection.list_protected(connection, pair_id=pair.id)
            resolution = resolution_for(span, len(items))
            since = self._clock.now() - span
            rows = await store.rows_of_all(connection, [item.vm_id for item in items], resolution, since)
        return Series(rows, min((item.created for item in items), default=0.0), len(items))

    async def explain(self, name: str) -> Explanation:
        """Why the VM is late, or is not. Raises Unknown, Ambiguous."""
        vm = await self._protections.one(name)
        now = self._clock.now()
        async with self._database.read() as connection:
            rows = await store.rows_of(connection, vm.id, MINUTE, now - DAY)
        return explain(_situation(vm, rows, now))

    # ---- the duty -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Forget what is older than it is kept, in small transactions, for ever."""
        while True:
            try:
                while await self.expire():
                    await self._clock.sleep(_STEP_SECONDS)
            except SQLAlchemyError:
                log.exception("expiring statistics failed")
            await self._clock.sleep(_EXPIRE_SECONDS)

    async def expire(self) -> int:
        """One step; how many rows it deleted."""
        async with self._database.write() as connection:
            return await store.expire(connection, now=self._clock.now())


def _situation(vm: VmView, rows: list[Row], now: float) -> Situation:
    view = vm.protection
    if view is None:
        return Situation(name=vm.name, now=now)
    return Situation(
        name=vm.name,
        now=now,
        phase=view.item.phase,
        paused=view.item.paused,
        health=view.health,
        rpo_age=view.rpo_age,
        newest_instant=view.newest_instant,
        protected_since=view.item.created,
        initial_start=view.item.initial_start,
        pair=view.pair.name,
        policy=view.pair.policy,
        source=view.source,
        target=view.target,
        disks={disk.id: disk.name for disk in vm.machine.machine.document.disks},
        rows=rows,
    )
