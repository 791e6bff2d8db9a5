"""Wrong input gets a typed error with the next step, and changes nothing."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.lab import CommandFailed, Lab
from demo.process import ProgramFailed

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


@pytest.fixture
def coordinator(lay_out: Callable[..., Lab]) -> Lab:
    """A coordinator with a vault and nobody registered."""
    lab = lay_out()
    lab.start_coordinator()
    lab.cli("vault", "create", "demo")
    return lab


def register(lab: Lab, site: str, key: Path, *, name: str | None = None) -> str:
    """What a refused registration says."""
    config = str(lab.config(f"provider-{site}"))
    arguments = ("register", "--key-file", str(key), "--name", f"vmm-{site}" if name is None else name)
    try:
        lab.run("twinsite-provider", "--config", config, *arguments)
    except CommandFailed as refused:
        assert refused.status not in (0, 3)
        assert "Next:" in refused.text, refused.text
        assert "Traceback" not in refused.text
        return refused.text
    raise AssertionError("it was accepted")


def changed(key: Path, **fields: object) -> Path:
    """The key file with fields edited by hand."""
    edited = key.with_name("edited.json")
    edited.write_text(json.dumps({**json.loads(key.read_text()), **fields}))
    return edited


def test_bad_registration_keys_register_nobody(coordinator: Lab) -> None:
    lab = coordinator
    good = lab.create_key()
    register(lab, "a", changed(good, expires=1))
    register(lab, "a", changed(good, vault_name="other"))
    register(lab, "a", changed(good, secret="A" * 43))
    register(lab, "a", good.with_name("missing.json"))
    garbage = good.with_name("garbage.json")
    garbage.write_text("{")
    register(lab, "a", garbage)

    revoked = lab.root / "revoked.json"
    lab.cli("key", "create", "-O", str(revoked))
    lab.cli("key", "revoke", json.loads(revoked.read_text())["key_id"], "-y")
    register(lab, "a", revoked)
    for name in ("../etc", "a\nb", "x" * 300, ""):
        register(lab, "a", good, name=name)
    assert lab.json("server", "list")["items"] == []

    once = lab.root / "once.json"
    lab.cli("key", "create", "--uses", "1", "-O", str(once))
    lab.register("a", once)
    register(lab, "b", once)
    assert [server["name"] for server in lab.json("server", "list")["items"]] == ["vmm-a"]
    audited = [(record["action"], record["outcome"]) for record in lab.json("audit", "list")["items"]]
    assert ("key.reuse", "INCIDENT") in audited


def test_a_vault_name_that_differs_stops_the_registration(coordinator: Lab) -> None:
    key = coordinator.create_key()
    config = str(coordinator.config("provider-a"))
    words = ("register", "--key-file", str(key), "--name", "vmm-a", "--vault-name", "production")
    with pytest.raises(CommandFailed, match="demo"):
        coordinator.run("twinsite-provider", "--config", config, *words)
    assert coordinator.json("server", "list")["items"] == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("vm", "show", "nobody"), 5),
        (("vm", "protect", "nobody", "--pair", "a:b", "-y"), 5),
        (("pair", "create", "gold-a", "gold-b"), 5),
        (("pair", "create", "gold-a", "gold-b", "--frequency", "0"), 2),
        (("server", "show", "../../etc/passwd"), 5),
        (("server", "remove", "x" * 300, "--confirm", "x" * 300), 5),
        (("job", "show", "j-00000000"), 5),
        (("key", "create", "--ttl", "6d", "-O", "/nonexistent/key"), 2),
        (("vault", "create", "second"), 6),
    ],
)
def test_unknown_names_and_bad_values_have_their_exit_codes(
    request: pytest.FixtureRequest, arguments: tuple[str, ...], status: int
) -> None:
    lab = request.getfixturevalue("shared_coordinator")
    before = lab.json("job", "list")["items"]
    text = lab.cli(*arguments, status=status)
    assert "Traceback" not in text
    assert status == 2 or "Next:" in text
    assert [job["id"] for job in lab.json("job", "list")["items"]] == [job["id"] for job in before]


@pytest.fixture(scope="module")
def shared_coordinator(tmp_path_factory: pytest.TempPathFactory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.lay_out()
    lab.start_coordinator()
    lab.cli("vault", "create", "demo")
    yield lab
    lab.kill()


@pytest.mark.parametrize("name", ["coordinator", "provider-a", "host-a"])
def test_an_unknown_settings_key_stops_the_start_with_a_suggestion(lay_out: Callable[..., Lab], name: str) -> None:
    lab = lay_out()
    config = lab.config(name)
    config.write_text(config.read_text() + 'log_levle = "info"\n')
    with pytest.raises(ProgramFailed) as failed:
        lab[name].start()
    assert "log_levle" in str(failed.value)
    assert "log_level" in str(failed.value).replace("log_levle", "")
    assert "Traceback" not in str(failed.value)


def test_a_port_in_use_stops_the_start_and_is_named(lay_out: Callable[..., Lab]) -> None:
    lab = lay_out()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", lab.ports["link"]))
        taken.listen()
        with pytest.raises(ProgramFailed) as failed:
            lab["coordinator"].start()
    assert str(lab.ports["link"]) in str(failed.value)
    assert "Traceback" not in str(failed.value)
