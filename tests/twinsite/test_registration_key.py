"""The registration key file, in every state a person can bring it into."""

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.pki import TestVault
from twinsite.errors import TwinsiteError
from twinsite.identity import coordinator
from twinsite.keys import spki_sha256
from twinsite.registration_key import (
    ForeignVault,
    KeyFileEdited,
    KeyFileExpired,
    KeyFileUnusable,
    RegistrationKey,
    _sum,
)


def _key(vault: TestVault) -> RegistrationKey:
    return RegistrationKey(
        vault=vault.vault,
        vault_name="demo",
        endpoint="dr.example:9443",
        server_name=coordinator(vault.vault).dns,
        ca=vault.root.certificate.public_bytes(serialization.Encoding.PEM).decode(),
        ca_spki_sha256=spki_sha256(vault.root.certificate),
        key_id="0123456789abcdef",
        secret="s" * 43,
        issued=1_000_000,
        expires=1_432_000,
        uses=2,
    )


KEY = _key(TestVault())


def test_it_is_written_for_its_owner_alone_never_over_another_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    KEY.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert RegistrationKey.read(path) == KEY
    with pytest.raises(FileExistsError):
        KEY.write(path)


def _with(**changes: object) -> bytes:
    """Edited, and the checksum made right again: as somebody would who knows how."""
    body = {**json.loads(KEY.to_json()), **changes}
    del body["sum"]
    return json.dumps({**body, "sum": _sum(body)}).encode()


def test_an_edited_file_is_refused_before_anything_is_sent() -> None:
    whole = KEY.to_json()
    for edited in (
        whole.replace(b"dr.example", b"evil.example"),
        whole.replace(b"1432000", b"9432000"),
        whole.replace(b'"uses": 2', b'"uses": 2.0'),
        whole.replace(b"demo", b"prod"),
    ):
        assert edited != whole
        with pytest.raises(KeyFileEdited):
            RegistrationKey.parse(edited)


def test_a_root_that_was_swapped_is_refused_even_with_a_right_checksum() -> None:
    other = _key(TestVault())
    for edited in (
        _with(ca=other.ca),
        _with(ca=other.ca, ca_spki_sha256=other.ca_spki_sha256),
        _with(ca="nonsense"),
        _with(server_name=other.server_name),
        _with(extra="field"),
        _with(uses="2"),
    ):
        with pytest.raises(KeyFileEdited):
            RegistrationKey.parse(edited)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"\xff\xfe", b'{"v": 2}', b"[" * 100_000, b"x" * 70_000])
def test_something_else_is_no_key_file(text: bytes) -> None:
    with pytest.raises(KeyFileUnusable) as refused:
        RegistrationKey.parse(text, "k.json")
    assert "k.json" in str(refused.value)
    assert refused.value.text("next_step")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileUnusable, match="No such file"):
        RegistrationKey.read(tmp_path / "none.json")


def test_an_expired_file_and_one_of_another_vault_are_not_sent() -> None:
    KEY.check("k.json", KEY.expires, "demo")
    KEY.check("k.json", KEY.expires)
    with pytest.raises(KeyFileExpired):
        KEY.check("k.json", KEY.expires + 1)
    with pytest.raises(ForeignVault) as foreign:
        KEY.check("k.json", KEY.issued, "production")
    assert str(foreign.value) == "k.json is for the vault demo, not production"


@given(st.integers(0, len(KEY.to_json()) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=300)
def test_no_change_of_bytes_gets_through_or_raises_anything_else(at: int, patch: bytes) -> None:
    whole = KEY.to_json()
    changed = whole[:at] + patch + whole[at + len(patch) :]
    try:
        found = RegistrationKey.parse(changed)
    except TwinsiteError:
        return
    assert found == KEY  # white space
