"""A program's key and certificate on disk, and in the hands of its TLS listeners."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from twinsite import files, keys
from twinsite.clock import Clock
from twinsite.errors import Failed, Precondition
from twinsite.identity import Identity, from_certificate

IDENTITY_FILE: Final = "identity.pem"
ROOTS_FILE: Final = "roots.pem"
_META: Final = "# twinsite "


class NoCredentials(Precondition):
    public = "this machine is not registered: {error.directory} holds no identity"
    still_works = "nothing was started"
    next_step = "register it first"

    def __init__(self, directory: Path) -> None:
        self.directory = directory


class CredentialsDamaged(Failed):
    public = "the identity in {error.directory} cannot be used: {error.why}"
    still_works = "the files were left as they are"
    next_step = "restore them from a backup, or remove the directory and register again"

    def __init__(self, directory: Path, why: str) -> None:
        self.directory, self.why = directory, why


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key, its certificate with the chain under the root, the vault's roots, and facts that belong to that pair."""

    key: keys.PrivateKey
    certificate: x509.Certificate
    identity: Identity
    chain_pem: bytes  # leaf first; the issuing CA after it
    roots_pem: bytes
    meta: Mapping[str, str] = field(repr=False)  # a proxy's password may be in it

    @classmethod
    def load(cls, directory: Path) -> "Credentials":
        """Raises NoCredentials, CredentialsDamaged."""
        try:
            text = (directory / IDENTITY_FILE).read_bytes()
            roots_pem = (directory / ROOTS_FILE).read_bytes()
        except FileNotFoundError:
            raise NoCredentials(directory) from None
        except OSError as error:
            raise CredentialsDamaged(directory, error.strerror or type(error).__name__) from None
        try:
            head, _, rest = text.partition(b"\n")
            meta = json.loads(head.decode().removeprefix(_META))
            key = serialization.load_pem_private_key(rest, None)
            at = rest.index(b"-----BEGIN CERTIFICATE-----")
        except (ValueError, TypeError):
            raise CredentialsDamaged(directory, f"{IDENTITY_FILE} is not what was written") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CredentialsDamaged(directory, "its key is not a P-256 key")
        return cls.of(key, rest[at:], roots_pem, meta, directory=directory)

    @classmethod
    def of(
        cls,
        key: keys.PrivateKey,
        chain_pem: bytes,
        roots_pem: bytes,
        meta: Mapping[str, str],
        *,
        directory: Path = Path(),
    ) -> "Credentials":
        """From the parts; `directory` is for the text of CredentialsDamaged, which it raises when they do not fit."""
        try:
            certificate = x509.load_pem_x509_certificates(chain_pem)[0]
            x509.load_pem_x509_certificates(roots_pem)
        except ValueError:
            raise CredentialsDamaged(directory, "a certificate cannot be read") from None
        if keys.spki_sha256(certificate) != keys.spki_sha256(key):
            raise CredentialsDamaged(directory, "key and certificate are not a pair")
        return cls(key, certificate, from_certificate(certificate), chain_pem, roots_pem, dict(meta))

    @classmethod
    def store(
        cls, directory: Path, key: keys.PrivateKey, chain_pem: bytes, roots_pem: bytes, meta: Mapping[str, str]
    ) -> "Credentials":
        """Replace what the directory holds; durable when it returns. What does not fit together is not written.

        Key, chain and meta are one file: a generation that lags its certificate would lock the identity at its next
        renewal. Roots go first, because new roots with the old certificate do no harm.
        """
        made = cls.of(key, chain_pem, roots_pem, meta, directory=directory)
        files.private_directory(directory)
        files.replace(directory / ROOTS_FILE, roots_pem)
        head = (_META + json.dumps(dict(meta), sort_keys=True) + "\n").encode()
        files.replace(directory / IDENTITY_FILE, head + made.key_pem + chain_pem)
        return made

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def expires(self) -> float:
        """Seconds since 1970."""
        return self.certificate.not_valid_after_utc.timestamp()

    def renew_at(self, clock: Clock, *, share: float | None = None) -> float:
        """When to renew: at half of the life that is left at `clock`'s now, give or take a tenth of it.

        Compute it once per certificate. From now and not from the start of validity, which is dated back: a
        certificate that arrives old would else be renewed without end. `share` replaces the draw.
        """
        left = max(0.0, self.expires - clock.now())
        drawn = random.uniform(0.45, 0.55) if share is None else share  # noqa: S311  # spread, not a secret
        return clock.now() + left * drawn


class Watched:
    """The credentials that new connections get. Streams that are open stay on those they began with."""

    def __init__(self, credentials: Credentials) -> None:
        self.replace(credentials)

    def replace(self, credentials: Credentials) -> None:
        """Callable from any thread. The pair was checked when `credentials` was made: gRPC only ignores a bad one."""
        self.credentials = credentials
        self.configuration = grpc.ssl_server_certificate_configuration(
            [(credentials.key_pem, credentials.chain_pem)], credentials.roots_pem
        )
