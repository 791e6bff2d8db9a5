"""The vault's CA: made once, kept private, and unable to sign for anybody else."""

import multiprocessing
import stat
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from coordinator.pki import Authority, AuthorityDamaged
from coordinator.pki.certificates import Signing, leaf, pem
from twinsite import access, keys, server, tls
from twinsite.channel import dial
from twinsite.clock import MovedClock
from twinsite.credentials import Credentials, Watched
from twinsite.errors import TwinsiteError, Unreachable
from twinsite.identity import Identity, vault_of_root

DAY = 86400.0
CHECK = "/grpc.health.v1.Health/Check"


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(time.time())


@pytest.fixture
def authority(tmp_path: Path, clock: MovedClock) -> Authority:
    return Authority.open(tmp_path / "state/pki", clock)


def test_opened_again_it_is_the_same_vault(tmp_path: Path, authority: Authority, clock: MovedClock) -> None:
    again = Authority.open(tmp_path / "state/pki", clock)
    assert (again.vault, again.roots_pem, again.signer.public) == (
        authority.vault,
        authority.roots_pem,
        authority.signer.public,
    )
    assert again.secret("x") == authority.secret("x") != authority.secret("y")
    assert (tmp_path / "state/roots.pem").read_bytes() == authority.roots_pem
    assert vault_of_root(authority.root) == authority.vault


def _open(path: str, vaults: "multiprocessing.Queue[str]") -> None:
    vaults.put(Authority.open(Path(path), MovedClock(time.time())).vault)


def test_programs_that_make_it_at_the_same_moment_get_the_same_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    vaults = context.Queue()
    racers = [context.Process(target=_open, args=(str(tmp_path / "state/pki"), vaults)) for _ in range(3)]
    for racer in racers:
        racer.start()
    found = {vaults.get(timeout=60) for _ in racers}
    for racer in racers:
        racer.join()
    vaults.close()
    assert len(found) == 1
    assert [path.name for path in (tmp_path / "state").iterdir() if path.name.startswith(".")] == []


def test_everything_of_it_is_its_owners_alone_and_the_root_key_is_encrypted(
    tmp_path: Path, authority: Authority
) -> None:
    folder = tmp_path / "state/pki"
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with pytest.raises(TypeError):  # a password is needed
        serialization.load_pem_private_key((folder / "root.key.pem").read_bytes(), None)


def test_a_damaged_authority_is_named_and_not_replaced_by_a_new_one(
    tmp_path: Path, authority: Authority, clock: MovedClock
) -> None:
    folder = tmp_path / "state/pki"
    (folder / "issuing.pem").write_bytes(b"not a certificate")
    with pytest.raises(AuthorityDamaged):
        Authority.open(folder, clock)
    (folder / "signing.key.pem").unlink()
    with pytest.raises(AuthorityDamaged):
        Authority.open(folder, clock)
    assert vault_of_root(x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())) == authority.vault


