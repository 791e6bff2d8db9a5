"""This provider's place in the vault: its credentials, the service token, and the channel to the coordinator."""

import contextlib
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from provider_agent.inventory import Selection
from twinsite import files, identity, keys
from twinsite.api.coordinator.v1 import identity_pb2 as pb
from twinsite.api.coordinator.v1 import identity_pb2_grpc as rpc
from twinsite.channel import Channel, dial
from twinsite.clock import Clock
from twinsite.credentials import Credentials, Watched
from twinsite.errors import Failed
from twinsite.identity import Identity
from twinsite.tls import channel_credentials

_log = structlog.get_logger()
_RENEWAL_KEY: Final = "renewal-key.pem"
_LONGEST_TOKEN_SECONDS: Final = 86400.0


class KeyDamaged(Failed):
    public = "{error.path} does not hold a key"
    still_works = "nothing was sent"
    next_step = "remove the file; a new key is made"

    def __init__(self, path: Path) -> None:
        self.path = path


def kept_key(path: Path) -> keys.PrivateKey:
    """The key in the file, made if need be: who asks again after a lost reply asks with the same key pair."""
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        made = keys.new_key()
        pem = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.create(path, pem)
        return made
    except (OSError, ValueError, TypeError):
        raise KeyDamaged(path) from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise KeyDamaged(path)
    return found


class Membership:
    """The token lives in memory only: after a start the certificate alone gets a new one."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Raises NoCredentials, CredentialsDamaged."""
        self._directory, self._clock = directory, clock
        credentials = Credentials.load(directory)
        self.watched = Watched(credentials)
        self._renew_at = credentials.renew_at(clock)
        self._token = ""
        self._token_renew_at = 0.0
        self._forget_used_renewal_key()

    @property
    def credentials(self) -> Credentials:
        return self.watched.credentials

    @property
    def identity(self) -> Identity:
        return self.credentials.identity

    @property
    def selection(self) -> Selection:
        return Selection.parse(self.credentials.meta["selection"])

    def channel(self) -> Channel:
        """To the coordinator, with the present certificate and whatever token is newest at each call."""
        meta = self.credentials.meta
        return dial(
            meta["link_address"],
            channel_credentials(self.credentials),
            peer=identity.coordinator(self.identity.vault).dns,
            proxy=meta["proxy"] or None,
            bearer=lambda: self._token,
        )

    async def fetch_token(self, channel: Channel) -> None:
        """Raises SealBroken, and what the coordinator refuses with."""
        response: pb.GetTokenResponse = await rpc.IdentityStub(channel).GetToken(pb.GetTokenRequest())
        self._take_token(response.sealed_token, self.credentials)
        # Half of what is left by this machine's clock, which may be off from the coordinator's: bounded both ways.
        left = min(max(response.expires_unix - self._clock.now(), 60.0), _LONGEST_TOKEN_SECONDS)
        self._token_renew_at = self._clock.now() + left / 2

    def drop_token(self) -> None:
        """The coordinator did not take it."""
        self._token_renew_at = 0.0

    @property
    def token_due(self) -> bool:
        return self._clock.now() >= self._token_renew_at

    async def keep_token(self, channel: Channel) -> None:
        """For ever, renewed at half of its life; ends when it is cancelled or refused."""
        while True:
            await self._clock.sleep(max(0.0, self._token_renew_at - self._clock.now()))
            await self.fetch_token(channel)
            _log.debug("token_renewed")

    async def wait_for_renewal(self) -> None:
        """Until half of the certificate's life is over."""
        await self._clock.sleep(max(0.0, self._renew_at - self._clock.now()))

    async def renew(self, channel: Channel) -> None:
        """A new certificate for a new key pair; servers use it at once, channels when dialled anew.

        May be cut anywhere: the key pair is kept before it is shown, and certificate and generation are stored as one.
        """
        old = self.credentials
        path = self._directory / _RENEWAL_KEY
        key = kept_key(path)
        response: pb.RenewResponse = await rpc.IdentityStub(channel).Renew(
            pb.RenewRequest(csr_der=keys.csr(key), generation=int(old.meta["generation"]))
        )
        meta = {**old.meta, "generation": str(response.generation)}
        fresh = Credentials.of(key, response.chain_pem, response.roots_pem, meta, directory=self._directory)
        if fresh.identity != old.identity:
            raise WrongIdentity(fresh.identity, old.identity)
        self._take_token(response.sealed_token, fresh)
        fresh = Credentials.store(self._directory, key, response.chain_pem, response.roots_pem, meta)
        path.unlink()
        self.watched.replace(fresh)
        self._renew_at = fresh.renew_at(self._clock)
        self._token_renew_at = 0.0  # its life is not told here
        _log.info("certificate_renewed", generation=response.generation, expires=int(fresh.expires))

    def _take_token(self, sealed: bytes, credentials: Credentials) -> None:
        self._token = keys.unseal(
            sealed, credentials.key, credentials.certificate, credentials.identity.vault, credentials.identity.id
        ).decode()

    def _forget_used_renewal_key(self) -> None:
        """A crash between storing the new certificate and this left the key behind; it must not be used twice."""
        path = self._directory / _RENEWAL_KEY
        with contextlib.suppress(KeyDamaged):
            if not path.exists() or keys.spki_sha256(kept_key(path)) != keys.spki_sha256(self.credentials.key):
                return
        path.unlink()


class WrongIdentity(Failed):
    public = "the coordinator issued a certificate of {error.got}, this is {error.wanted}"
    still_works = "the present certificate stays in use"
    next_step = "check the coordinator: it must not mix up its members"

    def __init__(self, got: Identity, wanted: Identity) -> None:
        self.got, self.wanted = got, wanted
