"""The link, and the admin services of servers, hosts and clouds: proto → values → service → proto."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from coordinator.inventory import store
from coordinator.inventory.link import Sessions
from coordinator.inventory.model import HelloMissing, stamp
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.servers import Servers as ServerService
from coordinator.inventory.servers import ServerView
from coordinator.inventory.service import HostView
from coordinator.inventory.sites import CloudState, Sites
from twinsite import access
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc, link_pb2, link_pb2_grpc
from twinsite.api.types.v1 import types_pb2
from twinsite.server import Mount

Context = grpc.aio.ServicerContext[Any, Any]


class Link(link_pb2_grpc.LinkServicer):
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Connect(  # type: ignore[override]  # gRPC also takes a coroutine that writes
        self, request_iterator: AsyncIterator[link_pb2.FromProvider], context: Context
    ) -> None:
        identity = access.caller().identity
        if identity is None:
            raise HelloMissing
        await self._sessions.serve(identity.id, aiter(request_iterator), context.write)


class Servers(admin_pb2_grpc.ServersServicer):
    def __init__(self, servers: ServerService) -> None:
        self._servers = servers

    async def List(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.ListServersResponse:
        return admin_pb2.ListServersResponse(servers=[_server(view) for view in await self._servers.all()])

    async def Show(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.Server:
        return _server(await self._servers.one(request.name))

    async def Remove(self, request: admin_pb2.RemoveRequest, context: Context) -> admin_pb2.RemoveResponse:
        by = Mutation.of(context, "server.remove", reason=request.reason)
        return await self._servers.remove(by, request.name, dry_run=request.dry_run)


class Hosts(admin_pb2_grpc.HostsServicer):
    def __init__(self, sites: Sites) -> None:
        self._sites = sites

    async def List(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.ListHostsResponse:
        return admin_pb2.ListHostsResponse(hosts=[_host(*found) for found in await self._sites.hosts()])

    async def Show(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.Host:
        return _host(*await self._sites.host(request.name))


class Clouds(admin_pb2_grpc.CloudsServicer):
    def __init__(self, sites: Sites) -> None:
        self._sites = sites

    async def List(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.ListCloudsResponse:
        return admin_pb2.ListCloudsResponse(clouds=[_cloud(state) for state in await self._sites.clouds()])

    async def Show(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.CloudView:
        return _cloud(await self._sites.cloud(request.name))


def _server(view: ServerView) -> admin_pb2.Server:
    server, link = view.server, view.link
    return admin_pb2.Server(
        id=server.id,
        name=server.name,
        state=server.state,
        connected=link is not None and link.connected,
        last_seen=stamp(link.last_seen if link is not None else 0.0),
        agent_version=link.agent_version if link is not None else server.agent_version,
        registered=stamp(server.registered),
        certificate_expires=stamp(server.expires),
        generation=server.generation,
        clouds=view.clouds,
        hosts=len(view.hosts),
        hosts_connected=sum(host.connected for host in view.hosts),
    )


def _host(view: HostView, machines: list[types_pb2.Machine]) -> admin_pb2.Host:
    host = view.host
    return admin_pb2.Host(
        id=host.id,
        name=host.name,
        server=view.server_name,
        cloud=host.cloud,
        host_group=host.host_group,
        connected=view.connected,
        status=types_pb2.HostStatus(
            host_id=host.id,
            name=host.name,
            agent_version=host.agent_version,
            hypervisor=host.hypervisor,
            replication_address=host.replication_address,
            store_free_bytes=host.free_bytes,
            store_total_bytes=host.total_bytes,
            machines=machines,
        ),
        last_seen=stamp(view.last_seen),
        state="active" if host.state == store.PRESENT else host.state,
    )


def _cloud(state: CloudState) -> admin_pb2.CloudView:
    view = state.cloud
    return admin_pb2.CloudView(
        id=view.id,
        name=view.name,
        server=view.server_name,
        role=state.role,
        pair=state.pair,
        cloud=view.cloud.document,
        hosts=len(view.hosts),
        vms=state.vms,
        vms_protected=state.vms_protected,
    )


def mounts(sessions: Sessions, servers: ServerService, sites: Sites) -> list[Mount]:
    link, server, host, cloud = Link(sessions), Servers(servers), Hosts(sites), Clouds(sites)
    services = admin_pb2.DESCRIPTOR.services_by_name
    return [
        Mount(
            link_pb2.DESCRIPTOR.services_by_name["Link"],
            lambda to: link_pb2_grpc.add_LinkServicer_to_server(link, to),
        ),
        Mount(services["Servers"], lambda to: admin_pb2_grpc.add_ServersServicer_to_server(server, to)),
        Mount(services["Hosts"], lambda to: admin_pb2_grpc.add_HostsServicer_to_server(host, to)),
        Mount(services["Clouds"], lambda to: admin_pb2_grpc.add_CloudsServicer_to_server(cloud, to)),
    ]
