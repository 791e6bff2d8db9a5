"""What is known of VMs and their protection at one instant, put together for whoever asks."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory import service as inventory
from coordinator.inventory.model import instant
from coordinator.inventory.service import HostView, MachineView
from coordinator.protection import store, totals
from coordinator.protection.health import MONITORED_SECONDS, Evidence, Health, Side, judge, rpo_age
from coordinator.protection.model import SWITCHED, Pair, Phase, Protected
from coordinator.protection.store import Reported
from coordinator.protection.totals import Totals
from coordinator.recovery import store as recovery
from coordinator.statistics import store as statistics
from twinsite.api.types.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class ProtectionView:
    """A protected VM with all that its hosts said of it."""

    item: Protected
    pair: Pair
    source: Side
    target: Side
    source_host: str  # names
    target_host: str
    points: int  # how many can be recovered
    newest: types_pb2.Point | None  # of them
    newest_instant: float  # 0: there is none
    done: Totals
    initial_start: float  # the initial replication waits until then; 0: it waits for nothing
    tests: tuple[str, ...]
    health: Health
    rpo_age: float | None  # seconds; None before the first point and after a failover

    @property
    def owner_host(self) -> str:
        return self.target_host if self.item.owner_host == self.item.target_host else self.source_host


@dataclass(frozen=True, slots=True)
class VmView:
    machine: MachineView
    protection: ProtectionView | None

    @property
    def id(self) -> str:
        return self.machine.id

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def cloud(self) -> str:
        return self.machine.cloud


async def look(connection: AsyncConnection, now: float) -> list[VmView]:
    """Every VM, by name, with its protection as of `now`."""
    everything = await store.list_protected(connection)
    machines = await inventory.machines(connection, {item.vm_id: item.owner_host for item in everything})
    hosts = await inventory.hosts(connection)
    pairs = {pair.id: pair for pair in await store.list_pairs(connection)}
    statuses = await store.list_statuses(connection)
    points = await store.newest_points(connection)
    tests = await recovery.list_tests(connection)
    done = await totals.list_totals(connection)
    missed = await statistics.missed_shares(connection, now - MONITORED_SECONDS) if everything else {}
    protections = {
        item.vm_id: _protection(
            item,
            pairs[item.pair_id],
            hosts,
            statuses,
            points.get(item.vm_id),
            tuple(test.id for test in tests.get(item.vm_id, []) if test.state != recovery.STARTING),
            missed.get(item.vm_id),
            done.get(item.vm_id, Totals()),
            now,
        )
        for item in everything
    }
    return [VmView(machine, protections.get(vm_id)) for vm_id, machine in machines.items()]


def _protection(
    item: Protected,
    pair: Pair,
    hosts: Mapping[str, HostView],
    statuses: Mapping[tuple[str, str], Reported],
    points: tuple[int, types_pb2.Point] | None,
    tests: tuple[str, ...],
    missed_share: float | None,
    done: Totals,
    now: float,
) -> ProtectionView:
    source = _side(item.vm_id, item.source_host, hosts, statuses)
    target = _side(item.vm_id, item.target_host, hosts, statuses)
    number, newest_point = points or (0, None)
    newest = instant(newest_point.instant) if newest_point is not None else 0.0
    if target.status is not None and target.status.HasField("committed_instant"):
        newest = max(newest, instant(target.status.committed_instant))
    waits = item.phase in (Phase.PREPARING, Phase.INITIAL) and item.initial_start > now
    evidence = Evidence(
        phase=item.phase,
        paused=item.paused,
        frequency_seconds=pair.policy.frequency_seconds,
        source=source,
        target=target,
        newest_instant=newest,
        initial_start=item.initial_start,
        newest_damaged=newest_point.damaged_clusters if newest_point is not None else 0,
        missed_share=missed_share,
    )
    return ProtectionView(
        item=item,
        pair=pair,
        source=source,
        target=target,
        source_host=source.host,
        target_host=target.host,
        points=number,
        newest=newest_point,
        newest_instant=newest,
        done=done,
        initial_start=item.initial_start if waits else 0.0,
        tests=tests,
        health=judge(evidence, now),
        rpo_age=None if item.phase in SWITCHED else rpo_age(newest, now),
    )


def _side(
    vm_id: str, host_id: str, hosts: Mapping[str, HostView], statuses: Mapping[tuple[str, str], Reported]
) -> Side:
    host = hosts.get(host_id)
    said = statuses.get((vm_id, host_id))
    return Side(
        host=host.name if host is not None else host_id,
        connected=host is not None and host.connected,
        heard=max(said.received, host.last_seen if host is not None else 0.0) if said is not None else 0.0,
        status=said.status if said is not None else None,
    )
