"""What the sites have: reports go in, views come out."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.access import store as access
from coordinator.inventory import store
from coordinator.inventory.model import Changes, Report, ReportedHost, disks_of
from coordinator.store.engine import Database
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HostView:
    """A host with what its server's link says of it. `connected`: to its provider, and that to us."""

    host: store.Host
    server_name: str
    connected: bool
    last_seen: float

    @property
    def id(self) -> str:
        return self.host.id

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def server(self) -> str:
        return self.server_name


@dataclass(frozen=True, slots=True)
class MachineView:
    """A VM where it is by right, or where it was seen last."""

    machine: store.Machine
    host: HostView
    last_seen: float

    @property
    def id(self) -> str:
        return self.machine.id

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def cloud(self) -> str:
        return self.host.host.cloud

    @property
    def present(self) -> bool:
        return self.machine.state == store.PRESENT


@dataclass(frozen=True, slots=True)
class CloudView:
    cloud: store.Cloud
    server_name: str
    hosts: tuple[HostView, ...] = field(default=())

    @property
    def id(self) -> str:
        return self.cloud.id

    @property
    def name(self) -> str:
        return self.cloud.name

    @property
    def server(self) -> str:
        return self.server_name


async def host_servers(connection: AsyncConnection) -> dict[str, str]:
    """Server ids of registered hosts by host id: who may speak for which host."""
    return {host.id: host.server_id for host in await access.list_hosts(connection)}


async def _server_names(connection: AsyncConnection) -> dict[str, str]:
    return {server.id: server.name for server in await access.list_servers(connection)}


async def hosts(connection: AsyncConnection) -> dict[str, HostView]:
    """Every host of a registered server, by id, in the order of their names."""
    names = await _server_names(connection)
    links = await store.links(connection)
    found = {}
    for host in await store.list_hosts(connection):
        link = links.get(host.server_id)
        connected = link is not None and link.connected and host.connected
        # What a server says of its hosts holds for as long as its session does.
        seen = max(host.last_seen, link.last_seen if link is not None and host.connected else 0.0)
        found[host.id] = HostView(host, names.get(host.server_id, host.server_id), connected, seen)
    return found


async def clouds(connection: AsyncConnection) -> dict[str, CloudView]:
    """Every cloud of a registered server with its present hosts, by id, in the order of their names."""
    names = await _server_names(connection)
    everywhere = (await hosts(connection)).values()
    return {
        cloud.id: CloudView(
            cloud,
            names.get(cloud.server_id, cloud.server_id),
            tuple(
                view
                for view in everywhere
                if view.host.server_id == cloud.server_id
                and view.host.cloud == cloud.name
                and view.host.state == store.PRESENT
            ),
        )
        for cloud in await store.list_clouds(connection)
    }


async def machines(connection: AsyncConnection, owners: Mapping[str, str]) -> dict[str, MachineView]:
    """Every VM once, by id, in the order of their names; copies run by a test are not VMs of their own.

    `owners` are the hosts protected VMs run on by right. Without one the VM is where it is present and an original.
    """
    known = await hosts(connection)
    best: dict[str, MachineView] = {}
    for machine in await store.list_machines(connection):
        host = known.get(machine.host_id)
        if host is None or machine.purpose == "test":
            continue
        seen = max(machine.last_seen, host.last_seen) if machine.state == store.PRESENT else machine.last_seen
        view = MachineView(machine, host, seen)
        other = best.get(machine.id)
        if other is None or _rank(view, owners) > _rank(other, owners):
            best[machine.id] = view
    return best


def _rank(view: MachineView, owners: Mapping[str, str]) -> tuple[bool, bool, bool, float]:
    return owners.get(view.id) == view.host.id, view.present, view.machine.purpose == "", view.last_seen


