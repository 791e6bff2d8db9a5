"""Administrators: their accounts, and the sessions that a password opens once."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.access import store, tokens
from coordinator.access.forward import ForwardClock
from coordinator.access.model import NameTaken, Session, UnknownRole, User, WrongPassword
from coordinator.access.passwords import Passwords
from coordinator.access.rate import Rate
from coordinator.audit.refusals import Strangers
from coordinator.pki import Authority, Issued
from coordinator.store.engine import Database
from twinsite import keys, names
from twinsite.access import ROLES, Caller, Gate
from twinsite.clock import Clock
from twinsite.identity import Identity


@dataclass(frozen=True, slots=True)
class Opened:
    """A new session: what the CLI keeps."""

    user: User
    issued: Issued
    sealed_token: bytes


@dataclass(frozen=True, slots=True)
class WhoAmI:
    user: str
    role: str
    vault: str
    vault_name: str
    expires: float


class Users:
    """Use cases of people. `gates` are those of the listeners where ended sessions are cut."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        clock: Clock,
        forward: ForwardClock,
        vault_name: Callable[[], Awaitable[str]],
    ) -> None:
        self._database, self._authority, self._clock, self._forward = database, authority, clock, forward
        self._vault_name = vault_name
        self._passwords = Passwords()
        self._from = Rate(clock, per_second=1.0, burst=10)  # per address
        # Failures per user and address. Not per user alone: a stranger who knows a name could then keep its owner from
        # logging in, and a failover wants a fresh login. Guessing from many addresses meets the two hashes at a time.
        self._as = Rate(clock, per_second=1 / 30, burst=20)
        self._strangers = Strangers(clock)
        self.gates: list[Gate] = []

    async def create(self, name: str, role: str, password: str) -> User:
        """Make an account. Raises InvalidName, UnknownRole, PasswordTooShort, NameTaken."""
        names.check(name, "user")
        if role not in ROLES:
            raise UnknownRole(role)
        user = User(keys.new_id("u"), name, role, await self._passwords.derive(password), self._clock.now())
        async with self._database.write() as connection:
            if not await store.add_user(connection, user):
                raise NameTaken("user", name)
            await audit.record(
                connection,
                actor="local",
                action="user.create",
                target=f"user/{name}",
                outcome="ok",
                facts={"role": role},
                now=user.created,
            )
        return user

    async def login(self, name: str, password: str, csr_der: bytes, *, address: str) -> Opened:
        """A session for the key pair of the request. An unknown user and a wrong password look and last the same.

        Raises WrongPassword, TooManyTries, BadRequestForCertificate.
        """
        self._from.take(address)
        keys.public_key_of(csr_der)  # before the hash: it is cheap
        who = ascii(name[:63])
        self._as.take(tried := f"{who} {address}")
        async with self._database.read() as connection:
            user = await store.user_named(connection, name[:64])
        good = await self._passwords.matches(user.password if user else None, password)
        async with self._database.write() as connection:
            now = await self._forward.keep(connection)
            if user is None or not good:
                opened = None
            else:
                opened = await self._open(connection, user, csr_der, now)
            facts = {} if opened else self._strangers.facts()
            if facts is not None:
                await audit.record(
                    connection,
                    actor=f"user/{name}" if opened else "none",
                    action="user.login",
                    target=f"user/{name}" if user else f"user/{who}",
                    outcome="ok" if opened else WrongPassword.code,
                    facts=facts,
                    address=address,
                    now=self._clock.now(),
                )
        if opened is None:
            raise WrongPassword
        self._as.give_back(tried)
        return opened

    async def _open(self, connection: AsyncConnection, user: User, csr_der: bytes, now: float) -> Opened:
        issued = self._authority.issue_user(user.id, csr_der)
        expires = now + (issued.expires - self._clock.now())
        await store.add_session(
            connection, Session(issued.serial, user.id, issued.spki, created=now, expires=expires, ended=0.0)
        )
        identity = Identity("user", user.id, self._authority.vault)
        sealed = await tokens.issue(connection, identity, issued.certificate, expires=expires, now=now)
        return Opened(user, issued, sealed)

    async def who_am_i(self, caller: Caller) -> WhoAmI:
        if caller.certificate is None:
            raise LookupError("the method table admits no stranger here")
        expires = caller.certificate.not_valid_after_utc.timestamp()
        return WhoAmI(caller.name, caller.role, self._authority.vault, await self._vault_name(), expires)

    async def logout(self, caller: Caller) -> None:
        """End the session of this certificate; the user's others go on."""
        if caller.identity is None or caller.certificate is None:
            raise LookupError("the method table admits no stranger here")
        serial = keys.serial_of(caller.certificate)
        async with self._database.write() as connection:
            await store.end_session(connection, serial, keys.thumbprint(caller.certificate), self._forward.now())
            await audit.record(
                connection,
                actor=f"user/{caller.name}",
                action="user.logout",
                target=f"user/{caller.name}",
                outcome="ok",
                address=caller.address,
                now=self._clock.now(),
            )
        for gate in self.gates:
            gate.cut(caller.identity, serial)
