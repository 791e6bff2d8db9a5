"""What registered servers and their hosts live through: tokens, renewals, host certificates, revocation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.access import store, tokens
from coordinator.access.forward import ForwardClock
from coordinator.access.model import (
    ACTIVE,
    LOCKED,
    TOKEN_LIFE,
    UNREGISTERED,
    GenerationMismatch,
    Host,
    NameTaken,
    Server,
    UnknownHost,
    UnknownServer,
)
from coordinator.pki import Authority, Issued
from coordinator.store.engine import Database
from twinsite import keys, names
from twinsite.access import Caller, Gate, NotCurrent
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError
from twinsite.identity import Identity

log = structlog.get_logger()
_REUSE_SHARE: Final = 0.5  # a host that asks again with the same key gets its certificate again in the first half of it


@dataclass(frozen=True, slots=True)
class Token:
    sealed: bytes
    expires: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Renewed:
    chain_pem: bytes
    token: Token
    generation: int


class Members:
    """Use cases of servers and hosts. `gates` are those of the listeners where revoked members are cut."""

    def __init__(self, database: Database, authority: Authority, clock: Clock, forward: ForwardClock) -> None:
        self._database, self._authority, self._clock, self._forward = database, authority, clock, forward
        self.gates: list[Gate] = []

    async def token(self, connection: AsyncConnection, identity: Identity, issued: Issued) -> Token:
        """A new token for one certificate, inside the caller's write transaction."""
        now = await self._forward.keep(connection)
        sealed = await tokens.issue(connection, identity, issued.certificate, expires=now + TOKEN_LIFE, now=now)
        return Token(sealed, now + TOKEN_LIFE)

    async def get_token(self, caller: Caller) -> Token:
        identity, issued = _shown(caller)
        async with self._database.write() as connection:
            return await self.token(connection, identity, issued)

    async def renew(self, caller: Caller, csr_der: bytes, generation: int) -> Renewed:
        """A certificate for a new key pair, current from its first use; until then the same key gets it again.

        A generation that is not the current one means that two hold this identity's keys: it is locked, since nobody
        can tell which of them is the right one. Raises GenerationMismatch, BadRequestForCertificate.
        """
        identity, _ = _shown(caller)
        wanted = keys.spki_sha256(keys.public_key_of(csr_der))
        async with self._database.write() as connection:
            await self._forward.keep(connection)  # before the server's row, as its first use does: else they deadlock
            server = await _active_server(connection, identity)
            if generation != server.generation:
                refused: TwinsiteError | None = await self._lock(connection, server, generation, caller.address)
            elif wanted in (server.spki, server.previous_spki):
                refused = keys.BadRequestForCertificate("a renewal needs a new key pair")
            else:
                refused = None
                if wanted == server.pending_spki:
                    issued = Issued.of(server.pending_chain)
                else:
                    issued = self._authority.issue_server(server.id, csr_der)
                    await store.change_server(
                        connection,
                        server.id,
                        pending_serial=issued.serial,
                        pending_spki=issued.spki,
                        pending_chain=issued.chain_pem,
                        pending_expires=issued.expires,
                    )
                token = await self.token(connection, identity, issued)
                await self._audit(connection, caller, "server.renew", f"server/{server.name}", serial=issued.serial)
        if refused is not None:
            self._cut(identity)
            raise refused
        return Renewed(issued.chain_pem, token, server.generation + 1)

    async def issue_host(self, caller: Caller, host_id: str, name: str, csr_der: bytes) -> Host:
        """A host's certificate, asked for by its server. Without an id: the host of that name, a new one if need be.

        Raises InvalidName, NameTaken (another server's host), UnknownHost, BadRequestForCertificate.
        """
        identity, _ = _shown(caller)
        if name or not host_id:
            names.check(name, "host")
        wanted = keys.spki_sha256(keys.public_key_of(csr_der))
        async with self._database.write() as connection:
            server = await _active_server(connection, identity)
            known = await self._host(connection, server, host_id, name)
            now = self._clock.now()
            if known is not None and known.spki == wanted and self._young(known, now):
                return known
            issued = self._authority.issue_host(known.id if known else keys.new_id("h"), csr_der)
            if known is None:
                host = _new_host(server, name, issued, now)
                if not await store.add_host(connection, host):
                    raise NameTaken("host", name, "another server joined it at this moment")
            else:
                host = replace(
                    known,
                    serial=issued.serial,
                    spki=issued.spki,
                    chain=issued.chain_pem,
                    expires=issued.expires,
                    previous_serial=known.serial,
                    previous_spki=known.spki,
                )
                await store.replace_host(connection, host)
            action = "host.join" if not host_id else "host.renew"
            await self._audit(connection, caller, action, f"host/{host.name}", serial=issued.serial)
        return host

    async def revoke(self, server_id: str, *, actor: str, address: str = "", reason: str = "") -> Sequence[str]:
        """Unregister a server and its hosts, now: refused from the next call on, running calls are cut.

        Returns the hosts' ids. Idempotent. Raises UnknownServer.
        """
        async with self._database.write() as connection:
            server = await store.get_server(connection, server_id)
            if server is None:
                raise UnknownServer(server_id)
            members = [host.id for host in await store.list_hosts(connection, server_id, unregistered=True)]
            if server.state != UNREGISTERED:
                await store.unregister(connection, server_id)
                await audit.record(
                    connection,
                    actor=actor,
                    action="server.revoke",
                    target=f"server/{server.name}",
                    outcome="ok",
                    facts={"id": server_id, "hosts": str(len(members)), "reason": reason[:200]},
                    address=address,
                    now=self._clock.now(),
                )
        self._cut(Identity("server", server_id, self._authority.vault))
        for host_id in members:
            self._cut(Identity("host", host_id, self._authority.vault))
        return members

    async def _lock(
        self, connection: AsyncConnection, server: Server, generation: int, address: str
    ) -> GenerationMismatch:
        await store.change_server(connection, server.id, state=LOCKED)
        await store.withdraw_tokens(connection, server.id)
        mismatch = GenerationMismatch(server.name, generation, server.generation)
        log.error("server locked", server=server.id, presented=generation, current=server.generation)
        await audit.record(
            connection,
            actor=f"server/{server.name}",
            action="server.lock",
            target=f"server/{server.name}",
            outcome=mismatch.code,
            facts={"presented": str(generation), "current": str(server.generation)},
            address=address,
            now=self._clock.now(),
        )
        return mismatch

    async def _host(self, connection: AsyncConnection, server: Server, host_id: str, name: str) -> Host | None:
        if host_id:
            host = await store.get_host(connection, host_id)
            if host is None or host.server_id != server.id or host.state != ACTIVE or name not in ("", host.name):
                raise UnknownHost(host_id)
            return host
        host = await store.host_named(connection, name)
        if host is not None and host.server_id != server.id:
            raise NameTaken("host", name, "it belongs to another server")
        return host

    def _young(self, host: Host, now: float) -> bool:
        certificate = Issued.of(host.chain).certificate
        begins = certificate.not_valid_before_utc.timestamp()
        return now < begins + (host.expires - begins) * _REUSE_SHARE

    async def _audit(self, connection: AsyncConnection, caller: Caller, action: str, target: str, **facts: str) -> None:
        await audit.record(
            connection,
            actor=f"{caller.role}/{caller.name}",
            action=action,
            target=target,
            outcome="ok",
            facts=facts,
            address=caller.address,
            now=self._clock.now(),
        )

    def _cut(self, identity: Identity) -> None:
        for gate in self.gates:
            gate.cut(identity)


def _shown(caller: Caller) -> tuple[Identity, Issued]:
    if caller.identity is None or caller.certificate is None:
        raise LookupError("the method table admits no stranger here")
    return caller.identity, Issued(caller.certificate, b"")


async def _active_server(connection: AsyncConnection, identity: Identity) -> Server:
    """Again, inside the transaction: the judge looked before it."""
    server = await store.get_server(connection, identity.id)
    if server is None or server.state != ACTIVE:
        raise NotCurrent(identity)
    return server


def _new_host(server: Server, name: str, issued: Issued, now: float) -> Host:
    return Host(
        id=issued.identity.id,
        name=name,
        server_id=server.id,
        state=ACTIVE,
        serial=issued.serial,
        spki=issued.spki,
        chain=issued.chain_pem,
        registered=now,
        expires=issued.expires,
        previous_serial="",
        previous_spki="",
    )
