"""Access tokens: opaque, stored as a hash, good only together with one certificate."""

import hashlib
import hmac
import secrets

from cryptography import x509
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.access import store
from coordinator.access.model import TokenRefused
from twinsite import keys
from twinsite.identity import Identity

_PREFIX = "tst1"


async def issue(
    connection: AsyncConnection, identity: Identity, certificate: x509.Certificate, *, expires: float, now: float
) -> bytes:
    """A new token, sealed to the certificate's key: only its holder can open it."""
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    await store.add_token(
        connection,
        token_id=token_id,
        secret_sha256=_digest(secret),
        holder=identity.id,
        thumbprint=keys.thumbprint(certificate),
        expires=expires,
        now=now,
    )
    return keys.seal(f"{_PREFIX}.{token_id}.{secret}".encode(), certificate, identity.vault, identity.id)


async def check(
    connection: AsyncConnection, identity: Identity, certificate: x509.Certificate, authorization: str, *, now: float
) -> None:
    """Of the metadata entry `authorization`. Raises TokenRefused."""
    scheme, _, token = authorization.partition(" ")
    parts = token.split(".")
    if scheme != "Bearer" or len(parts) != 3 or parts[0] != _PREFIX or len(token) > 128:
        raise TokenRefused
    row = await store.get_token(connection, parts[1])
    stored = "" if row is None else row["secret_sha256"]
    if not hmac.compare_digest(stored, _digest(parts[2])) or row is None:
        raise TokenRefused
    if row["holder"] != identity.id or row["thumbprint"] != keys.thumbprint(certificate) or row["expires"] <= now:
        raise TokenRefused


def _digest(secret: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()
