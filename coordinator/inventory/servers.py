"""Registered servers as people ask for them, and their removal."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.access import store as access
from coordinator.access.members import Members
from coordinator.access.model import Server
from coordinator.inventory import service, store
from coordinator.inventory.model import ServerPaired, resolve
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.service import HostView
from coordinator.inventory.sites import Pairing
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.clock import Clock


@dataclass(frozen=True, slots=True)
class ServerView:
    server: Server
    link: store.ServerLink | None  # None: it was never connected
    clouds: tuple[str, ...]  # names
    hosts: tuple[HostView, ...]

    @property
    def id(self) -> str:
        return self.server.id

    @property
    def name(self) -> str:
        return self.server.name


class Servers:
    """`members` revokes identities and cuts their streams; `pairing` is coordinator.protection.pairs."""

    def __init__(self, database: Database, clock: Clock, members: Members, pairing: Pairing) -> None:
        self._database, self._clock, self._members, self._pairing = database, clock, members, pairing

    async def all(self) -> list[ServerView]:
        async with self._database.read() as connection:
            return await _views(connection)

    async def one(self, name: str) -> ServerView:
        """Raises Unknown, Ambiguous."""
        return resolve("server", name, await self.all())

    async def remove(self, by: Mutation, name: str, *, dry_run: bool) -> admin_pb2.RemoveResponse:
        """Unregister a server: it and its hosts are refused from now on. Raises ServerPaired.

        The identity goes first: a crash right after it leaves an inventory that `Inventory.start` takes off the lists.
        """
        now = self._clock.now()
        async with self._database.write() as connection:
            before = await by.repeated(connection, admin_pb2.RemoveResponse, now=now)
            if before is not None:
                return before
            view = resolve("server", name, await _views(connection))
            roles = await self._pairing.roles(connection)
            for cloud in await store.list_clouds(connection, view.id):
                if cloud.id in roles:
                    raise ServerPaired(view.name, cloud.name, roles[cloud.id][1])
        answer = _consequences(view)
        if dry_run:
            return answer
        hosts = await self._members.revoke(view.id, actor=by.actor, address=by.address, reason=by.reason)
        async with self._database.write() as connection:
            await store.unregister(connection, view.id, now=now)
            await self._pairing.forget_hosts(connection, hosts)
            return await by.done(connection, f"server/{view.name}", answer, now=now, facts={"id": view.id})


async def _views(connection: AsyncConnection) -> list[ServerView]:
    links = await store.links(connection)
    hosts = await service.hosts(connection)
    clouds = await store.list_clouds(connection)
    return [
        ServerView(
            server,
            links.get(server.id),
            tuple(cloud.name for cloud in clouds if cloud.server_id == server.id and cloud.state == store.PRESENT),
            tuple(host for host in hosts.values() if host.host.server_id == server.id),
        )
        for server in await access.list_servers(connection)
    ]


def _consequences(view: ServerView) -> admin_pb2.RemoveResponse:
    answer = admin_pb2.RemoveResponse(
        consequences=[
            f"server {view.name} is unregistered: its certificate and token are worth nothing, its session ends",
            f"so are the certificates of its hosts, {len(view.hosts)} in all",
            "its clouds, hosts and VMs leave the lists; nothing is deleted at the site",
            "to come back it registers with a new key file",
        ]
    )
    if view.clouds:
        answer.consequences.append(f"clouds that go: {', '.join(view.clouds)}")
    return answer
