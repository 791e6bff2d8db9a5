"""The profiles of the three certificate kinds. The CA writes every field; a request gives its public key, no more."""

import datetime as dt
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from twinsite import keys
from twinsite.access import SKEW
from twinsite.identity import Identity, from_certificate, trust_domain

DAY: Final = 86400.0
ROOT_LIFE: Final = 3650 * DAY
ISSUING_LIFE: Final = 365 * DAY
LIFE: Final = {"coordinator": 90 * DAY, "server": 90 * DAY, "host": 7 * DAY, "user": 12 * 3600.0}  # seconds

_BOTH: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USES: Final = {
    "coordinator": (ExtendedKeyUsageOID.SERVER_AUTH,),
    "server": _BOTH,  # a client of the coordinator, a server to its hosts
    "host": _BOTH,  # source today, target tomorrow
    "user": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}


@dataclass(frozen=True, slots=True)
class Signing:
    """A CA's certificate and key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf and the chain under the root, leaf first."""

    certificate: x509.Certificate
    chain_pem: bytes

    @classmethod
    def of(cls, chain_pem: bytes) -> "Issued":
        """From a stored chain."""
        return cls(x509.load_pem_x509_certificates(chain_pem)[0], chain_pem)

    @property
    def identity(self) -> Identity:
        return from_certificate(self.certificate)

    @property
    def serial(self) -> str:
        return keys.serial_of(self.certificate)

    @property
    def spki(self) -> str:
        return keys.spki_sha256(self.certificate)

    @property
    def expires(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()


def root(vault: str, now: float) -> Signing:
    key = keys.new_key()
    name = _name(vault, "Twinsite root")
    builder = _builder(name, name, key.public_key(), now, ROOT_LIFE)
    return Signing(_authority(builder, 1).sign(key, hashes.SHA256()), key)


def issuing(vault: str, under: Signing, now: float) -> Signing:
    """Can issue names of its vault and no others, whoever gets hold of its key."""
    key = keys.new_key()
    builder = _builder(_name(vault, "Twinsite issuing"), under.certificate.subject, key.public_key(), now, ISSUING_LIFE)
    # A URI constraint is a host, without scheme or path (RFC 5280, 4.2.1.10); no dot in front: that host only.
    permitted: list[x509.GeneralName] = [
        x509.DNSName(trust_domain(vault)),
        x509.UniformResourceIdentifier(trust_domain(vault)),
    ]
    builder = (
        _authority(builder, 0)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .add_extension(_issuer_id(under), critical=False)
    )
    return Signing(builder.sign(under.key, hashes.SHA256()), key)


def leaf(identity: Identity, key: ec.EllipticCurvePublicKey, under: Signing, now: float) -> Issued:
    builder = _builder(_name(identity.vault, identity.id), under.certificate.subject, key, now, LIFE[identity.kind])
    # Without alternative names gRPC would fall back to the common name.
    names = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns)]
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(agreement=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_USES[identity.kind]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issuer_id(under), critical=False)
        .sign(under.key, hashes.SHA256())
    )
    return Issued(certificate, pem(certificate) + pem(under.certificate))


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, life: float
) -> x509.CertificateBuilder:
    begins = dt.datetime.fromtimestamp(int(now - SKEW), dt.UTC)
    ends = dt.datetime.fromtimestamp(int(now + life), dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True).add_extension(
        _key_usage(signs_certificates=True), critical=True
    )


def _key_usage(*, agreement: bool = False, signs_certificates: bool = False) -> x509.KeyUsage:
    """Leaves sign handshakes, and agree on keys: that is what sealing a token to them uses."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=agreement,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_id(under: Signing) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(under.key.public_key())


def _name(vault: str, common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, vault), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )
