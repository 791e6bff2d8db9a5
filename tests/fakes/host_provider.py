"""A provider as host agents see it, and agents that run against it in the test's own process."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hyperv_host_agent import app
from hyperv_host_agent.hypervisors.base import Hypervisor
from hyperv_host_agent.seeds.paths import Media
from hyperv_host_agent.settings import Settings, TransferSettings
from hyperv_host_agent.store.base import ReplicaStore
from tests.fakes.pki import TestVault, new_id
from twinsite import grants, point_changes
from twinsite.access import Gate, Rule, VaultMembers, caller
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import Clock, SystemClock
from twinsite.credentials import Watched
from twinsite.documents import Signer
from twinsite.errors import Unauthenticated
from twinsite.identity import Identity
from twinsite.server import CONTROL, ENROLLMENT, Mount, Running, serve
from twinsite.tls import server_credentials

_LINK = pb.DESCRIPTOR.services_by_name["HostLink"]
_JOIN = pb.DESCRIPTOR.services_by_name["HostEnrollment"]
_TABLE = {
    "/twinsite.api.provider.v1.HostLink/Connect": Rule(frozenset({"host"})),
    "/twinsite.api.provider.v1.HostLink/Renew": Rule(frozenset({"host"})),
    "/twinsite.api.provider.v1.HostEnrollment/Join": Rule(frozenset({"anyone"})),
}


async def eventually(what: str, check: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """Polls until `check` gives something true."""
    for _ in range(int(seconds / 0.02)):
        found = check()
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


@dataclass
class HostView:
    """What one host has told, and what it is to be told."""

    status: types_pb2.HostStatus = field(default_factory=types_pb2.HostStatus)
    statuses: dict[str, types_pb2.ReplicationStatus] = field(default_factory=dict)
    points: dict[str, list[types_pb2.Point]] = field(default_factory=dict)
    results: dict[str, commands_pb2.CommandResult] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    held: int = 0
    samples: list[types_pb2.Sample] = field(default_factory=list)  # stored ones
    sessions: int = 0
    times: list[float] = field(default_factory=list)  # when statuses came
    outgoing: asyncio.Queue[pb.ToHost] = field(default_factory=asyncio.Queue)
    assigned: types_pb2.Assignments | None = None


class HostProvider(rpc.HostEnrollmentServicer, rpc.HostLinkServicer):
    """Issues certificates itself, as the coordinator would; `life` in seconds."""

    def __init__(self, vault: TestVault, *, life: float = 7 * 86400.0, current: bool = True) -> None:
        self.vault = vault
        self.life = life
        self.current = current
        self.identity = vault.server()
        self.hosts: dict[str, HostView] = {}
        self.names: dict[str, str] = {}
        self.chains: dict[str, bytes] = {}  # the newest of each host
        self.renewals = 0
        self.joins: list[bytes] = []  # public keys that asked
        self.cut_joins = 0  # so many joins are done and not answered
        self.store_results = True
        self.store_samples = True
        self.link_address = self.join_address = ""
        self._secrets: dict[str, tuple[str, str]] = {}  # key id → secret, host name
        self._listeners: list[Running] = []
        self._version = 0

    async def start(self) -> None:
        """Again on the same ports after a stop."""
        watched = Watched(self.identity)
        self._listeners = [
            await serve(
                self.link_address or "127.0.0.1:0",
                [Mount(_LINK, lambda server: rpc.add_HostLinkServicer_to_server(self, server))],
                credentials=server_credentials(watched),
                gate=Gate(_TABLE, VaultMembers(self.vault.vault), SystemClock()),
                limits=CONTROL,
            ),
            await serve(
                self.join_address or "127.0.0.1:0",
                [Mount(_JOIN, lambda server: rpc.add_HostEnrollmentServicer_to_server(self, server))],
                credentials=server_credentials(watched, require_client=False),
                gate=Gate(_TABLE, VaultMembers(self.vault.vault), SystemClock()),
                limits=ENROLLMENT,
            ),
        ]
        self.link_address, self.join_address = (listener.address for listener in self._listeners)

    async def stop(self) -> None:
        for listener in self._listeners:
            await listener.stop(0)
        self._listeners = []

    def join_file(self, path: Path, name: str) -> Path:
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        self._secrets[key_id] = secret, name
        content = {
            "v": 1,
            "kind": "host",
            "host_name": name,
            "address": self.join_address,
            "server": self.identity.identity.uri,
            "roots_pem": self.identity.roots_pem.decode(),
            "key_id": key_id,
            "secret": secret,
        }
        path.write_text(json.dumps(content))
        return path

    # What a test does.

    def assign(self, host_id: str, *assignments: types_pb2.Assignment) -> None:
        self._version += 1
        view = self.hosts[host_id]
        view.assigned = types_pb2.Assignments(host_id=host_id, version=self._version, assignments=assignments)
        view.outgoing.put_nowait(pb.ToHost(assignments=view.assigned))

    def welcome(self, host_id: str) -> None:
        """Also later in a session, when the coordinator is back."""
        welcome = pb.Welcome(
            provider_unix=int(SystemClock().now()), provider_version="test", assignments_current=self.current
        )
        self.hosts[host_id].outgoing.put_nowait(pb.ToHost(welcome=welcome))

    async def order(self, host_id: str, command_id: str, **action: Any) -> commands_pb2.CommandResult:
        """Send a command and wait for its result."""
        self.send(host_id, command_id, **action)
        return await self.result(host_id, command_id)

    def send(self, host_id: str, command_id: str, **action: Any) -> None:
        view = self.hosts[host_id]
        view.results.pop(command_id, None)
        command = commands_pb2.HostCommand(id=command_id, host_id=host_id, **action)
        view.outgoing.put_nowait(pb.ToHost(command=command))

    async def result(self, host_id: str, command_id: str) -> commands_pb2.CommandResult:
        view = self.hosts[host_id]
        found: commands_pb2.CommandResult = await eventually(
            f"the result of {command_id}", lambda: view.results.get(command_id)
        )
        return found

    # The services.

    async def Join(self, request: pb.JoinRequest, _context: object) -> pb.JoinResponse:  # noqa: N802
        secret, name = self._secrets.get(request.key_id, ("", ""))
        if not secret or secret != request.secret:
            raise Unauthenticated
        self.joins.append(_public(request.csr_der).public_numbers().x.to_bytes(32, "big"))
        host_id = next((known for known, named in self.names.items() if named == name), new_id("h"))
        self.names[host_id] = name
        if self.cut_joins:
            self.cut_joins -= 1
            raise ConnectionResetError
        return pb.JoinResponse(
            host_id=host_id,
            host_name=name,
            vault_id=self.vault.vault,
            server_id=self.identity.identity.id,
            chain_pem=self._chain(host_id, request.csr_der),
            roots_pem=self.vault.roots_pem,
            signing_key=self.vault.signer.public,
            signing_key_id=self.vault.signer.key_id,
            link_address=self.link_address,
        )

    async def Renew(self, request: pb.RenewHostRequest, _context: object) -> pb.RenewHostResponse:  # noqa: N802
        identity = caller().identity
        assert identity is not None
        self.renewals += 1
        return pb.RenewHostResponse(chain_pem=self._chain(identity.id, request.csr_der), roots_pem=self.vault.roots_pem)

    async def Connect(self, messages: Any, context: Any) -> None:  # noqa: N802
        identity = caller().identity
        assert identity is not None
        view = self.hosts.setdefault(identity.id, HostView())
        view.sessions += 1
        view.outgoing = asyncio.Queue()
        self.welcome(identity.id)
        if view.assigned is not None:
            view.outgoing.put_nowait(pb.ToHost(assignments=view.assigned))
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write(view.outgoing, context))
            async for message in messages:
                self._take(view, message)
            writer.cancel()

    async def _write(self, outgoing: asyncio.Queue[pb.ToHost], context: Any) -> None:
        while True:
            await context.write(await outgoing.get())

    def _take(self, view: HostView, message: pb.FromHost) -> None:
        match message.WhichOneof("message"):
            case "status":
                view.status = message.status
            case "statuses":
                view.times.append(asyncio.get_running_loop().time())
                view.statuses.update({status.vm_id: status for status in message.statuses.statuses})
            case "points":
                said = message.points
                held = point_changes.by_cycle(view.points.get(said.vm_id, ())) if said.changes else {}
                now = point_changes.applied(held, said.points, said.gone, total=said.total)
                assert now is not None, said
                view.points[said.vm_id] = list(now.values())
            case "result":
                view.results[message.result.id] = message.result
                if self.store_results:
                    view.outgoing.put_nowait(pb.ToHost(result_stored=pb.ResultStored(id=message.result.id)))
            case "received":
                view.received.append(message.received.id)
            case "samples" if self.store_samples:
                view.samples.extend(message.samples.samples)
                stored = pb.SamplesStored(id=message.samples.id)
                view.outgoing.put_nowait(pb.ToHost(samples_stored=stored))
            case "held":
                view.held = message.held.version

    def _chain(self, host_id: str, csr_der: bytes) -> bytes:
        identity = Identity("host", host_id, self.vault.vault)
        self.chains[host_id] = self.vault.chain_for(identity, _public(csr_der), ends=self.life)
        return self.chains[host_id]


def _public(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    key = x509.load_der_x509_csr(csr_der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@contextlib.asynccontextmanager
async def host_provider(vault: TestVault, **kwargs: Any) -> AsyncIterator[HostProvider]:
    provider = HostProvider(vault, **kwargs)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.stop()


@contextlib.asynccontextmanager
async def host_agent(
    provider: HostProvider,
    folder: Path,
    *,
    hypervisor: Hypervisor | None = None,
    store: ReplicaStore | None = None,
    clock: Clock | None = None,
    listen: str = "127.0.0.1:0",
    transfer: TransferSettings | None = None,
    media: Media | None = None,
    connect: bool = True,
) -> AsyncIterator[app.Agent]:
    """An agent with its state in `folder`, connected to the provider; named for the folder."""
    settings = agent_settings(provider, folder, listen=listen, transfer=transfer)
    async with app.agent(settings, clock or SystemClock(), hypervisor=hypervisor, store=store, media=media) as agent:
        if connect:
            await eventually(
                f"{folder.name} to connect",
                lambda: agent.host_id in provider.hosts and provider.hosts[agent.host_id].status.host_id,
            )
        yield agent


def agent_settings(
    provider: HostProvider, folder: Path, *, listen: str = "127.0.0.1:0", transfer: TransferSettings | None = None
) -> Settings:
    folder.mkdir(exist_ok=True)
    if not (folder / "join.json").exists():
        provider.join_file(folder / "join.json", folder.name)
    return Settings(
        state=folder / "state",
        join_file=folder / "join.json",
        store=folder / "store",
        store_reserve_bytes=0,
        vms=folder / "vms",
        listen=listen,
        transfer=transfer or TransferSettings(),
    )


def grant(
    of: TestVault,
    machine: types_pb2.Machine,
    source: str,
    target: str,
    *,
    term: int = 1,
    signer: Signer | None = None,
    seconds: float = 3600.0,
    **changes: Any,
) -> types_pb2.SignedDocument:
    """What the coordinator would sign; `changes` replace fields of it."""
    fields: dict[str, Any] = {
        "grant_id": new_id("g", 16),
        "vault": of.vault,
        "vm_id": machine.id,
        "vm_name": machine.name,
        "disks": tuple((disk.id, disk.size_bytes) for disk in machine.disks),
        "source_host": source,
        "target_host": target,
        "mode": "https",
        "term": term,
        "not_after": int(SystemClock().now() + seconds),
    }
    return grants.sign(grants.Grant(**fields | changes), signer or of.signer)


def assignment(
    machine: types_pb2.Machine,
    role: types_pb2.Role.ValueType,
    document: types_pb2.SignedDocument,
    *,
    peer: str = "",
    address: str = "",
    term: int = 1,
    frequency: int = 1,
    compression: bool = True,
    paused: bool = False,
    fenced: bool = False,
    offline: bool = False,
    **policy: Any,
) -> types_pb2.Assignment:
    """`policy`: further fields of it."""
    return types_pb2.Assignment(
        vm_id=machine.id,
        vm_name=machine.name,
        role=role,
        paused=paused,
        policy=types_pb2.Policy(frequency_seconds=frequency, additional_points=2, compression=compression, **policy),
        grant=document,
        peer_host_id=peer,
        peer_address=address,
        term=term,
        fenced=fenced,
        initial=types_pb2.InitialReplication(method=int(offline)),  # type: ignore[arg-type]  # 1: offline
    )
