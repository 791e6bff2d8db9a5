"""What a member says with the key of its certificate, for others to read later and elsewhere: files, not channels.

A TLS handshake proves who speaks now. A file is read after the certificate it was signed under may have run out, so
the chain is judged at the instant the file gives for itself, and whoever reads must know by other means what to expect
in it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from twinsite.errors import Denied, TwinsiteError
from twinsite.identity import Identity, from_certificate
from twinsite.keys import PrivateKey

_MOST: Final = 8  # certificates in a chain


class NotGenuine(Denied):
    public = "the signature of a member of this vault is missing: {error.why}"
    still_works = "nothing of it was used"
    next_step = "check that both machines belong to the same vault, and that the file was not changed on its way"

    def __init__(self, why: str) -> None:
        self.why = why


def sign(kind: str, content: bytes, key: PrivateKey) -> bytes:
    """`kind` is signed with it: what is of one kind is never taken for another."""
    return key.sign(_signed(kind, content), ec.ECDSA(hashes.SHA256()))


def verify(kind: str, content: bytes, signature: bytes, *, chain_pem: bytes, roots_pem: bytes, at: float) -> Identity:
    """Who signed this, by a certificate that one of the roots vouches for and that was valid at `at` (seconds since
    1970). Raises NotGenuine.
    """
    chain = certificates(chain_pem)
    identity = vouched(chain[0], chain[1:], roots_pem=roots_pem, at=at)
    with _reading():
        key = chain[0].public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise NotGenuine("its certificate has another kind of key")
        try:
            key.verify(signature, _signed(kind, content), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise NotGenuine("the signature is wrong") from None
    return identity


def vouched(leaf: x509.Certificate, others: Sequence[x509.Certificate], *, roots_pem: bytes, at: float) -> Identity:
    """Whom a certificate names, after following its issuers among `others` to one of the roots. Raises NotGenuine."""
    roots = certificates(roots_pem)
    with _reading():
        _follow(leaf, others, roots, at)
        return from_certificate(leaf)


def certificates(pem: bytes) -> list[x509.Certificate]:
    """At least one. Raises NotGenuine."""
    with _reading():
        found = x509.load_pem_x509_certificates(pem)
    if len(found) > _MOST:
        raise NotGenuine(f"it comes with {len(found)} certificates")
    return found


def _follow(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], roots: list[x509.Certificate], at: float
) -> None:
    present = leaf
    for _ in range(_MOST):
        if not present.not_valid_before_utc.timestamp() <= at <= present.not_valid_after_utc.timestamp():
            raise NotGenuine("a certificate of its chain was not valid then")
        if present in roots:
            break
        issuer = next((other for other in (*roots, *others) if _issued(present, other)), None)
        if issuer is None:
            raise NotGenuine("its certificate was issued by somebody else")
        present = issuer
    else:
        raise NotGenuine("its chain of certificates does not end at this vault's root")
    if present == leaf:
        raise NotGenuine("its certificate is no member's")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except NotGenuine:
        raise
    except TwinsiteError as error:
        raise NotGenuine(error.text("cause")) from error
    except Exception:  # noqa: BLE001  # ASN.1 from a stranger: the parser raises more kinds than it documents
        raise NotGenuine("its certificate cannot be read") from None


def _signed(kind: str, content: bytes) -> bytes:
    return b"twinsite " + kind.encode() + b"\0" + content
