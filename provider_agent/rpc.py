"""The services hosts call, and who may call what."""

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from provider_agent.joining import Joining
from provider_agent.sessions import Sessions
from twinsite import access
from twinsite.access import Rule, Table
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.server import Mount

JOIN_TABLE: Final[Table] = {
    "/twinsite.api.provider.v1.HostEnrollment/Join": Rule(frozenset({"anyone"})),
}
LINK_TABLE: Final[Table] = {
    "/twinsite.api.provider.v1.HostLink/Connect": Rule(frozenset({"host"})),
    "/twinsite.api.provider.v1.HostLink/Renew": Rule(frozenset({"host"})),
}

Context = grpc.aio.ServicerContext[Any, Any]


class HostEnrollment(rpc.HostEnrollmentServicer):
    def __init__(self, joining: Joining) -> None:
        self._joining = joining

    async def Join(self, request: pb.JoinRequest, _context: Context) -> pb.JoinResponse:
        return await self._joining.join(request, access.caller().address)


class HostLink(rpc.HostLinkServicer):
    def __init__(self, sessions: Sessions, joining: Joining) -> None:
        self._sessions, self._joining = sessions, joining

    async def Connect(  # type: ignore[override]  # answers through the context: two sides talk at their own pace
        self, messages: AsyncIterator[pb.FromHost], context: Context
    ) -> None:
        await self._sessions.run(_host_id(), messages, context.write)

    async def Renew(self, request: pb.RenewHostRequest, _context: Context) -> pb.RenewHostResponse:
        return await self._joining.renew(_host_id(), request.csr_der)


def enrollment(joining: Joining) -> Mount:
    servicer = HostEnrollment(joining)
    return Mount(
        pb.DESCRIPTOR.services_by_name["HostEnrollment"],
        lambda server: rpc.add_HostEnrollmentServicer_to_server(servicer, server),
    )


def host_link(sessions: Sessions, joining: Joining) -> Mount:
    servicer = HostLink(sessions, joining)
    return Mount(
        pb.DESCRIPTOR.services_by_name["HostLink"],
        lambda server: rpc.add_HostLinkServicer_to_server(servicer, server),
    )


def _host_id() -> str:
    identity = access.caller().identity
    if identity is None:  # the table admits hosts only
        raise LookupError("a host's call has no identity")
    return identity.id
