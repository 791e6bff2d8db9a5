"""Creating, listing and revoking registration keys, and registering with one."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.access import store as members_store
from coordinator.access.forward import ForwardClock
from coordinator.access.members import Members, Token
from coordinator.access.model import ACTIVE, NameTaken, Server
from coordinator.access.rate import Rate
from coordinator.audit.refusals import Strangers
from coordinator.enrollment import store
from coordinator.enrollment.model import (
    FAILURES,
    Key,
    KeyExpired,
    KeyLocked,
    KeyRefused,
    KeyRevoked,
    NoVault,
    RegisteredAs,
    UnknownKey,
    checked_life,
    checked_uses,
)
from coordinator.pki import Authority, Issued
from coordinator.store import requests
from coordinator.store.engine import Database
from twinsite import keys, names
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError
from twinsite.identity import Identity, coordinator
from twinsite.registration_key import RegistrationKey

log = structlog.get_logger()
_CREATE = "Keys/Create"


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key with its state now, and the names of the servers it registered."""

    key: Key
    state: str
    servers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Registered:
    server: Server
    issued: Issued
    token: Token
    vault_name: str


class Enrollment:
    """`endpoint` is the enrolment listener's host:port as servers reach it; it goes into the key file."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        clock: Clock,
        forward: ForwardClock,
        members: Members,
        vault_name: Callable[[], Awaitable[str]],
        endpoint: Callable[[], str],
    ) -> None:
        self._database, self._authority, self._clock, self._forward = database, authority, clock, forward
        self._members, self._vault_name, self._endpoint = members, vault_name, endpoint
        self._from = Rate(clock, per_second=1.0, burst=5)  # per address
        self._strangers = Strangers(clock)

    async def create(
        self, *, seconds: int, uses: int, actor: str, address: str = "", request_id: str = ""
    ) -> tuple[KeyView, RegistrationKey]:
        """A key and its file. Its secret is computed from its id by the authority's own, so that a repeated request
        gets the same file again, and yet no secret is stored. Raises BadLifeOfKey, BadUses, NoVault.
        """
        life, count = checked_life(seconds), checked_uses(uses)
        vault_name = await self._vault_name()
        if not vault_name:
            raise NoVault
        async with self._database.write() as connection:
            now = await self._forward.keep(connection)
            again = await requests.recall(connection, request_id, _CREATE, actor, now=now)
            key = await store.get(connection, again.decode()) if again else None
            if key is None:
                key_id = secrets.token_hex(8)
                digest = _digest(self._secret(key_id))
                key = Key(key_id, digest, now, now + life, count, actor, revoked=0.0, failures=0)
                await store.add(connection, key)
                await requests.remember(connection, request_id, _CREATE, actor, key_id.encode(), now=now)
                facts = {"seconds": str(life), "uses": str(count)}
                await self._audit(connection, "key.create", key_id, "ok", actor, address, facts)
            view = await self._view(connection, key)
        return view, RegistrationKey(
            vault=self._authority.vault,
            vault_name=vault_name,
            endpoint=self._endpoint(),
            server_name=coordinator(self._authority.vault).dns,
            ca=self._authority.roots_pem.decode(),
            ca_spki_sha256=self._authority.root_spki,
            key_id=key.id,
            secret=self._secret(key.id),
            issued=int(key.issued),
            expires=int(key.expires),
            uses=key.uses,
        )

    async def list(self) -> Sequence[KeyView]:
        """Newest first."""
        async with self._database.read() as connection:
            return [await self._view(connection, key) for key in await store.everyone(connection)]

    async def revoke(self, key_id: str, *, actor: str, address: str = "", dry_run: bool = False) -> KeyView:
        """It registers nobody from now on. Idempotent. Raises UnknownKey."""
        async with self._database.write() as connection:
            now = await self._forward.keep(connection)  # before the key, as registering does: else they deadlock
            key = await store.get(connection, key_id, for_update=True)
            if key is None:
                raise UnknownKey(key_id)
            if not key.revoked and not dry_run:
                await store.change(connection, key_id, revoked=now)
                await self._audit(connection, "key.revoke", key_id, "ok", actor, address)
            return await self._view(connection, await store.get(connection, key_id) or key)

    async def register(
        self, *, key_id: str, secret: str, csr_der: bytes, name: str, agent_version: str, address: str
    ) -> Registered:
        """A server's identity for a use of a key. A use belongs to a key pair: a reply that was lost is given again.

        Raises TooManyTries, InvalidName, BadRequestForCertificate, KeyRefused, KeyExpired, KeyRevoked, KeyLocked,
        NameTaken, RegisteredAs.
        """
        self._from.take(address)
        names.check(name, "server")
        spki = keys.spki_sha256(keys.public_key_of(csr_der))
        vault_name = await self._vault_name()
        # A refusal commits what it counts and audits, so it leaves the transaction as a value.
        async with self._database.write() as connection:
            now = await self._forward.keep(connection)
            found = await self._judge(connection, key_id, secret, spki, name, address, now)
            new = found is None
            if found is None:
                found = await self._admit(connection, key_id, spki, csr_der, name, agent_version, now)
            if isinstance(found, TwinsiteError):
                left_out = self._strangers.facts()
                if left_out is not None:
                    facts = {"name": name, **left_out}
                    await self._audit(connection, "server.register", key_id, found.code, "none", address, facts)
            else:
                issued = Issued.of(found.chain)
                token = await self._members.token(connection, _identity(found, self._authority), issued)
                if new:
                    version = ascii(agent_version[:64])[1:-1]
                    facts = {"key": key_id, "id": found.id, "spki": spki[:16], "version": version}
                    await self._audit(connection, "server.register", name, "ok", f"key/{key_id}", address, facts)
        if isinstance(found, TwinsiteError):
            raise found
        return Registered(found, issued, token, vault_name)

    async def _judge(
        self, connection: AsyncConnection, key_id: str, secret: str, spki: str, name: str, address: str, now: float
    ) -> Server | TwinsiteError | None:
        """The server this key pair registered before, None for a new use, or why not."""
        key = await store.get(connection, key_id[:64], for_update=True)
        stored = key.secret_sha256 if key else ""
        if not hmac.compare_digest(stored, _digest(secret)) or key is None:
            if key is not None:
                await store.count_failure(connection, key.id)
                if key.failures + 1 == FAILURES:
                    log.warning("registration key locked", key=key.id, address=address)
            return KeyRefused()
        if key.revoked:
            return KeyRevoked()
        if key.failures >= FAILURES:
            return KeyLocked()
        if now >= key.expires:
            return KeyExpired()
        used = await store.used_by(connection, key.id)
        if spki in used:
            server = await members_store.get_server(connection, used[spki])
            if server is None or server.state != ACTIVE or server.spki != spki:
                return KeyRefused()  # it was removed, or has renewed since: this is an old key pair
            return server if server.name == name else RegisteredAs(server.name)
        if len(used) >= key.uses:
            # Whoever has the secret of a used-up key is no guesser: the file was copied.
            log.warning("registration key reused", key=key.id, address=address)
            facts = {"spki": spki[:16], "uses": str(key.uses)}
            await self._audit(connection, "key.reuse", key.id, "INCIDENT", "none", address, facts)
            return KeyRefused()
        if await members_store.server_named(connection, name) is not None:
            return NameTaken("server", name)
        return None

    async def _admit(
        self,
        connection: AsyncConnection,
        key_id: str,
        spki: str,
        csr_der: bytes,
        name: str,
        agent_version: str,
        now: float,
    ) -> Server | NameTaken:
        issued = self._authority.issue_server(keys.new_id("s"), csr_der)
        server = Server(
            id=issued.identity.id,
            name=name,
            state=ACTIVE,
            serial=issued.serial,
            spki=spki,
            chain=issued.chain_pem,
            generation=1,
            registered=self._clock.now(),
            expires=issued.expires,
            agent_version=agent_version[:64],
            key_id=key_id,
            pending_serial="",
            pending_spki="",
            pending_chain=b"",
            pending_expires=0.0,
            previous_serial="",
            previous_spki="",
            previous_until=0.0,
        )
        if not await members_store.add_server(connection, server):
            return NameTaken("server", name)  # at this moment, with another key
        await store.use(connection, key_id, spki, server.id, now)
        return server

    async def _view(self, connection: AsyncConnection, key: Key) -> KeyView:
        used = await store.used_by(connection, key.id)
        registered = [await members_store.get_server(connection, server_id) for server_id in used.values()]
        state = key.state(len(used), self._forward.now())
        return KeyView(key, state, [server.name for server in registered if server])

    async def _audit(
        self,
        connection: AsyncConnection,
        action: str,
        target: str,
        outcome: str,
        actor: str,
        address: str,
        facts: dict[str, str] | None = None,
    ) -> None:
        await audit.record(
            connection,
            actor=actor,
            action=action,
            target=f"{action.partition('.')[0]}/{ascii(target[:64])[1:-1]}",
            outcome=outcome,
            facts=facts or {},
            address=address,
            now=self._clock.now(),
        )

    def _secret(self, key_id: str) -> str:
        """256 bits; 43 characters."""
        return base64.urlsafe_b64encode(self._authority.secret(f"registration key {key_id}")).rstrip(b"=").decode()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _identity(server: Server, authority: Authority) -> Identity:
    return Identity("server", server.id, authority.vault)
