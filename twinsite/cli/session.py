"""The CLI's login: where the coordinator is, who we are to it, and a channel to its admin API."""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import grpc
from cryptography import x509

from twinsite import channel, keys, tls
from twinsite.api.coordinator.v1 import admin_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from twinsite.cli.home import Home, NotLoggedIn
from twinsite.credentials import Credentials, NoCredentials
from twinsite.errors import InvalidInput
from twinsite.identity import coordinator, vault_of_root

REQUEST_ID: Final = "twinsite-request-id"


class NotRoots(InvalidInput):
    public = "the CA file holds no certificate"
    still_works = "nothing was sent to anybody"
    next_step = "copy roots.pem from the coordinator; `twinsite-coordinator admin create` says where it is"


class Calls:
    """A channel whose calls carry this invocation's request id, and whose unary calls its deadline."""

    def __init__(self, connection: grpc.aio.Channel, *, timeout: float, request_id: str) -> None:
        self._connection, self._timeout = connection, timeout
        self._metadata = ((REQUEST_ID, request_id),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        call = self._connection.unary_unary(*args, **kwargs)
        return lambda request: call(request, timeout=self._timeout, metadata=self._metadata)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        call = self._connection.unary_stream(*args, **kwargs)
        return lambda request: call(request, metadata=self._metadata)


class Api:
    """The admin API's stubs over one channel."""

    def __init__(self, calls: Calls) -> None:
        connection = cast("grpc.aio.Channel", calls)  # stubs ask for no more than the two kinds of call
        self.sessions = admin_pb2_grpc.SessionsStub(connection)
        self.status = admin_pb2_grpc.StatusStub(connection)
        self.vaults = admin_pb2_grpc.VaultsStub(connection)
        self.keys = admin_pb2_grpc.KeysStub(connection)
        self.servers = admin_pb2_grpc.ServersStub(connection)
        self.hosts = admin_pb2_grpc.HostsStub(connection)
        self.clouds = admin_pb2_grpc.CloudsStub(connection)
        self.pairs = admin_pb2_grpc.PairsStub(connection)
        self.machines = admin_pb2_grpc.MachinesStub(connection)
        self.points = admin_pb2_grpc.RecoveryPointsStub(connection)
        self.jobs = admin_pb2_grpc.JobsStub(connection)
        self.audit = admin_pb2_grpc.AuditStub(connection)


@contextlib.asynccontextmanager
async def connect(home: Home, *, timeout: float, request_id: str | None = None) -> AsyncIterator[Api]:
    """A session with the coordinator of the last login. Raises NotLoggedIn."""
    context = home.context()
    try:
        credentials = Credentials.load(home.identity)
    except NoCredentials:
        raise NotLoggedIn from None
    token = home.token()
    async with channel.dial(
        context["admin_address"],
        tls.channel_credentials(credentials),
        peer=coordinator(context["vault"]).dns,
        bearer=lambda: token,
    ) as connection:
        yield Api(Calls(connection, timeout=timeout, request_id=request_id or str(uuid.uuid4())))


async def login(
    home: Home, *, address: str, roots_pem: bytes, user: str, password: str, now: float, timeout: float
) -> enrollment_pb2.LoginResponse:
    """A new session for a new key pair; replaces an older one on this machine."""
    vault = vault_of_root(root_of(roots_pem))
    key = keys.new_key()
    request = enrollment_pb2.LoginRequest(user=user, password=password, csr_der=keys.csr(key))
    async with channel.dial(
        address, tls.channel_credentials_roots(roots_pem), peer=coordinator(vault).dns
    ) as connection:
        answer: enrollment_pb2.LoginResponse = await enrollment_pb2_grpc.EnrollmentStub(connection).Login(
            request, timeout=timeout
        )
    credentials = Credentials.store(home.identity, key, answer.chain_pem, roots_pem, {"user": user})
    token = keys.unseal(answer.sealed_token, key, credentials.certificate, vault, answer.user_id)
    home.write("token", token.decode())
    context = {
        "admin_address": answer.admin_address,
        "enrollment_address": address,
        "vault": vault,
        "user": user,
        "role": answer.role,
        "logged_in": now,
        "expires": answer.expires_unix,
    }
    home.write("context.json", json.dumps(context, indent=1) + "\n")
    return answer


def root_of(roots_pem: bytes) -> x509.Certificate:
    """The first root of a bundle. Raises NotRoots."""
    try:
        return x509.load_pem_x509_certificates(roots_pem)[0]
    except ValueError:
        raise NotRoots from None
