"""The coordinator's identity side alone, on real ports: both listeners, real database, real authority."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.access import methods, store
from coordinator.access.forward import ForwardClock
from coordinator.access.judge import DatabaseJudge
from coordinator.access.members import Members
from coordinator.access.rpc import identity_mount, sessions_mount
from coordinator.access.users import Users
from coordinator.audit.chain import Entry, recent
from coordinator.enrollment.rpc import enrollment_mount, keys_mount
from coordinator.enrollment.service import Enrollment
from coordinator.pki import Authority
from coordinator.store.engine import Database
from coordinator.store.schema import metadata
from tests.fakes.clock import SetBackClock
from twinsite import access, keys, server, tls
from twinsite.api.coordinator.v1 import enrollment_pb2, enrollment_pb2_grpc
from twinsite.channel import Channel, dial
from twinsite.credentials import Credentials
from twinsite.identity import coordinator
from twinsite.registration_key import RegistrationKey
from twinsite.server import Mount, Running

PASSWORD = "correct horse battery"


def real_time() -> SetBackClock:
    """TLS reads the machine's clock, so a test with certificates begins there."""
    return SetBackClock(time.time())


@dataclass
class Member:
    """What a registered server or a user with a session holds."""

    credentials: Credentials
    token: str
    name: str
    generation: int = 1

    @property
    def id(self) -> str:
        return self.credentials.identity.id


@dataclass
class IdentityPlane:
    database: Database
    clock: SetBackClock
    authority: Authority
    forward: ForwardClock
    members: Members
    users: Users
    enrollment: Enrollment
    vault_name: str = "demo"
    refusals: list[access.Refusal] = field(default_factory=list)
    gate: access.Gate = field(init=False)
    _running: dict[str, Running] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls,
        state: Path,
        database: Database,
        clock: SetBackClock,
        mounts: Sequence[Mount] | None = None,
        more: Callable[["IdentityPlane"], Sequence[Mount]] = lambda _: (),
    ) -> AsyncIterator["IdentityPlane"]:
        """`mounts` replace the services of the mutual TLS listener, `more` come beside them."""
        async with database.write() as connection:
            await connection.run_sync(metadata.create_all)
        authority = Authority.open(state / "pki", clock)
        forward = ForwardClock(clock)
        await forward.load(database)
        members = Members(database, authority, clock, forward)
        made: IdentityPlane

        async def vault_name() -> str:
            return made.vault_name

        async def refused(refusal: access.Refusal) -> None:
            made.refusals.append(refusal)

        users = Users(database, authority, clock, forward, vault_name)
        enrollment = Enrollment(
            database, authority, clock, forward, members, vault_name, lambda: made.enrollment_address
        )
        made = cls(database, clock, authority, forward, members, users, enrollment)
        judge = DatabaseJudge(database, authority.vault, forward)
        made.gate = access.Gate(methods.MEMBERS, judge, clock, on_refused=refused)
        members.gates.append(made.gate)
        users.gates.append(made.gate)
        made._running["enrollment"] = await server.serve(
            "127.0.0.1:0",
            [enrollment_mount(enrollment, users, authority, lambda: made.address)],
            credentials=tls.server_credentials(authority.watched, require_client=False),
            gate=access.Gate(methods.ENROLLMENT, judge, clock, on_refused=refused),
            limits=server.ENROLLMENT,
        )
        if mounts is None:
            mounts = [identity_mount(members, authority), sessions_mount(users), keys_mount(enrollment)]
        made._running["members"] = await server.serve(
            "127.0.0.1:0", [*mounts, *more(made)], credentials=tls.server_credentials(authority.watched), gate=made.gate
        )
        try:
            yield made
        finally:
            for running in made._running.values():
                await running.stop(0.1)

    @property
    def enrollment_address(self) -> str:
        return self._running["enrollment"].address

    @property
    def address(self) -> str:
        return self._running["members"].address

    @property
    def peer(self) -> str:
        return coordinator(self.authority.vault).dns

    def stranger(self, roots_pem: bytes | None = None) -> Channel:
        """On the enrolment listener."""
        roots = tls.channel_credentials_roots(roots_pem or self.authority.roots_pem)
        return dial(self.enrollment_address, roots, peer=self.peer)

    def dial(self, member: Member | Credentials, token: str | None = None) -> Channel:
        """On the mutual TLS listener, with the member's token unless another is given; "" for none."""
        credentials = member.credentials if isinstance(member, Member) else member
        given = token if token is not None else (member.token if isinstance(member, Member) else "")
        metadata = (("authorization", f"Bearer {given}"),) if given else ()
        return dial(self.address, tls.channel_credentials(credentials), peer=self.peer, metadata=metadata)

    async def key_file(self, *, seconds: int = 0, uses: int = 0) -> RegistrationKey:
        return (await self.enrollment.create(seconds=seconds, uses=uses, actor="user/owner"))[1]

    async def register(
        self, name: str, file: RegistrationKey | None = None, key: keys.PrivateKey | None = None
    ) -> Member:
        """Through the enrolment listener."""
        file = file or await self.key_file()
        key = key or keys.new_key()
        self.clock.advance(1)  # one try a second is what a stranger has
        async with self.stranger() as channel:
            answer = await enrollment_pb2_grpc.EnrollmentStub(channel).Register(
                enrollment_pb2.RegisterRequest(
                    key_id=file.key_id, secret=file.secret, csr_der=keys.csr(key), name=name, agent_version="0.1.0"
                )
            )
        return self.member(key, answer.chain_pem, answer.sealed_token, name, answer.generation)

    def member(self, key: keys.PrivateKey, chain_pem: bytes, sealed: bytes, name: str, generation: int = 1) -> Member:
        made = Credentials.of(key, chain_pem, self.authority.roots_pem, {})
        token = keys.unseal(sealed, key, made.certificate, self.authority.vault, made.identity.id)
        return Member(made, token.decode(), name, generation)

    async def host(self, of: Member, name: str) -> Credentials:
        """A host's credentials, asked for by its server."""
        key = keys.new_key()
        caller = access.Caller(of.credentials.identity, "server", of.name, "", of.credentials.certificate)
        host = await self.members.issue_host(caller, "", name, keys.csr(key))
        return Credentials.of(key, host.chain, self.authority.roots_pem, {})

    async def user(self, name: str, role: str) -> Member:
        """An account with an open session, without the seconds its password would take."""
        user = store.User(keys.new_id("u"), name, role, "-", self.clock.now())
        key = keys.new_key()
        async with self.database.write() as connection:
            await store.add_user(connection, user)
            opened = await self.users._open(connection, user, keys.csr(key), self.forward.now())
        return self.member(key, opened.issued.chain_pem, opened.sealed_token, name)

    async def audited(self) -> list[Entry]:
        """Newest first."""
        async with self.database.read() as connection:
            return await recent(connection, limit=1000)