class Inventory:
    """Applies what providers report. Nothing is deleted because it was not mentioned."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def start(self) -> None:
        """After a restart nobody is connected until he says hello; who was removed meanwhile is on no list."""
        async with self._database.write() as connection:
            await store.disconnect_all(connection)
            registered = {server.id for server in await access.list_servers(connection)}
            left = {cloud.server_id for cloud in await store.list_clouds(connection)}
            left |= {host.server_id for host in await store.list_hosts(connection)}
            for server_id in left - registered:
                await store.unregister(connection, server_id, now=self._clock.now())

    async def connected(self, server_id: str, agent_version: str) -> list[str]:
        """A provider said hello; the names of the clouds known of it."""
        now = self._clock.now()
        link = store.ServerLink(server_id, True, agent_version, 0, now, now)
        async with self._database.write() as connection:
            await store.put_link(connection, link)
            known = await store.list_clouds(connection, server_id)
        return [cloud.name for cloud in known if cloud.state == store.PRESENT]

    async def disconnected(self, server_id: str) -> None:
        async with self._database.write() as connection:
            await store.disconnect(connection, server_id, now=self._clock.now())

    async def heard(self, server_id: str) -> None:
        """Its session lives."""
        async with self._database.write() as connection:
            await store.touch_link(connection, server_id, now=self._clock.now())

    async def apply(self, server_id: str, report: Report) -> Changes:
        """Make the report what is known of the site; what that changed for others."""
        now = self._clock.now()
        facts: list[tuple[str, str, dict[str, str]]] = []
        async with self._database.write() as connection:
            await store.touch_link(connection, server_id, now=now, version=report.version)
            await self._clouds(connection, server_id, report, facts)
            for target, documents in (
                (store.networks, {item.name: item.SerializeToString() for item in report.networks}),
                (store.classifications, {item.name: item.SerializeToString() for item in report.classifications}),
            ):
                await store.put_documents(connection, target, server_id, documents, now)
            changes = await self._hosts(connection, server_id, report, facts)
            server = await access.get_server(connection, server_id)
            for action, target_name, details in facts:
                await audit.record(
                    connection,
                    actor=f"server/{server.name if server is not None else server_id}",
                    action=action,
                    target=target_name,
                    outcome="ok",
                    facts=details,
                    now=now,
                )
        for sentence in report.refused:
            log.warning("inventory entry refused", server=server_id, problem=sentence)
        return changes

    async def _clouds(
        self, connection: AsyncConnection, server_id: str, report: Report, facts: list[tuple[str, str, dict[str, str]]]
    ) -> None:
        now = self._clock.now()
        gone = await store.mark_absent(connection, store.clouds, server_id, [cloud.name for cloud in report.clouds])
        facts.extend(("cloud.missing", f"cloud/{name}", {}) for name in gone)
        for cloud in report.clouds:
            cloud_id = f"c-{secrets.token_hex(6)}"
            await store.put_cloud(connection, cloud_id, server_id=server_id, document=cloud, now=now)

    async def _hosts(
        self, connection: AsyncConnection, server_id: str, report: Report, facts: list[tuple[str, str, dict[str, str]]]
    ) -> Changes:
        registered = await host_servers(connection)
        known = {host.id: host for host in await store.list_hosts(connection, server_id)}
        addresses: set[str] = set()
        moved: set[str] = set()
        for host in report.hosts:
            if registered.get(host.id) != server_id:
                log.warning("host of another server, or of none, was reported", server=server_id, host=host.id)
                continue
            before = known.pop(host.id, None)
            await store.put_host(
                connection,
                host,
                server_id=server_id,
                place=report.place(host.name),
                now=self._clock.now(),
                known=before,
            )
            if before is not None and before.name != host.name:
                facts.append(("host.renamed", f"host/{host.name}", {"from": before.name, "id": host.id}))
            if before is None or before.replication_address != host.replication_address:
                addresses.add(host.id)
            moved |= await self._machines(connection, host, before, facts)
        for gone in known.values():
            if gone.state == store.PRESENT:
                await store.set_host_state(connection, gone.id, store.MISSING)
                facts.append(("host.missing", f"host/{gone.name}", {"id": gone.id}))
        return Changes(frozenset(addresses), frozenset(moved))

    async def _machines(
        self,
        connection: AsyncConnection,
        host: ReportedHost,
        before: store.Host | None,
        facts: list[tuple[str, str, dict[str, str]]],
    ) -> set[str]:
        now = self._clock.now()
        known = {machine.id: machine for machine in await store.list_machines(connection, host_id=host.id)}
        moved: set[str] = set()
        for machine in host.machines:
            held = known.get(machine.id)
            if held is not None and held.state == store.PRESENT and held.document == machine:
                continue
            await store.put_machine(connection, machine, host_id=host.id, now=now, known=held is not None)
            if held is not None and held.name != machine.name:
                facts.append(("vm.renamed", f"vm/{machine.name}", {"from": held.name, "id": machine.id}))
            if held is None or held.state != store.PRESENT or _differs(held.document, machine):
                moved.add(machine.id)
        if not host.connected:  # what its provider cannot see now is not gone
            return moved
        for held in known.values():
            if held.id not in host.present and held.state == store.PRESENT:
                seen = before.last_seen if before is not None else now
                await store.mark_machine_missing(connection, held.id, host.id, last_seen=seen)
                facts.append(("vm.missing", f"vm/{held.name}", {"host": host.name, "id": held.id}))
                moved.add(held.id)
        return moved


def _differs(held: types_pb2.Machine, now: types_pb2.Machine) -> bool:
    """In what protection depends on."""
    return held.name != now.name or disks_of(held) != disks_of(now)
