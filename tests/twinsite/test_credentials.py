"""A key and its certificate on disk: whole or not at all, and readable by their owner alone."""

import stat
from pathlib import Path

import pytest

from tests.fakes.pki import DAY, TestVault
from twinsite import files
from twinsite.clock import MovedClock
from twinsite.credentials import Credentials, CredentialsDamaged, NoCredentials


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    made = TestVault().server()
    Credentials.store(tmp_path / "id", made.key, made.chain_pem, made.roots_pem, {"generation": "7", "name": "ä\n"})
    found = Credentials.load(tmp_path / "id")
    assert (found.identity, found.chain_pem, found.roots_pem) == (made.identity, made.chain_pem, made.roots_pem)
    assert found.meta == {"generation": "7", "name": "ä\n"}
    assert found.key_pem == made.key_pem


def test_only_the_owner_may_read_it_also_in_a_directory_that_was_open(tmp_path: Path) -> None:
    made, folder = TestVault().server(), tmp_path / "id"
    folder.mkdir(mode=0o755)
    Credentials.store(folder, made.key, made.chain_pem, made.roots_pem, {})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_nothing_there_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(NoCredentials) as none:
        Credentials.load(tmp_path / "id")
    assert none.value.text("next_step")


def test_a_pair_that_does_not_fit_is_not_written_over_one_that_does(tmp_path: Path) -> None:
    vault = TestVault()
    made, other = vault.server(), vault.server()
    Credentials.store(tmp_path, made.key, made.chain_pem, made.roots_pem, {})
    with pytest.raises(CredentialsDamaged, match="not a pair"):
        Credentials.store(tmp_path, made.key, other.chain_pem, other.roots_pem, {})
    assert Credentials.load(tmp_path).identity == made.identity


@pytest.mark.parametrize("cut", [0, 10, 200, 600])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, cut: int) -> None:
    made = TestVault().server()
    Credentials.store(tmp_path, made.key, made.chain_pem, made.roots_pem, {})
    file = tmp_path / "identity.pem"
    damaged = file.read_bytes()[:cut]
    file.write_bytes(damaged)
    with pytest.raises(CredentialsDamaged):
        Credentials.load(tmp_path)
    assert file.read_bytes() == damaged


def test_renewal_is_due_at_half_of_what_is_left_give_or_take_a_tenth() -> None:
    credentials = TestVault().server(begins=-30 * DAY, ends=60 * DAY)
    clock = MovedClock(credentials.expires - 60 * DAY)
    assert credentials.renew_at(clock, share=0.5) == pytest.approx(clock.now() + 30 * DAY)
    drawn = [credentials.renew_at(clock) - clock.now() for _ in range(50)]
    assert 27 * DAY <= min(drawn) < max(drawn) <= 33 * DAY
    clock.advance(61 * DAY)
    assert credentials.renew_at(clock) == clock.now()


def test_creating_a_file_that_is_there_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    files.create(tmp_path / "x", b"first")
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "x", b"second")
    files.replace(tmp_path / "y", b"third")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"first", "y": b"third"}


def test_a_replacement_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/x").write_text("in the way")
    with pytest.raises(OSError):
        files.replace(tmp_path / "folder", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
