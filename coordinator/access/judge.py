"""The coordinator's judge: an identity is as good as its row says at this call."""

from cryptography import x509
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.access import store, tokens
from coordinator.access.forward import ForwardClock
from coordinator.access.model import GRACE, Server, User
from coordinator.store.engine import Database
from twinsite import keys
from twinsite.access import Caller, Metadata, NotCurrent, Rule
from twinsite.identity import Identity


class DatabaseJudge:
    """Knows identities by id, serial and key, never by fingerprint: that one can be changed by anybody."""

    def __init__(self, database: Database, vault: str, forward: ForwardClock) -> None:
        self._database, self._vault, self._forward = database, vault, forward

    async def admit(
        self, identity: Identity, certificate: x509.Certificate, rule: Rule, metadata: Metadata, method: str
    ) -> Caller:
        del method
        if identity.vault != self._vault:
            raise NotCurrent(identity)
        now = self._forward.now()
        first_use, login_age = False, None
        async with self._database.read() as connection:
            match identity.kind:
                case "server":
                    server = await self._server(connection, identity, certificate, now)
                    first_use = keys.serial_of(certificate) == server.pending_serial
                    role, name = "server", server.name
                case "host":
                    role, name = "host", await self._host(connection, identity, certificate)
                case "user":
                    user, login = await self._user(connection, identity, certificate, now)
                    role, name, login_age = user.role, user.name, now - login
                case "coordinator":
                    raise NotCurrent(identity)  # it calls nobody
            if rule.token and rule.admits(identity.kind, role):  # else the gate refuses, and says the better reason
                await tokens.check(connection, identity, certificate, metadata.get("authorization", ""), now=now)
        if first_use:
            await self._promote(identity, keys.serial_of(certificate))
        return Caller(identity, role, name, "", login_age=login_age)

    async def _server(
        self, connection: AsyncConnection, identity: Identity, certificate: x509.Certificate, now: float
    ) -> Server:
        server = await store.get_server(connection, identity.id)
        if server is None or not store.is_active(server):
            raise NotCurrent(identity)
        good = {(server.serial, server.spki), (server.pending_serial, server.pending_spki)}
        if now < server.previous_until:
            good.add((server.previous_serial, server.previous_spki))
        if (keys.serial_of(certificate), keys.spki_sha256(certificate)) not in good:
            raise NotCurrent(identity)
        return server

    async def _host(self, connection: AsyncConnection, identity: Identity, certificate: x509.Certificate) -> str:
        host = await store.get_host(connection, identity.id)
        if host is None or not store.is_active(host):
            raise NotCurrent(identity)
        good = {(host.serial, host.spki), (host.previous_serial, host.previous_spki)}
        if (keys.serial_of(certificate), keys.spki_sha256(certificate)) not in good:
            raise NotCurrent(identity)
        return host.name

    async def _user(
        self, connection: AsyncConnection, identity: Identity, certificate: x509.Certificate, now: float
    ) -> tuple[User, float]:
        """The user, and when this session's login was."""
        found = await store.session_of(connection, keys.serial_of(certificate))
        if found is None:
            raise NotCurrent(identity)
        session, user = found
        known = user.id == identity.id and session.spki == keys.spki_sha256(certificate)
        if not known or session.ended or session.expires <= now:
            raise NotCurrent(identity)
        return user, session.created

    async def _promote(self, identity: Identity, serial: str) -> None:
        """The renewed certificate has arrived: it is the current one, the old one ends soon."""
        async with self._database.write() as connection:
            server = await store.get_server(connection, identity.id)
            if server is None or server.pending_serial != serial:
                return  # another call was first
            now = await self._forward.keep(connection)
            await store.change_server(
                connection,
                server.id,
                serial=server.pending_serial,
                spki=server.pending_spki,
                chain=server.pending_chain,
                expires=server.pending_expires,
                generation=server.generation + 1,
                previous_serial=server.serial,
                previous_spki=server.spki,
                previous_until=now + GRACE,
                pending_serial="",
                pending_spki="",
                pending_chain=b"",
                pending_expires=0.0,
            )
