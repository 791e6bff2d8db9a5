"""This host's place in the vault: joining with the key file, and a certificate that never runs out.

Both steps may be cut anywhere. The key pair is on disk before it is shown to anybody, so the provider recognises a
repeated join; a renewal that was cut leaves the old certificate good for the other half of its life.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import grpc
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from twinsite import __version__, files, keys, retry
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.channel import dial
from twinsite.clock import Clock
from twinsite.credentials import Credentials, Watched
from twinsite.errors import InvalidInput, TwinsiteError, Unreachable
from twinsite.identity import Identity
from twinsite.tls import channel_credentials, channel_credentials_roots

_log = structlog.get_logger()
_KEY_FILE: Final = "join-key.pem"


class BadJoinFile(InvalidInput):
    public = "the join file {error.path} cannot be used: {error.why}"
    still_works = "nothing was started"
    next_step = "on the provider: twinsite-provider host-key create --host NAME -O {error.path}"

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why


@dataclass(frozen=True, slots=True)
class JoinFile:
    """What `twinsite-provider host-key create` wrote for this host."""

    address: str  # of the provider's join listener
    key_id: str
    secret: str
    host_name: str
    roots_pem: bytes
    server: Identity

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises BadJoinFile."""
        try:
            found = json.loads(path.read_bytes())
            return cls(
                address=str(found["address"]),
                key_id=str(found["key_id"]),
                secret=str(found["secret"]),
                host_name=str(found["host_name"]),
                roots_pem=str(found["roots_pem"]).encode(),
                server=Identity.parse(str(found["server"])),
            )
        except FileNotFoundError:
            raise BadJoinFile(path, "there is no such file") from None
        except OSError as error:
            raise BadJoinFile(path, error.strerror or type(error).__name__) from None
        except (ValueError, KeyError, TypeError, TwinsiteError):
            raise BadJoinFile(path, "it is not a join file") from None


async def join(directory: Path, join_file: Path, clock: Clock) -> Credentials:
    """The credentials in `directory`; on the first start those the provider issues, waiting until it can be reached.

    Raises BadJoinFile, CredentialsDamaged, and what the provider refuses with.
    """
    invitation = JoinFile.read(join_file)
    files.private_directory(directory)
    key = _join_key(directory / _KEY_FILE)
    request = pb.JoinRequest(
        key_id=invitation.key_id, secret=invitation.secret, csr_der=keys.csr(key), agent_version=__version__
    )
    response = await _ask(invitation, request, clock)
    credentials = Credentials.store(
        directory,
        key,
        response.chain_pem,
        response.roots_pem,
        {
            "host_name": response.host_name,
            "server_id": response.server_id,
            "link_address": response.link_address,
            "signing_key": response.signing_key.hex(),
            "signing_key_id": response.signing_key_id,
        },
    )
    (directory / _KEY_FILE).unlink()
    _log.info("host_joined", host=credentials.identity.id, name=response.host_name, server=response.server_id)
    return credentials


async def _ask(invitation: JoinFile, request: pb.JoinRequest, clock: Clock) -> pb.JoinResponse:
    for wait in retry.delays(base=0.2, cap=10.0):
        async with dial(
            invitation.address, channel_credentials_roots(invitation.roots_pem), peer=invitation.server.dns
        ) as channel:
            try:
                response: pb.JoinResponse = await rpc.HostEnrollmentStub(channel).Join(request)
            except TwinsiteError as error:
                if not isinstance(error, Unreachable):
                    raise
                _log.warning("provider_unreachable", address=invitation.address, reason=error.text("cause"))
            else:
                return response
        await clock.sleep(wait)
    raise AssertionError  # the waits have no end


def _join_key(path: Path) -> keys.PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        key = keys.new_key()
        files.create(
            path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnsupportedAlgorithm(str(path))
    return key


class Membership:
    """The current credentials, for servers and channels, renewed at half of their life."""

    def __init__(self, directory: Path, credentials: Credentials, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._fresh = asyncio.Event()
        self._before: Callable[[Credentials], Awaitable[None]] | None = None
        self.watched = Watched(credentials)

    @property
    def identity(self) -> Identity:
        return self.watched.credentials.identity

    @property
    def host_name(self) -> str:
        return self.watched.credentials.meta["host_name"]

    @property
    def signing_keys(self) -> dict[str, bytes]:
        """Raw Ed25519 keys of the coordinator, by id: what grants are verified with."""
        meta = self.watched.credentials.meta
        return {meta["signing_key_id"]: bytes.fromhex(meta["signing_key"])}

    def channel(self) -> grpc.aio.Channel:
        """To this host's provider."""
        credentials = self.watched.credentials
        server = Identity("server", credentials.meta["server_id"], credentials.identity.vault)
        return dial(credentials.meta["link_address"], channel_credentials(credentials), peer=server.dns)

    def peer(self, host_id: str) -> str:
        """The name a host of this vault must show."""
        return Identity("host", host_id, self.identity.vault).dns

    def before_renewal(self, call: Callable[[Credentials], Awaitable[None]]) -> None:
        """`call` with the present credentials each time before they are replaced, and their key with them."""
        self._before = call

    async def renewed(self) -> None:
        """Returns after the next renewal."""
        fresh = self._fresh
        await fresh.wait()

    async def keep(self) -> None:
        """Renews for ever; ends only when it is cancelled."""
        while True:
            credentials = self.watched.credentials
            await self._clock.sleep(max(0.0, credentials.renew_at(self._clock) - self._clock.now()))
            for wait in retry.delays(base=1.0, cap=300.0):
                try:
                    await self._renew()
                except TwinsiteError as error:
                    _log.warning("renewal_failed", reason=str(error), cause=error.text("cause"))
                    await self._clock.sleep(wait)
                else:
                    break

    async def _renew(self) -> None:
        old = self.watched.credentials
        key = keys.new_key()
        async with self.channel() as channel:
            response: pb.RenewHostResponse = await rpc.HostLinkStub(channel).Renew(
                pb.RenewHostRequest(csr_der=keys.csr(key))
            )
        if self._before is not None:
            await self._before(old)
        fresh = Credentials.store(self._directory, key, response.chain_pem, response.roots_pem, old.meta)
        self.watched.replace(fresh)
        self._fresh.set()
        self._fresh = asyncio.Event()
        _log.info("certificate_renewed", host=fresh.identity.id)
