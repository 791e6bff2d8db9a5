"""The authority on disk: `state/pki`, made once, and everything it signs.

root.pem, root.key.pem          10 years; the key is encrypted and used only to sign issuing CAs
root.passphrase                 what it is encrypted with. It lies beside the key so that the coordinator can renew
                                its issuing CA by itself: the encryption protects copies that leave the file out.
                                An owner who moves it elsewhere brings it back once a year.
issuing.pem                     key and certificate, 1 year, renewed at half of it
signing.key.pem                 Ed25519, signs grants
coordinator/                    the coordinator's own server certificate
"""

import secrets
import shutil
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.pki import certificates
from coordinator.pki.certificates import Issued, Signing
from twinsite import files, keys
from twinsite.clock import Clock
from twinsite.credentials import Credentials, Watched
from twinsite.documents import Signer
from twinsite.errors import Failed
from twinsite.identity import Identity, coordinator, vault_of_root

log = structlog.get_logger()

_CHECK_EVERY: Final = 3600.0  # seconds


class AuthorityDamaged(Failed):
    public = "the vault's authority in {error.directory} cannot be used: {error.why}"
    still_works = "nothing was started; registered machines go on replicating"
    next_step = "restore {error.directory} from a backup; a new one would be another vault"

    def __init__(self, directory: Path, why: str) -> None:
        self.directory, self.why = directory, why


