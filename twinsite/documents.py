"""Signed documents: canonical JSON, Ed25519 over exactly those bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519

from twinsite.api.types.v1.types_pb2 import SignedDocument
from twinsite.errors import Denied
from twinsite.units import KiB

_LONGEST: Final = 256 * KiB  # of a body; a grant with 64 disks has 8 KiB


class SignatureRefused(Denied):
    public = "a signed document is not genuine: {error.why}"
    still_works = "nothing was changed"
    next_step = "check that both machines belong to the same vault; its coordinator signs a new one by itself"

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True, repr=False)
class Signer:
    """The coordinator's key for documents. It never signs anything of TLS."""

    key: ed25519.Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """Raw, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        return key_id(self.public)


def key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def canonical(body: Mapping[str, Any]) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, integers only. Raises ValueError for a float."""
    return json.dumps(_integral(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(kind: str, body: Mapping[str, Any], signer: Signer) -> SignedDocument:
    """`kind` is inside the signed bytes: a document of one kind is never taken for another."""
    content = canonical({"kind": kind, **body})
    return SignedDocument(body=content, signature=signer.key.sign(content), key_id=signer.key_id)


def verify(kind: str, document: SignedDocument, keys: Mapping[str, bytes]) -> dict[str, Any]:
    """The body, if one of `keys` (key id → raw public key) signed it as this kind. Raises SignatureRefused."""
    if len(document.body) > _LONGEST:
        raise SignatureRefused(f"it has {len(document.body)} bytes")
    public = keys.get(document.key_id)
    if public is None:
        raise SignatureRefused(f"its key {document.key_id[:32]!a} is not known here")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(document.signature, document.body)
    except InvalidSignature:
        raise SignatureRefused("the signature is wrong") from None
    try:
        body = json.loads(document.body)
    except ValueError:
        raise SignatureRefused("it is not JSON") from None
    if not isinstance(body, dict) or body.get("kind") != kind:
        raise SignatureRefused(f"it is not a {kind}")
    return body


def _integral(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError("a float has no canonical form; use integers")  # noqa: TRY004  # a value of a known type
    if isinstance(value, Mapping):
        return {str(key): _integral(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_integral(item) for item in value]
    return value
