"""The coordinator as an operator meets it: settings, first administrator, serving, stopping."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.settings import Settings
from twinsite import channel, tls
from twinsite import settings as loading
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.cli import session
from twinsite.cli.home import Home
from twinsite.credentials import Credentials
from twinsite.errors import Conflict, TwinsiteError, Unauthenticated, Unreachable
from twinsite.identity import coordinator

PASSWORD = "correct horse battery"


@dataclass
class Program:
    """One coordinator's settings, and the process while it serves."""

    folder: Path
    database: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "coordinator.toml"
        self.config.write_text(
            f'state = "{self.folder / "state"}"\nlisten = "127.0.0.1:0"\nlisten_enrollment = "127.0.0.1:0"\n'
            + (f'database = "{self.database}"\n' if self.database else "")
        )
        (self.folder / "pw").write_text(PASSWORD + "\n")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "coordinator.cli", "--config", str(self.config), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=60, check=False)

    def create_admin(self, name: str = "ana") -> subprocess.CompletedProcess[str]:
        return self.run("admin", "create", name, "--password-file", str(self.folder / "pw"))

    @property
    def ready(self) -> Path:
        return self.folder / "state" / "run" / "ready.json"

    @contextlib.contextmanager
    def serving(self) -> Iterator[dict[str, Any]]:
        """What ready.json says."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(self.command("serve"), stdout=log, stderr=log)
        self.process = process
        try:
            deadline = time.monotonic() + 40
            while not self.ready.exists() or json.loads(self.ready.read_text())["pid"] != process.pid:
                assert process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)
            yield json.loads(self.ready.read_text())
            if process.poll() is None:
                process.terminate()
                assert process.wait(20) == 0, (self.folder / "log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    @contextlib.asynccontextmanager
    async def logged_in(self, enrollment: str, user: str = "ana") -> AsyncIterator[session.Api]:
        home = Home(self.folder / f"home-{user}")
        await session.login(
            home,
            address=enrollment,
            roots_pem=(self.folder / "state" / "roots.pem").read_bytes(),
            user=user,
            password=PASSWORD,
            now=time.time(),
            timeout=20,
        )
        async with session.connect(home, timeout=20) as api:
            yield api


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "coordinator")


async def _vault_and_key(program: Program, enrollment: str) -> None:
    async with program.logged_in(enrollment) as api:
        with pytest.raises(TwinsiteError):
            await api.vaults.Show(admin_pb2.Empty())
        job = (await api.vaults.Create(admin_pb2.CreateVaultRequest(name="main", region="north"))).job_id
        with pytest.raises(Conflict, match="main"):
            async with session.connect(Home(program.folder / "home-ana"), timeout=20) as again:
                await again.vaults.Create(admin_pb2.CreateVaultRequest(name="other"))
        async with asyncio.timeout(20):
            seen = [shown.state async for shown in api.jobs.Watch(admin_pb2.ShowRequest(name=job))]
        assert seen[-1] == "succeeded"
        vault = await api.vaults.Show(admin_pb2.Empty())
        assert (vault.name, vault.region, vault.state) == ("main", "north", "active")
        key = await api.keys.Create(admin_pb2.CreateKeyRequest())
        file = json.loads(key.file_json)
        assert file["vault_name"] == "main"
        assert enrollment in json.dumps(file)
        assert vault.root_spki_sha256 in json.dumps(file)
        log = await api.audit.List(admin_pb2.ListAuditRequest())
        assert log.chain_intact
        assert await api.status.Show(admin_pb2.Empty())
        assert (await api.machines.List(admin_pb2.Empty())).machines == []
        assert {"user.create", "user.login", "vault.create", "key.create"} <= {each.action for each in log.records}
        assert [each.id for each in (await api.jobs.List(admin_pb2.ListJobsRequest())).jobs] == [job]
        assert (await api.sessions.WhoAmI(admin_pb2.Empty())).vault_name == "main"


async def test_the_first_administrator_logs_in_and_makes_the_vault_and_a_key(program: Program) -> None:
    made = await asyncio.to_thread(program.create_admin)
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == str(program.folder / "state" / "roots.pem")
    with program.serving() as ready:
        assert set(ready["addresses"]) == {"enrollment", "link"}
        await _vault_and_key(program, ready["addresses"]["enrollment"])
        beside = await asyncio.to_thread(program.create_admin, "ben")
        assert beside.returncode == 0, beside.stderr
        assert f"--coordinator {ready['addresses']['enrollment']} " in beside.stderr
        async with program.logged_in(ready["addresses"]["enrollment"], "ben") as api:
            assert (await api.vaults.Show(admin_pb2.Empty())).name == "main"
    assert not program.ready.exists()


@pytest.mark.postgres
async def test_it_serves_from_postgresql_just_so(tmp_path: Path, postgres: Any) -> None:
    with postgres.database(empty=True) as url:
        program = Program(tmp_path / "coordinator", url.replace("postgresql+psycopg", "postgresql"))
        made = await asyncio.to_thread(program.create_admin)
        assert made.returncode == 0, made.stderr
        with program.serving() as ready:
            await _vault_and_key(program, ready["addresses"]["enrollment"])


async def test_what_was_done_is_there_after_kill_9(program: Program) -> None:
    assert (await asyncio.to_thread(program.create_admin)).returncode == 0
    with program.serving() as ready:
        async with program.logged_in(ready["addresses"]["enrollment"]) as api:
            job = (await api.vaults.Create(admin_pb2.CreateVaultRequest(name="main"))).job_id
        os.kill(program.process.pid, signal.SIGKILL)
        program.process.wait()
    with program.serving() as ready:
        async with program.logged_in(ready["addresses"]["enrollment"]) as api:
            async with asyncio.timeout(20):
                states = [shown.state async for shown in api.jobs.Watch(admin_pb2.ShowRequest(name=job))]
            assert states[-1] == "succeeded"


async def test_a_second_coordinator_on_the_same_state_is_refused_and_harms_nothing(program: Program) -> None:
    assert (await asyncio.to_thread(program.create_admin)).returncode == 0
    with program.serving() as ready:
        second = await asyncio.to_thread(program.run, "serve")
        assert second.returncode == 6
        assert "DATABASE_IN_USE" in second.stderr
        assert str(program.process.pid) in second.stderr
        assert program.ready.exists()
        async with program.logged_in(ready["addresses"]["enrollment"]) as api:
            await api.sessions.WhoAmI(admin_pb2.Empty())


async def test_a_session_ends_with_logout(program: Program) -> None:
    assert (await asyncio.to_thread(program.create_admin)).returncode == 0
    with program.serving() as ready:
        async with program.logged_in(ready["addresses"]["enrollment"]) as api:
            await api.sessions.Logout(admin_pb2.Empty())
            with pytest.raises((Unauthenticated, Unreachable)):
                await api.sessions.WhoAmI(admin_pb2.Empty())


async def test_an_open_stream_does_not_hold_up_stopping(program: Program) -> None:
    assert (await asyncio.to_thread(program.create_admin)).returncode == 0
    with program.serving() as ready:
        async with program.logged_in(ready["addresses"]["enrollment"]):
            credentials = Credentials.load(program.folder / "home-ana" / "identity")
        peer = coordinator(credentials.identity.vault).dns
        async with channel.dial(ready["addresses"]["link"], tls.channel_credentials(credentials), peer=peer) as dialled:
            watch = health_pb2_grpc.HealthStub(dialled).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            begun = time.monotonic()
            program.process.terminate()
            assert await asyncio.to_thread(program.process.wait, 20) == 0
            assert time.monotonic() - begun < 8


def test_a_port_in_use_is_named_and_nothing_is_left_behind(program: Program) -> None:
    program.create_admin()
    with program.serving() as ready:
        taken = ready["addresses"]["link"]
        other = Program(program.folder.parent / "other")
        other.config.write_text(other.config.read_text().replace('listen = "127.0.0.1:0"', f'listen = "{taken}"'))
        refused = other.run("serve")
        assert refused.returncode == 6
        assert "PORT_IN_USE" in refused.stderr
        assert taken in refused.stderr
        assert not other.ready.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('lisen = "127.0.0.1:1"', "did you mean listen"),
        ('listen = "nowhere"', "HOST:PORT"),
        ('database = "mysql://x"', "postgresql://"),
        ("listen = 5", "must be str"),
    ],
)
def test_wrong_settings_stop_the_start_with_what_to_do(program: Program, line: str, words: str) -> None:
    kept = [
        each for each in program.config.read_text().splitlines() if not each.startswith(line.split("=", maxsplit=1)[0])
    ]
    program.config.write_text("\n".join([*kept, line]) + "\n")
    refused = program.run("config", "check")
    assert refused.returncode == 2
    assert words in refused.stderr
    assert str(program.config) in refused.stderr


def test_wrong_accounts_are_refused(program: Program) -> None:
    assert program.create_admin().returncode == 0
    again = program.create_admin()
    assert (again.returncode, "NAME_TAKEN" in again.stderr) == (6, True)
    (program.folder / "pw").write_text("short")
    assert "PASSWORD_TOO_SHORT" in program.create_admin("ben").stderr
    missing = program.run("admin", "create", "ben", "--password-file", str(program.folder / "nothing"))
    assert (missing.returncode, "PASSWORD_FILE_UNUSABLE" in missing.stderr) == (2, True)
    assert program.run("admin", "create", "../x", "--password-file", str(program.folder / "pw")).returncode == 2


def test_the_shipped_settings_file_shows_every_setting_at_its_default() -> None:
    shipped = Path(__file__).parents[2] / "deploy" / "config" / "coordinator.toml"
    assert loading.load(Settings, shipped, program="coordinator", environment={}) == Settings()
    lines = [line.removeprefix("# ") for line in shipped.read_text().splitlines() if line.startswith("# ")]
    shown = tomllib.loads("\n".join(line for line in lines if " = " in line and line.split(" = ")[0].isidentifier()))
    assert {key: Path(value) if key == "state" else value for key, value in shown.items()} == {
        name: getattr(Settings(), name) for name in Settings.__dataclass_fields__
    }


def test_a_database_that_is_away_is_said_without_a_traceback_or_its_password(tmp_path: Path):
    program = Program(tmp_path, "postgresql://twinsite:pa55word@127.0.0.1:1/vault")
    for ended in (program.create_admin(), program.run("serve")):
        assert ended.returncode == 9
        assert "127.0.0.1:1/vault cannot be used" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert "pa55word" not in ended.stderr
    assert "pa55word" not in repr(loading.load(Settings, program.config, program="coordinator", environment={}))
