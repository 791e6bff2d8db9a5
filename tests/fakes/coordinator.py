"""A coordinator as a provider meets it: enrolment, identity and link over a test CA, with its mishaps to order."""
# ruff: noqa: N802  # servicer methods are named by protoc

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from tests.fakes.pki import DAY, TestVault, new_id
from twinsite import access, identity, keys
from twinsite.access import Caller, Gate, NotCurrent, Rule
from twinsite.api.coordinator.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    link_pb2,
    link_pb2_grpc,
)
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import SystemClock
from twinsite.credentials import Watched
from twinsite.errors import Precondition, Unauthenticated, Unreachable
from twinsite.identity import Identity
from twinsite.registration_key import RegistrationKey
from twinsite.server import Mount, Running, serve
from twinsite.tls import server_credentials

_SERVER = frozenset({"server"})
_ENROLLMENT = {
    "/twinsite.api.coordinator.v1.Enrollment/Register": Rule(frozenset({"anyone"})),
    "/twinsite.api.coordinator.v1.Enrollment/Login": Rule(frozenset()),
}
_MEMBERS = {
    "/twinsite.api.coordinator.v1.Identity/GetToken": Rule(_SERVER),
    "/twinsite.api.coordinator.v1.Identity/Renew": Rule(_SERVER, token=True),
    "/twinsite.api.coordinator.v1.Identity/IssueHostCertificate": Rule(_SERVER, token=True),
    "/twinsite.api.coordinator.v1.Link/Connect": Rule(_SERVER, token=True),
}


class KeyUnknown(Unauthenticated):
    public = "the registration key is unknown"


class ReplyLost(Unreachable):
    public = "the connection broke"


class Locked(Precondition):
    public = "the identity is locked: its generation does not match"


@dataclass
class Server:
    """A registered server as the coordinator knows it."""

    id: str
    name: str
    spki: set[str]
    generation: int = 1
    revoked: bool = False
    tokens: set[str] = field(default_factory=set)
    pending: dict[str, identity_pb2.RenewResponse] = field(default_factory=dict)