def test_only_the_public_key_of_a_request_reaches_the_certificate(authority: Authority) -> None:
    key = keys.new_key()
    wish = x509.SubjectAlternativeName([x509.DNSName("coordinator.example")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .add_extension(wish, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    issued = authority.issue_server(keys.new_id("s"), request.public_bytes(serialization.Encoding.DER))
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in names} == {issued.identity.uri, issued.identity.dns}
    assert not issued.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.spki == keys.spki_sha256(key)


@pytest.mark.parametrize("kind", ["p384", "rsa"])
def test_other_keys_than_p256_are_refused(authority: Authority, kind: str) -> None:
    key = (
        ec.generate_private_key(ec.SECP384R1())
        if kind == "p384"
        else rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    with pytest.raises(keys.BadRequestForCertificate, match="P-256"):
        authority.issue_host(keys.new_id("h"), request.public_bytes(serialization.Encoding.DER))


def test_lives_are_90_days_7_days_and_12_hours_and_begin_five_minutes_ago(
    authority: Authority, clock: MovedClock
) -> None:
    csr = keys.csr(keys.new_key())
    lives = {
        "server": authority.issue_server(keys.new_id("s"), csr),
        "host": authority.issue_host(keys.new_id("h"), csr),
        "user": authority.issue_user(keys.new_id("u"), csr),
    }
    assert {kind: round((issued.expires - clock.now()) / 3600) for kind, issued in lives.items()} == {
        "server": 90 * 24,
        "host": 7 * 24,
        "user": 12,
    }
    begins = lives["host"].certificate.not_valid_before_utc.timestamp()
    assert clock.now() - 302 <= begins <= clock.now() - 300


async def _handshake(authority: Authority, chain_pem: bytes, key: keys.PrivateKey) -> str:
    """What a client with this chain gets from a server that trusts the root."""
    anyone = {CHECK: access.Rule(frozenset({"server", "user:owner"}))}
    gate = access.Gate(anyone, access.VaultMembers(authority.vault), MovedClock(time.time()))
    running = await server.serve("127.0.0.1:0", [], credentials=tls.server_credentials(authority.watched), gate=gate)
    pem_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    credentials = grpc.ssl_channel_credentials(authority.roots_pem, pem_key, chain_pem)
    try:
        async with dial(running.address, credentials, peer=authority.watched.credentials.identity.dns) as channel:
            await channel.unary_unary(CHECK)(b"")
    except TwinsiteError as error:
        return "refused by TLS" if isinstance(error, Unreachable) else error.code
    finally:
        await running.stop(0)
    return "ok"


async def test_tls_accepts_the_issuing_ca_for_its_own_vault_only(authority: Authority, clock: MovedClock) -> None:
    """The name constraints, in a real handshake: a stolen issuing key makes no member of another vault."""
    key = keys.new_key()
    own = leaf(Identity("server", keys.new_id("s"), authority.vault), key.public_key(), authority._issuing, clock.now())
    assert await _handshake(authority, own.chain_pem, key) == "ok"
    other = Identity("server", keys.new_id("s"), keys.new_id("v", 16))
    foreign = leaf(other, key.public_key(), authority._issuing, clock.now())
    assert await _handshake(authority, foreign.chain_pem, key) == "refused by TLS"

    def with_names(uri: str, dns: str) -> bytes:
        names = [x509.UniformResourceIdentifier(uri), x509.DNSName(dns)]
        certificate = (
            x509.CertificateBuilder(extensions=[])
            .subject_name(own.certificate.subject)
            .issuer_name(own.certificate.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(own.certificate.not_valid_before_utc)
            .not_valid_after(own.certificate.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(authority._issuing.key, hashes.SHA256())
        )
        return pem(certificate) + pem(authority._issuing.certificate)

    # Each of the two constraints alone.
    assert await _handshake(authority, with_names(other.uri, own.identity.dns), key) == "refused by TLS"
    assert await _handshake(authority, with_names(own.identity.uri, other.dns), key) == "refused by TLS"
    assert await _handshake(authority, with_names(own.identity.uri, own.identity.dns), key) == "ok"


async def test_a_member_cannot_sign_for_others(authority: Authority, clock: MovedClock) -> None:
    key, forged_key = keys.new_key(), keys.new_key()
    member = authority.issue_server(keys.new_id("s"), keys.csr(key))
    under = Signing(member.certificate, key)
    forged = leaf(Identity("server", keys.new_id("s"), authority.vault), forged_key.public_key(), under, clock.now())
    assert await _handshake(authority, forged.chain_pem + member.chain_pem, forged_key) == "refused by TLS"


def test_the_coordinators_certificate_and_the_issuing_ca_renew_themselves_at_half_of_their_lives(
    tmp_path: Path, authority: Authority, clock: MovedClock
) -> None:
    first = authority.watched.credentials
    issuing = authority._issuing.certificate
    assert not authority.renew_due()
    clock.advance(45 * DAY)
    assert authority.renew_due()
    second = authority.watched.credentials
    assert second.certificate.serial_number != first.certificate.serial_number
    assert authority._issuing.certificate == issuing
    clock.advance(138 * DAY)
    assert authority.renew_due()
    assert authority._issuing.certificate != issuing
    assert authority._issuing.certificate.public_key() != issuing.public_key()
    issued = authority.issue_host(keys.new_id("h"), keys.csr(keys.new_key()))
    issued.certificate.verify_directly_issued_by(authority._issuing.certificate)
    again = Authority.open(tmp_path / "state/pki", clock)
    assert again.watched.credentials.certificate == authority.watched.credentials.certificate
    assert again._issuing.certificate == authority._issuing.certificate


def test_with_the_passphrase_away_it_starts_and_goes_on_with_what_it_has(
    tmp_path: Path, authority: Authority, clock: MovedClock
) -> None:
    (tmp_path / "state/pki/root.passphrase").unlink()
    clock.advance(200 * DAY)
    again = Authority.open(tmp_path / "state/pki", clock)
    assert again._issuing.certificate == authority._issuing.certificate
    assert again.watched.credentials.expires > clock.now() + 80 * DAY
    assert again.issue_host(keys.new_id("h"), keys.csr(keys.new_key())).expires > clock.now()


def test_its_own_credentials_are_a_server_of_the_vault(authority: Authority) -> None:
    own = authority.watched.credentials
    assert isinstance(authority.watched, Watched)
    assert isinstance(own, Credentials)
    assert own.identity.dns == f"main.coordinator.{authority.vault}.twinsite"
