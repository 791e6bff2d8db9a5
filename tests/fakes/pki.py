"""A vault's CA for tests: any identity in a line; `TestVault().server()` is what a provider holds."""

import datetime as dt
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from twinsite import identity as identities
from twinsite import keys
from twinsite.credentials import Credentials
from twinsite.documents import Signer
from twinsite.identity import Identity

_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_USES = {
    "coordinator": (ExtendedKeyUsageOID.SERVER_AUTH,),
    "server": _BOTH,
    "host": _BOTH,
    "user": (ExtendedKeyUsageOID.CLIENT_AUTH,),
}
DAY = 86400.0


def new_id(prefix: str, digits: int = 12) -> str:
    return f"{prefix}-{secrets.token_hex(digits // 2)}"


@dataclass
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class TestVault:
    """Root → issuing CA → leaf, as the coordinator makes them. TLS reads the machine's clock, so dates begin there."""

    __test__ = False  # not a test class, whatever its name

    def __init__(self, vault: str | None = None) -> None:
        self.vault = vault or new_id("v", 16)
        self.root = self._authority(None, "root")
        self.issuing = self._authority(self.root, "issuing")
        self.signer = Signer(ed25519.Ed25519PrivateKey.generate())

    @property
    def roots_pem(self) -> bytes:
        return _pem(self.root.certificate)

    @property
    def signing_keys(self) -> dict[str, bytes]:
        """What grants are verified with."""
        return {self.signer.key_id: self.signer.public}

    def coordinator(self, **kwargs: Any) -> Credentials:
        return self.issue(identities.coordinator(self.vault), **kwargs)

    def server(self, server_id: str | None = None, **kwargs: Any) -> Credentials:
        return self.issue(Identity("server", server_id or new_id("s"), self.vault), **kwargs)

    def host(self, host_id: str | None = None, **kwargs: Any) -> Credentials:
        return self.issue(Identity("host", host_id or new_id("h"), self.vault), **kwargs)

    def user(self, user_id: str | None = None, **kwargs: Any) -> Credentials:
        return self.issue(Identity("user", user_id or new_id("u"), self.vault), **kwargs)

    def issue(
        self,
        identity: Identity,
        *,
        begins: float = -300.0,
        ends: float = 30 * DAY,
        key: keys.PrivateKey | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> Credentials:
        """`begins` and `ends` in seconds from now."""
        key = key or keys.new_key()
        chain = self.chain_for(identity, key.public_key(), begins=begins, ends=ends)
        return Credentials.of(key, chain, self.roots_pem, meta or {})

    def chain_for(
        self,
        identity: Identity,
        public_key: ec.EllipticCurvePublicKey,
        *,
        begins: float = -300.0,
        ends: float = 30 * DAY,
    ) -> bytes:
        """A certificate and the issuing CA's, PEM: for a key pair whose private half is elsewhere."""
        now = dt.datetime.now(dt.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(identity.id, self.vault))
            .issuer_name(self.issuing.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(seconds=begins))
            .not_valid_after(now + dt.timedelta(seconds=ends))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USES[identity.kind]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.issuing.key, hashes.SHA256())
        )
        return _pem(certificate) + _pem(self.issuing.certificate)

    def _authority(self, parent: "_Authority | None", name: str) -> _Authority:
        key = keys.new_key()
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(f"{name} {self.vault}", self.vault))
            .issuer_name(parent.certificate.subject if parent else _name(f"{name} {self.vault}", self.vault))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=60))
            .not_valid_after(now + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0 if parent else 1), critical=True)
        )
        if parent:
            domain = identities.trust_domain(self.vault)
            permitted: list[x509.GeneralName] = [x509.DNSName(domain), x509.UniformResourceIdentifier(domain)]
            builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
        return _Authority(key, builder.sign(parent.key if parent else key, hashes.SHA256()))


def _name(common: str, vault: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, vault), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