class Link:
    """One session of a provider, and what it has said."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[link_pb2.ToProvider | None] = asyncio.Queue()
        self.said: list[link_pb2.FromProvider] = []

    def kind(self, name: str) -> list[Any]:
        return [getattr(message, name) for message in self.said if message.WhichOneof("message") == name]


class FakeCoordinator:
    """`async with coordinator.serving():` as often as wanted; what it knows outlives that."""

    def __init__(self, port: int, enrollment_port: int, *, vault_name: str = "main") -> None:
        self.vault = TestVault()
        self.vault_name = vault_name
        self.address, self.enrollment_address = f"127.0.0.1:{port}", f"127.0.0.1:{enrollment_port}"
        self.keys: dict[str, tuple[str, set[str]]] = {}  # key id → secret, key pairs that used it
        self.servers: dict[str, Server] = {}
        self.hosts: dict[str, str] = {}  # name → id
        self.synced_clouds: list[str] = []
        self.assignments: dict[str, types_pb2.Assignments] = {}
        self.commands: dict[str, commands_pb2.HostCommand] = {}
        self.cancels: list[str] = []
        self.results: dict[str, commands_pb2.CommandResult] = {}
        self.result_count: Counter[str] = Counter()
        self.stored_count: Counter[str] = Counter()
        self.withhold_stored = False
        self.store_samples = True
        self.links: list[Link] = []
        self.registrations = 0
        self.lose_replies = 0  # of Register and Renew, after the work is done
        self.certificate_seconds = 90 * DAY
        self.token_seconds = 3600.0
        self.foreign_certificates = False

    # ---- what the administrator does ----------------------------------------------------------------------------

    def key_file(self, path: Path, **changes: Any) -> Path:
        """A registration key file; `changes` are made before the checksum is."""
        root = x509.load_pem_x509_certificate(self.vault.roots_pem)
        now = int(time.time())
        made = RegistrationKey(
            vault=self.vault.vault,
            vault_name=self.vault_name,
            endpoint=self.enrollment_address,
            server_name=identity.coordinator(self.vault.vault).dns,
            ca=self.vault.roots_pem.decode(),
            ca_spki_sha256=keys.spki_sha256(root),
            key_id=secrets.token_hex(8),
            secret=secrets.token_urlsafe(32),
            issued=now,
            expires=now + 5 * 86400,
            uses=2,
        )
        self.keys[made.key_id] = made.secret, set()
        path.write_bytes(replace(made, **changes).to_json())
        return path

    def order(self, command: commands_pb2.HostCommand) -> None:
        self.commands[command.id] = command
        self.tell(link_pb2.ToProvider(command=command))

    def cancel(self, command_id: str) -> None:
        self.cancels.append(command_id)
        self.tell(link_pb2.ToProvider(cancel=commands_pb2.CancelCommand(id=command_id)))

    def assign(self, assignments: types_pb2.Assignments) -> None:
        self.assignments[assignments.host_id] = assignments
        self.tell(link_pb2.ToProvider(assignments=assignments))

    def revoke(self) -> None:
        for server in self.servers.values():
            server.revoked = True
            server.tokens.clear()
            self._gate.cut(Identity("server", server.id, self.vault.vault))

    def tell(self, message: link_pb2.ToProvider) -> None:
        if self.links:
            self.links[-1].outgoing.put_nowait(message)

    # ---- what a test looks at -----------------------------------------------------------------------------------

    @property
    def inventory(self) -> link_pb2.Inventory | None:
        """The newest one told, in whatever session."""
        told = [inventory for link in self.links for inventory in link.kind("inventory")]
        return told[-1] if told else None

    def host(self, name: str) -> link_pb2.HostPresence | None:
        return next((one for one in (self.inventory or link_pb2.Inventory()).hosts if one.status.name == name), None)

    # ---- serving ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeCoordinator"]:
        watched = Watched(self.vault.coordinator())
        self._gate = Gate(_MEMBERS, self, SystemClock())
        running: list[Running] = []
        try:
            for address, mounts, gate, mutual in (
                (self.enrollment_address, [_mount(_Enrollment(self))], Gate(_ENROLLMENT, self, SystemClock()), False),
                (self.address, [_mount(_Identity(self)), _mount(_Link(self))], self._gate, True),
            ):
                credentials = server_credentials(watched, require_client=mutual)
                running.append(await serve(address, mounts, credentials=credentials, gate=gate))
            yield self
        finally:
            for link in self.links:
                link.outgoing.put_nowait(None)
            for listener in running:
                await listener.stop(0.1)

    async def admit(
        self, who: Identity, certificate: x509.Certificate, rule: Rule, metadata: access.Metadata, _: str
    ) -> Caller:
        server = self.servers.get(who.id)
        if server is None or server.revoked or keys.spki_sha256(certificate) not in server.spki:
            raise NotCurrent(who)
        token = metadata.get("authorization", "").removeprefix("Bearer ")
        if rule.token and f"{keys.thumbprint(certificate)} {token}" not in server.tokens:
            raise NotCurrent(who)
        return Caller(who, "server", server.name, "", certificate)

    def caller(self) -> Server:
        return self.servers[access.caller().identity.id]

    def token_for(self, server: Server, certificate: x509.Certificate) -> bytes:
        token = secrets.token_urlsafe(32)
        server.tokens.add(f"{keys.thumbprint(certificate)} {token}")
        return keys.seal(token.encode(), certificate, self.vault.vault, server.id)

    def maybe_lose_reply(self) -> None:
        if self.lose_replies:
            self.lose_replies -= 1
            raise ReplyLost

    def chain(self, who: Identity, csr_der: bytes, seconds: float) -> bytes:
        return self.vault.chain_for(who, keys.public_key_of(csr_der), ends=seconds)


class _Enrollment(enrollment_pb2_grpc.EnrollmentServicer):
    def __init__(self, owner: FakeCoordinator) -> None:
        self._owner = owner

    async def Register(self, request: enrollment_pb2.RegisterRequest, _: Any) -> enrollment_pb2.RegisterResponse:
        owner = self._owner
        secret, used_by = owner.keys.get(request.key_id, ("", set()))
        spki = keys.spki_sha256(keys.public_key_of(request.csr_der))
        if secret != request.secret or (spki not in used_by and len(used_by) >= 2):
            raise KeyUnknown
        used_by.add(spki)
        owner.registrations += 1
        server = next((one for one in owner.servers.values() if spki in one.spki), None)
        if server is None:
            server = Server(new_id("s"), request.name, {spki})
            owner.servers[server.id] = server
        vault = TestVault(owner.vault.vault) if owner.foreign_certificates else owner.vault
        who = Identity("server", server.id, owner.vault.vault)
        chain = vault.chain_for(who, keys.public_key_of(request.csr_der), ends=owner.certificate_seconds)
        certificate = x509.load_pem_x509_certificates(chain)[0]
        owner.maybe_lose_reply()
        return enrollment_pb2.RegisterResponse(
            server_id=server.id,
            vault_id=owner.vault.vault,
            vault_name=owner.vault_name,
            chain_pem=chain,
            roots_pem=owner.vault.roots_pem,
            sealed_token=owner.token_for(server, certificate),
            generation=server.generation,
            signing_key=owner.vault.signer.public,
            signing_key_id=owner.vault.signer.key_id,
            link_address=owner.address,
        )


class _Identity(identity_pb2_grpc.IdentityServicer):
    def __init__(self, owner: FakeCoordinator) -> None:
        self._owner = owner

    async def GetToken(self, _request: identity_pb2.GetTokenRequest, _: Any) -> identity_pb2.GetTokenResponse:
        return identity_pb2.GetTokenResponse(
            sealed_token=self._owner.token_for(self._owner.caller(), access.caller().certificate),
            expires_unix=int(time.time() + self._owner.token_seconds),
        )

    async def Renew(self, request: identity_pb2.RenewRequest, _: Any) -> identity_pb2.RenewResponse:
        owner, server = self._owner, self._owner.caller()
        spki = keys.spki_sha256(keys.public_key_of(request.csr_der))
        if spki not in server.pending:
            if request.generation != server.generation or server.pending:
                server.revoked = True
                raise Locked
            who = Identity("server", server.id, owner.vault.vault)
            chain = owner.chain(who, request.csr_der, owner.certificate_seconds)
            server.generation += 1
            server.pending[spki] = identity_pb2.RenewResponse(
                chain_pem=chain,
                roots_pem=owner.vault.roots_pem,
                sealed_token=owner.token_for(server, x509.load_pem_x509_certificates(chain)[0]),
                generation=server.generation,
            )
            server.spki.add(spki)
        owner.maybe_lose_reply()
        return server.pending[spki]

    async def IssueHostCertificate(
        self, request: identity_pb2.IssueHostCertificateRequest, _: Any
    ) -> identity_pb2.IssueHostCertificateResponse:
        owner = self._owner
        host_id = owner.hosts.setdefault(request.host_name, request.host_id or new_id("h"))
        return identity_pb2.IssueHostCertificateResponse(
            host_id=host_id,
            chain_pem=owner.chain(Identity("host", host_id, owner.vault.vault), request.csr_der, 7 * DAY),
            roots_pem=owner.vault.roots_pem,
            signing_key=owner.vault.signer.public,
            signing_key_id=owner.vault.signer.key_id,
        )


class _Link(link_pb2_grpc.LinkServicer):
    def __init__(self, owner: FakeCoordinator) -> None:
        self._owner = owner

    async def Connect(self, messages: AsyncIterator[link_pb2.FromProvider], context: Any) -> None:
        owner, link = self._owner, Link()
        certificate = access.caller().certificate
        server = owner.caller()
        server.pending.pop(keys.spki_sha256(certificate), None)  # the new one is used: the renewal is over
        owner.links.append(link)
        link.outgoing.put_nowait(
            link_pb2.ToProvider(
                welcome=link_pb2.Welcome(vault_name=owner.vault_name, synced_clouds=owner.synced_clouds)
            )
        )
        for assignments in owner.assignments.values():
            link.outgoing.put_nowait(link_pb2.ToProvider(assignments=assignments))
        for command in owner.commands.values():
            if command.id in owner.results:
                continue
            if command.id in owner.cancels:
                order = link_pb2.ToProvider(cancel=commands_pb2.CancelCommand(id=command.id))
            else:
                order = link_pb2.ToProvider(command=command)
            link.outgoing.put_nowait(order)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(link, messages))
            while (message := await link.outgoing.get()) is not None:
                await context.write(message)
            reader.cancel()

    async def _read(self, link: Link, messages: AsyncIterator[link_pb2.FromProvider]) -> None:
        async for message in messages:
            link.said.append(message)
            if message.WhichOneof("message") == "result":
                result = message.result
                self._owner.results[result.id] = result
                self._owner.result_count[result.id] += 1
                if not self._owner.withhold_stored:
                    self._owner.stored_count[result.id] += 1
                    stored = link_pb2.ToProvider(result_stored=link_pb2.ResultStored(id=result.id))
                    link.outgoing.put_nowait(stored)
            elif message.WhichOneof("message") == "samples" and self._owner.store_samples:
                stored = link_pb2.HostSamplesStored(host_id=message.samples.host_id, id=message.samples.id)
                link.outgoing.put_nowait(link_pb2.ToProvider(samples_stored=stored))
        link.outgoing.put_nowait(None)


def _mount(servicer: grpc.aio.ServicerContext) -> Mount:
    for module, service in (
        (enrollment_pb2_grpc, enrollment_pb2.DESCRIPTOR.services_by_name["Enrollment"]),
        (identity_pb2_grpc, identity_pb2.DESCRIPTOR.services_by_name["Identity"]),
        (link_pb2_grpc, link_pb2.DESCRIPTOR.services_by_name["Link"]),
    ):
        if isinstance(servicer, getattr(module, f"{service.name}Servicer")):
            add = getattr(module, f"add_{service.name}Servicer_to_server")
            return Mount(service, lambda server, add=add: add(servicer, server))
    raise LookupError(servicer)
