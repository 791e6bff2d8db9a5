"""The command line, as an administrator meets it."""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from provider_agent.settings import PROGRAM, Settings
from tests.fakes.coordinator import FakeCoordinator
from tests.provider_agent.conftest import Lab, Until
from twinsite import settings
from twinsite.settings import SettingsError

ROOT = Path(__file__).parent.parent.parent


async def register(lab: Lab, *more: str) -> int:
    """From another thread: the command has a loop of its own, and the coordinator is in ours."""
    key_file = lab.coordinator.key_file(lab.folder / "vault.key")
    arguments = ("register", "--key-file", str(key_file), "--name", "site-a", *more)
    return await asyncio.to_thread(lab.command, *arguments)


async def test_register_shows_the_vault_for_verification_and_what_comes_next(
    lab: Lab, coordinator: FakeCoordinator, capsys: pytest.CaptureFixture[str]
):
    assert await register(lab, "--vault-name", "main", "--sync-clouds", "gold", "--sync-clouds", "silver") == 0
    said = capsys.readouterr()
    assert f"main ({coordinator.vault.vault})" in said.out
    assert "gold,silver" in said.out
    assert "twinsite-provider serve" in said.err
    assert await register(lab) == 6
    assert "registered already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--vault-name", "other"), 6, "is for the vault main, not other"),
        (("--sync-clouds", "all", "--sync-clouds", "gold"), 2, "does not go with other clouds"),
        (("--sync-clouds", "bronze"), 5, "no cloud named bronze"),
        (("--proxy", "nonsense"), 2, "is not the address of a proxy"),
        (("--name", "../x"), 2, "is not a name for a server"),
    ],
)
async def test_register_refuses_wrong_input_with_its_exit_code(
    lab: Lab,
    coordinator: FakeCoordinator,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
):
    assert await register(lab, *arguments) == code
    assert said in capsys.readouterr().err
    assert not coordinator.registrations


async def test_register_without_a_coordinator_says_that_it_does_not_answer(
    lab: Lab, capsys: pytest.CaptureFixture[str]
):
    assert await register(lab) == 9
    assert "does not answer" in capsys.readouterr().err


def test_what_needs_a_registration_says_so(lab: Lab, capsys: pytest.CaptureFixture[str]):
    for arguments in (("status",), ("serve",), ("host-key", "create", "--host", "hv1", "-O", str(lab.folder / "x"))):
        assert lab.command(*arguments) == 6
        assert "is not registered" in capsys.readouterr().err
    assert not (lab.folder / "x").exists()


async def test_status_tells_the_whole_story(
    lab: Lab, coordinator: FakeCoordinator, until: Until, capsys: pytest.CaptureFixture[str]
):
    await lab.register()
    assert lab.command("status") == 9
    assert "not running (start it: twinsite-provider serve)" in capsys.readouterr().out
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            await until(lambda: lab.command("status") == 0)
        await until(lambda: lab.command("status") == 3)
        capsys.readouterr()
        assert lab.command("status") == 3
        said = capsys.readouterr().out
        for line in (r"Server: +site-a", r"Vault: +main", r"expires in 89d", r"connected for", r"hv1 \(h-.*\) away"):
            assert re.search(line, said), line
        assert lab.command("status", "-o", "json") == 3
        told = json.loads(capsys.readouterr().out)
        assert told["running"]
        assert told["report"]["hosts"] == [{"id": host.id, "name": "hv1", "connected": False}]
    assert lab.command("status") == 9


async def test_an_unknown_setting_stops_the_start_with_a_suggestion(lab: Lab, capsys: pytest.CaptureFixture[str]):
    lab.config.write_text(lab.config.read_text() + 'advertize = "x:1"\n')
    assert lab.command("serve") == 2
    said = capsys.readouterr().err
    assert "unknown key advertize" in said
    assert "did you mean advertise?" in said


@pytest.mark.parametrize("wrong", ['listen = "9446"', 'advertise = "host:port"', 'log_level = "loud"', "log_json = 1"])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: str):
    path = tmp_path / "provider.toml"
    path.write_text(wrong)
    with pytest.raises(SettingsError):
        settings.load(Settings, path, program=PROGRAM, environment={})


def test_the_shipped_settings_show_every_option_at_its_default(tmp_path: Path):
    shipped = (ROOT / "deploy/config/provider.toml").read_text()
    assert settings.load(Settings, ROOT / "deploy/config/provider.toml", program=PROGRAM, environment={}) == Settings()
    path = tmp_path / "provider.toml"
    path.write_text(re.sub(r"(?m)^# (\w+ = )", r"\1", shipped))
    assert settings.load(Settings, path, program=PROGRAM, environment={}) == Settings()
    shown = set(re.findall(r"(?m)^# (\w+) = ", shipped))
    assert shown == {field.name for field in fields(Settings)}


def test_help_does_not_wait_for_what_it_does_not_need():
    listing = "import sys, provider_agent.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout.split()
    assert "click" in loaded
    assert not {"grpc", "google.protobuf", "cryptography"} & set(loaded)


async def test_a_port_in_use_stops_the_start_with_its_address(lab: Lab, coordinator: FakeCoordinator):
    await lab.register()
    host, _, port = lab.settings.listen_join.rpartition(":")
    server = await asyncio.start_server(lambda _, writer: writer.close(), host, int(port))
    async with server:
        with pytest.raises(Exception, match=port) as caught:
            async with lab.serving():
                pass
        assert caught.value.code == "PORT_IN_USE"
    async with lab.serving():  # what was opened before it failed was closed again
        pass
