"""The services Identity (servers) and Sessions (people)."""

from typing import Any

from coordinator.access.members import Members
from coordinator.access.users import Users
from coordinator.pki import Authority
from twinsite.access import caller
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc, identity_pb2, identity_pb2_grpc
from twinsite.server import Mount


class Identity(identity_pb2_grpc.IdentityServicer):
    def __init__(self, members: Members, authority: Authority) -> None:
        self._members, self._authority = members, authority

    async def GetToken(self, request: identity_pb2.GetTokenRequest, context: Any) -> identity_pb2.GetTokenResponse:
        token = await self._members.get_token(caller())
        return identity_pb2.GetTokenResponse(sealed_token=token.sealed, expires_unix=int(token.expires))

    async def Renew(self, request: identity_pb2.RenewRequest, context: Any) -> identity_pb2.RenewResponse:
        renewed = await self._members.renew(caller(), request.csr_der, request.generation)
        return identity_pb2.RenewResponse(
            chain_pem=renewed.chain_pem,
            roots_pem=self._authority.roots_pem,
            sealed_token=renewed.token.sealed,
            generation=renewed.generation,
        )

    async def IssueHostCertificate(
        self, request: identity_pb2.IssueHostCertificateRequest, context: Any
    ) -> identity_pb2.IssueHostCertificateResponse:
        host = await self._members.issue_host(caller(), request.host_id, request.host_name, request.csr_der)
        return identity_pb2.IssueHostCertificateResponse(
            host_id=host.id,
            chain_pem=host.chain,
            roots_pem=self._authority.roots_pem,
            signing_key=self._authority.signer.public,
            signing_key_id=self._authority.signer.key_id,
        )


class Sessions(admin_pb2_grpc.SessionsServicer):
    def __init__(self, users: Users) -> None:
        self._users = users

    async def WhoAmI(self, request: admin_pb2.Empty, context: Any) -> admin_pb2.WhoAmIResponse:
        me = await self._users.who_am_i(caller())
        return admin_pb2.WhoAmIResponse(
            user=me.user,
            role=me.role,
            vault_id=me.vault,
            vault_name=me.vault_name,
            expires_unix=int(me.expires),
        )

    async def Logout(self, request: admin_pb2.Empty, context: Any) -> admin_pb2.Empty:
        await self._users.logout(caller())
        return admin_pb2.Empty()


def identity_mount(members: Members, authority: Authority) -> Mount:
    servicer = Identity(members, authority)
    return Mount(
        identity_pb2.DESCRIPTOR.services_by_name["Identity"],
        lambda server: identity_pb2_grpc.add_IdentityServicer_to_server(servicer, server),
    )


def sessions_mount(users: Users) -> Mount:
    servicer = Sessions(users)
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Sessions"],
        lambda server: admin_pb2_grpc.add_SessionsServicer_to_server(servicer, server),
    )