class Authority:
    """Signs certificates and documents of one vault."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        """Reads what `open` made."""
        self._directory, self._clock = directory, clock
        self.root = x509.load_pem_x509_certificate(self._read("root.pem"))
        self.vault = vault_of_root(self.root)
        self._issuing = self._read_issuing()
        self.signer = Signer(self._signing_key())
        self.watched = Watched(self._own())

    @classmethod
    def open(cls, directory: Path, clock: Clock) -> "Authority":
        """The authority in `directory` (`state/pki`), made if there is none. Raises AuthorityDamaged.

        Two programs that open it at the same moment get the same one. Beside the directory lies `roots.pem`, public:
        what a person hands to the CLI.
        """
        if not directory.exists():
            _make(directory, clock)
        try:
            authority = cls(directory, clock)
        except (ValueError, TypeError) as error:
            raise AuthorityDamaged(directory, str(error) or type(error).__name__) from error
        roots = directory.parent / "roots.pem"
        if not roots.exists() or roots.read_bytes() != authority.roots_pem:
            files.replace(roots, authority.roots_pem, mode=0o644)
        authority.renew_due()
        return authority

    @property
    def roots_pem(self) -> bytes:
        return certificates.pem(self.root)

    @property
    def root_spki(self) -> str:
        """SHA-256 of the root's key, hex: the pin in a registration key file."""
        return keys.spki_sha256(self.root)

    def issue_server(self, server_id: str, csr_der: bytes) -> Issued:
        """Raises BadRequestForCertificate, as all three do. 90 days."""
        return self._issue(Identity("server", server_id, self.vault), csr_der)

    def issue_host(self, host_id: str, csr_der: bytes) -> Issued:
        """7 days: how long replication outlives this coordinator."""
        return self._issue(Identity("host", host_id, self.vault), csr_der)

    def issue_user(self, user_id: str, csr_der: bytes) -> Issued:
        """12 hours: a working day's session."""
        return self._issue(Identity("user", user_id, self.vault), csr_der)

    def secret(self, label: str) -> bytes:
        """32 bytes that belong to `label` and that nobody without this directory can compute."""
        seed = self.signer.key.private_bytes_raw()
        return HKDF(hashes.SHA256(), 32, salt=b"twinsite secret v1", info=label.encode()).derive(seed)

    def renew_due(self) -> bool:
        """Renew the issuing CA and the coordinator's certificate past half of their lives; True if one was.

        New connections get the new certificate, open streams stay. A passphrase that is away stops neither start nor
        renewal of the leaf: half a year is left to bring it back.
        """
        now = self._clock.now()
        new_issuer = False
        if _half_gone(self._issuing.certificate, now):
            try:
                self._issuing = self._renewed_issuing(now)
                new_issuer = True
            except AuthorityDamaged as error:
                log.warning("issuing certificate not renewed", code=error.code, why=error.why)
        if not new_issuer and not _half_gone(self.watched.credentials.certificate, now):
            return False
        self.watched.replace(self._new_own(now))
        log.info("certificate renewed", expires=self.watched.credentials.expires)
        return True

    async def keep_current(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._clock.sleep(_CHECK_EVERY)
            try:
                self.renew_due()
            except OSError:  # half of its life is left to make room on the disk
                log.exception("certificate not renewed")

    def _issue(self, identity: Identity, csr_der: bytes) -> Issued:
        return certificates.leaf(identity, keys.public_key_of(csr_der), self._issuing, self._clock.now())

    def _own(self) -> Credentials:
        return Credentials.load(self._directory / "coordinator")

    def _new_own(self, now: float) -> Credentials:
        key = keys.new_key()
        issued = certificates.leaf(coordinator(self.vault), key.public_key(), self._issuing, now)
        return Credentials.store(self._directory / "coordinator", key, issued.chain_pem, self.roots_pem, {})

    def _renewed_issuing(self, now: float) -> Signing:
        passphrase = self._read("root.passphrase").strip()
        root_key = self._ca_key(self._read("root.key.pem"), passphrase)
        made = certificates.issuing(self.vault, Signing(self.root, root_key), now)
        files.replace(self._directory / "issuing.pem", _key_pem(made.key) + certificates.pem(made.certificate))
        return made

    def _read_issuing(self) -> Signing:
        text = self._read("issuing.pem")
        found = Signing(x509.load_pem_x509_certificate(text), self._ca_key(text))
        found.certificate.verify_directly_issued_by(self.root)
        return found

    def _read(self, name: str) -> bytes:
        try:
            return (self._directory / name).read_bytes()
        except OSError as error:
            raise AuthorityDamaged(self._directory, f"{name}: {error.strerror}") from None

    def _key(self, text: bytes, passphrase: bytes | None = None) -> PrivateKeyTypes:
        try:
            return serialization.load_pem_private_key(text, passphrase)
        except ValueError:
            raise AuthorityDamaged(self._directory, "a private key cannot be read") from None

    def _ca_key(self, text: bytes, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
        key = self._key(text, passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityDamaged(self._directory, "a private key is of another kind")
        return key

    def _signing_key(self) -> ed25519.Ed25519PrivateKey:
        key = self._key(self._read("signing.key.pem"))
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise AuthorityDamaged(self._directory, "the signing key is of another kind")
        return key


def _make(directory: Path, clock: Clock) -> None:
    """In a folder beside, renamed when it is whole: a crash leaves no half authority, a race has one winner."""
    files.private_directory(directory.parent)
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    files.private_directory(draft)
    try:
        now = clock.now()
        vault = keys.new_id("v", 16)
        root = certificates.root(vault, now)
        issuing = certificates.issuing(vault, root, now)
        passphrase = secrets.token_urlsafe(32).encode()
        files.create(draft / "root.pem", certificates.pem(root.certificate))
        files.create(draft / "root.passphrase", passphrase + b"\n")
        files.create(draft / "root.key.pem", _key_pem(root.key, passphrase))
        files.create(draft / "issuing.pem", _key_pem(issuing.key) + certificates.pem(issuing.certificate))
        files.create(draft / "signing.key.pem", _key_pem(ed25519.Ed25519PrivateKey.generate()))
        own = keys.new_key()
        issued = certificates.leaf(coordinator(vault), own.public_key(), issuing, now)
        Credentials.store(draft / "coordinator", own, issued.chain_pem, certificates.pem(root.certificate), {})
        try:
            draft.rename(directory)
        except OSError:
            if not directory.exists():  # else another program was first, and its authority is the one
                raise
        files.sync_directory(directory.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def _half_gone(certificate: x509.Certificate, now: float) -> bool:
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return now >= (begins + ends) / 2
