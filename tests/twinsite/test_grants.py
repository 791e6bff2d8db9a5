"""Grants: what the coordinator signed, unaltered, in time, and of this kind."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from tests.fakes.pki import TestVault
from twinsite import documents, grants
from twinsite.grants import Grant, GrantRefused

VAULT = TestVault()
GRANT = Grant(
    grant_id="g-1",
    vault=VAULT.vault,
    vm_id="7f8b",
    vm_name="web01 ä",
    disks=(("d-1", 1 << 40), ("d-2", 65537)),
    source_host="h-000000000001",
    target_host="h-000000000002",
    mode="https",
    term=3,
    not_after=1_800_000_000,
)
NOW = 1_799_999_999.0


def test_a_signed_grant_verifies_to_the_same_grant_until_five_minutes_after_its_end() -> None:
    document = grants.sign(GRANT, VAULT.signer)
    assert grants.verify(document, VAULT.signing_keys, NOW) == GRANT
    assert grants.verify(document, VAULT.signing_keys, GRANT.not_after + 299) == GRANT
    with pytest.raises(GrantRefused, match="it was good until"):
        grants.verify(document, VAULT.signing_keys, GRANT.not_after + 301)


def test_an_altered_grant_or_signature_is_refused() -> None:
    document = grants.sign(GRANT, VAULT.signer)
    other = grants.sign(dataclasses.replace(GRANT, term=4), VAULT.signer)
    for body, signature in (
        (document.body.replace(b'"term":3', b'"term":9'), document.signature),
        (document.body, document.signature[:-1] + b"\0"),
        (document.body, b""),
        (other.body, document.signature),
        (document.body + b" ", document.signature),
    ):
        forged = grants.SignedDocument(body=body, signature=signature, key_id=document.key_id)
        with pytest.raises(GrantRefused, match="signature is wrong"):
            grants.verify(forged, VAULT.signing_keys, NOW)


def test_a_strangers_key_or_another_kind_of_document_is_refused() -> None:
    stranger = documents.Signer(ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(GrantRefused, match="not known here"):
        grants.verify(grants.sign(GRANT, stranger), VAULT.signing_keys, NOW)
    plan = documents.sign("twinsite-plan/1", dataclasses.asdict(GRANT), VAULT.signer)
    with pytest.raises(GrantRefused, match="is not a twinsite-grant/1"):
        grants.verify(plan, VAULT.signing_keys, NOW)
    with pytest.raises(GrantRefused):
        grants.verify(grants.SignedDocument(), VAULT.signing_keys, NOW)
    with pytest.raises(GrantRefused):
        grants.verify(grants.SignedDocument(body=b"x" * 300_000), VAULT.signing_keys, NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"term": "3"},
        {"term": True},
        {"disks": [["d", "1"]]},
        {"disks": 5},
        {"vm_id": None},
        {"disks": [["d"]]},
    ],
)
def test_a_signed_body_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    document = documents.sign(grants.KIND, {**dataclasses.asdict(GRANT), **change}, VAULT.signer)
    with pytest.raises(GrantRefused, match="field"):
        grants.verify(document, VAULT.signing_keys, NOW)


def test_one_value_has_one_canonical_form() -> None:
    assert documents.canonical({"b": [1, "é"], "a": {"y": None, "x": True}}) == (
        '{"a":{"x":true,"y":null},"b":[1,"é"]}'.encode()
    )
    with pytest.raises(ValueError, match="float"):
        documents.canonical({"a": {"b": [1.5]}})
    assert "PrivateKey" not in repr(VAULT.signer)
