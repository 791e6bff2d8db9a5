"""The services Enrollment (strangers) and Keys (administrators)."""

from collections.abc import Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.access.users import Users
from coordinator.enrollment.service import Enrollment as Service
from coordinator.enrollment.service import KeyView
from coordinator.pki import Authority
from twinsite.access import caller
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from twinsite.server import Mount

REQUEST_ID = "twinsite-request-id"


class Enrollment(enrollment_pb2_grpc.EnrollmentServicer):
    """`address` is the mutual TLS listener's host:port as members reach it."""

    def __init__(self, service: Service, users: Users, authority: Authority, address: Callable[[], str]) -> None:
        self._service, self._users, self._authority, self._address = service, users, authority, address

    async def Register(self, request: enrollment_pb2.RegisterRequest, context: Any) -> enrollment_pb2.RegisterResponse:
        registered = await self._service.register(
            key_id=request.key_id,
            secret=request.secret,
            csr_der=request.csr_der,
            name=request.name,
            agent_version=request.agent_version,
            address=caller().address,
        )
        return enrollment_pb2.RegisterResponse(
            server_id=registered.server.id,
            vault_id=self._authority.vault,
            vault_name=registered.vault_name,
            chain_pem=registered.issued.chain_pem,
            roots_pem=self._authority.roots_pem,
            sealed_token=registered.token.sealed,
            generation=registered.server.generation,
            signing_key=self._authority.signer.public,
            signing_key_id=self._authority.signer.key_id,
            link_address=self._address(),
        )

    async def Login(self, request: enrollment_pb2.LoginRequest, context: Any) -> enrollment_pb2.LoginResponse:
        opened = await self._users.login(request.user, request.password, request.csr_der, address=caller().address)
        return enrollment_pb2.LoginResponse(
            user_id=opened.user.id,
            role=opened.user.role,
            vault_id=self._authority.vault,
            chain_pem=opened.issued.chain_pem,
            sealed_token=opened.sealed_token,
            expires_unix=int(opened.issued.expires),
            admin_address=self._address(),
        )


class Keys(admin_pb2_grpc.KeysServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    async def Create(self, request: admin_pb2.CreateKeyRequest, context: Any) -> admin_pb2.CreateKeyResponse:
        view, file = await self._service.create(
            seconds=request.ttl_seconds,
            uses=request.uses,
            actor=f"user/{caller().name}",
            address=caller().address,
            request_id=dict(context.invocation_metadata() or ()).get(REQUEST_ID, ""),
        )
        return admin_pb2.CreateKeyResponse(key=_to_proto(view), file_json=file.to_json())

    async def List(self, request: admin_pb2.Empty, context: Any) -> admin_pb2.ListKeysResponse:
        return admin_pb2.ListKeysResponse(keys=[_to_proto(view) for view in await self._service.list()])

    async def Revoke(self, request: admin_pb2.RevokeKeyRequest, context: Any) -> admin_pb2.Key:
        me = caller()
        actor = f"user/{me.name}"
        return _to_proto(
            await self._service.revoke(request.id, actor=actor, address=me.address, dry_run=request.dry_run)
        )


def _to_proto(view: KeyView) -> admin_pb2.Key:
    key = view.key
    return admin_pb2.Key(
        id=key.id,
        issued=Timestamp(seconds=int(key.issued)),
        expires=Timestamp(seconds=int(key.expires)),
        uses=key.uses,
        used=len(view.servers),
        state=view.state,
        servers=view.servers,
        created_by=key.created_by.removeprefix("user/"),
    )


def enrollment_mount(service: Service, users: Users, authority: Authority, address: Callable[[], str]) -> Mount:
    servicer = Enrollment(service, users, authority, address)
    return Mount(
        enrollment_pb2.DESCRIPTOR.services_by_name["Enrollment"],
        lambda server: enrollment_pb2_grpc.add_EnrollmentServicer_to_server(servicer, server),
    )


def keys_mount(service: Service) -> Mount:
    servicer = Keys(service)
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Keys"],
        lambda server: admin_pb2_grpc.add_KeysServicer_to_server(servicer, server),
    )
