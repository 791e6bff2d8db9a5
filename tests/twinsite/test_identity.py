"""Identities: one form, one vault, and two names in the certificate that agree."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.fakes.pki import TestVault
from twinsite import keys
from twinsite.identity import Identity, InvalidIdentity, coordinator, from_certificate, vault_of_root

VAULT = "v-0123456789abcdef"
SERVER = f"spiffe://{VAULT}.twinsite/server/s-0123456789ab"


def test_every_kind_parses_back_and_is_read_from_its_certificate() -> None:
    vault = TestVault()
    for credentials in (vault.coordinator(), vault.server(), vault.host(), vault.user()):
        identity = from_certificate(credentials.certificate)
        assert Identity.parse(identity.uri, vault.vault) == identity
    assert vault_of_root(vault.root.certificate) == vault.vault
    assert coordinator(VAULT).dns == f"main.coordinator.{VAULT}.twinsite"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        SERVER + "/x",
        SERVER + "\n",
        SERVER.replace("server", "root"),
        SERVER.replace("s-", "h-"),
        SERVER.replace("spiffe", "http"),
        SERVER.upper(),
        SERVER.replace("twinsite", "twinsite.evil"),
        SERVER.replace(VAULT, "v-x"),
        "spiffe://v-0123456789abcdef.twinsite/server/../server/s-0123456789ab",
    ],
)
def test_other_forms_are_refused(uri: str) -> None:
    with pytest.raises(InvalidIdentity):
        Identity.parse(uri)


def test_a_member_of_another_vault_is_refused_by_name() -> None:
    with pytest.raises(InvalidIdentity) as refused:
        Identity.parse(SERVER, "v-ffffffffffffffff")
    assert VAULT in refused.value.text("cause")


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.UniformResourceIdentifier(SERVER)],
        [x509.DNSName(f"s-0123456789ab.server.{VAULT}.twinsite")],
        [x509.UniformResourceIdentifier(SERVER), x509.DNSName("example.org")],
        [
            x509.UniformResourceIdentifier(SERVER),
            x509.UniformResourceIdentifier(SERVER),
            x509.DNSName(f"s-0123456789ab.server.{VAULT}.twinsite"),
        ],
        [
            x509.UniformResourceIdentifier(SERVER),
            x509.DNSName(f"s-0123456789ab.server.{VAULT}.twinsite"),
            x509.RFC822Name("a@example.org"),
        ],
    ],
)
def test_a_certificate_without_exactly_two_names_that_agree_is_nobodys(names: list[x509.GeneralName]) -> None:
    key, now = keys.new_key(), dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    with pytest.raises(InvalidIdentity):
        from_certificate(builder.sign(key, hashes.SHA256()))
