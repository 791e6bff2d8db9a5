"""Key pairs, signing requests, key hashes, and the seal that only a certificate's key opens.

P-256 everywhere on the wire: gRPC's TLS has no Ed25519 leaf.
"""

import hashlib
import secrets
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PublicKeyTypes
from cryptography.x509.oid import NameOID

from twinsite.errors import InvalidInput, Unauthenticated

PrivateKey = ec.EllipticCurvePrivateKey
_SUITE: Final = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_LONGEST_CSR: Final = 8192  # bytes; a P-256 request has about 250


class BadRequestForCertificate(InvalidInput):
    public = "the signing request is not acceptable: {error.why}"
    still_works = "no certificate was issued, nothing was used up"
    next_step = "send a PKCS#10 request with a P-256 key, signed by that key"

    def __init__(self, why: str) -> None:
        self.why = why


class SealBroken(Unauthenticated):
    public = "the sealed token does not open with this machine's key"
    cause = "it was sealed for another certificate, or changed on its way"
    next_step = "ask for a new token"


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: PrivateKey) -> bytes:
    """A DER signing request. It proves possession of the key; the names in a certificate are the CA's to write."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "twinsite")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def public_key_of(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The only thing taken from a request. Raises BadRequestForCertificate."""
    if len(csr_der) > _LONGEST_CSR:
        raise BadRequestForCertificate(f"it has {len(csr_der)} bytes")
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
        signed = request.is_signature_valid
    except Exception:  # noqa: BLE001  # ASN.1 from a stranger: the parser raises more kinds than it documents
        raise BadRequestForCertificate("it cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequestForCertificate("its key is not a P-256 key")
    if not signed:
        raise BadRequestForCertificate("its signature is wrong")
    return key


def spki_sha256(
    holder: x509.Certificate | PrivateKey | CertificatePublicKeyTypes | PublicKeyTypes,
) -> str:
    """SHA-256 of the public key, hex. A certificate can be re-encoded under another fingerprint; its key cannot."""
    key = holder.public_key() if isinstance(holder, x509.Certificate | ec.EllipticCurvePrivateKey) else holder
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def thumbprint(certificate: x509.Certificate) -> str:
    """The certificate's own SHA-256, hex (RFC 8705 x5t#S256): what a token is bound to."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def serial_of(certificate: x509.Certificate) -> str:
    """Hex; 159 bits do not fit a database's integer."""
    return f"{certificate.serial_number:x}"


def new_id(prefix: str, digits: int = 12) -> str:
    return f"{prefix}-{secrets.token_hex(digits // 2)}"


def seal(token: bytes, certificate: x509.Certificate, vault: str, member: str) -> bytes:
    """HPKE to the certificate's key. The seal names nobody as sender: send it only over an authenticated channel."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("only P-256 certificates are issued here")
    return _SUITE.encrypt(token, key, _info(certificate, vault, member))


def unseal(sealed: bytes, key: PrivateKey, certificate: x509.Certificate, vault: str, member: str) -> bytes:
    """Raises SealBroken."""
    try:
        return _SUITE.decrypt(sealed, key, _info(certificate, vault, member))
    except (InvalidTag, ValueError):
        raise SealBroken from None


def _info(certificate: x509.Certificate, vault: str, member: str) -> bytes:
    parts = (b"twinsite token-seal v1", vault.encode(), member.encode(), certificate.fingerprint(hashes.SHA256()))
    return b"\0".join(parts)
