import pytest
from cryptography import x509

from tests.fakes.pki import DAY, TestVault
from twinsite import signatures
from twinsite.clock import SystemClock
from twinsite.signatures import NotGenuine


def now() -> float:
    return SystemClock().now()


def test_what_a_member_signed_names_it_to_everybody_who_has_the_root():
    vault = TestVault()
    host = vault.host()
    signature = signatures.sign("note", b"content", host.key)
    found = signatures.verify(
        "note", b"content", signature, chain_pem=host.chain_pem, roots_pem=vault.roots_pem, at=now()
    )
    assert found == host.identity


def test_anything_else_is_not_genuine():
    vault, other = TestVault(), TestVault()
    host, stranger, short = vault.host(), other.host(), vault.host(ends=DAY)
    signature = signatures.sign("note", b"content", host.key)
    twin = TestVault(vault.vault).host(host.identity.id)

    def verify(kind: str = "note", content: bytes = b"content", signed: bytes = signature, **changes: object) -> None:
        means = {"chain_pem": host.chain_pem, "roots_pem": vault.roots_pem, "at": now()} | changes
        signatures.verify(kind, content, signed, **means)  # type: ignore[arg-type]

    verify()
    leaf = host.chain_pem[: host.chain_pem.index(b"-----END") + 26]
    for call in (
        lambda: verify(kind="other"),
        lambda: verify(content=b"contenT"),
        lambda: verify(signed=b""),
        lambda: verify(signed=signature[:-1]),
        lambda: verify(chain_pem=stranger.chain_pem),
        lambda: verify(chain_pem=twin.chain_pem, signed=signatures.sign("note", b"content", twin.key)),
        lambda: verify(chain_pem=stranger.chain_pem, signed=signatures.sign("note", b"content", stranger.key)),
        lambda: verify(chain_pem=leaf),
        lambda: verify(chain_pem=b"no certificate"),
        lambda: verify(chain_pem=vault.roots_pem),
        lambda: verify(chain_pem=host.chain_pem * 8),
        lambda: verify(at=now() + 60 * DAY),
        lambda: verify(
            chain_pem=short.chain_pem, signed=signatures.sign("note", b"content", short.key), at=now() + 2 * DAY
        ),
    ):
        with pytest.raises(NotGenuine):
            call()
    assert x509.load_pem_x509_certificate(leaf)
