"""Databases to test on: SQLite always, PostgreSQL where it is installed or `TWINSITE_TEST_PG` names one."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from coordinator.jobs import Jobs
from coordinator.store.engine import Database
from coordinator.store.migrations import tables
from demo.ports import free_port
from twinsite.clock import MovedClock

_INSTALL = "PostgreSQL is not installed: apt-get install postgresql"


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    binaries = _binaries()
    if binaries is None:
        if os.environ.get("TWINSITE_NO_SKIPS") == "1":
            pytest.fail(_INSTALL)
        pytest.skip(_INSTALL)
    port = free_port()
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            [*_as_postgres(), *command], cwd=folder, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert done.returncode == 0, done.stderr.decode()

    run(f"{binaries}/initdb", "-A", "trust", "-U", "postgres", "-D", str(data), "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -c unix_socket_directories={folder}"
    run(f"{binaries}/pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        run(f"{binaries}/pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


@dataclass
class Postgres:
    """One server for the session, one database per test from a prepared template."""

    admin: str
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self, name: str) -> str:
        parsed = make_url(self.admin).set(drivername="postgresql+psycopg", database=name)
        return parsed.render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextlib.contextmanager
    def database(self, *, empty: bool = False) -> Iterator[str]:
        name = f"twinsite_test_{os.getpid()}_{next(self._numbers)}"
        template = "template1" if empty else f"twinsite_base_{os.getpid()}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _prepared(url: str) -> None:
    database = Database(url)
    try:
        async with (
            database.write() as connection
        ):  # as declared; test_migrations.py proves that migrating gives the same
            await connection.run_sync(tables.metadata.create_all)
        engine = Jobs(database, MovedClock())  # its tables and its queue, or each test waits for them
        await engine.start()
        await engine.stop()
    finally:
        await database.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with contextlib.ExitStack() as stack:
        given = os.environ.get("TWINSITE_TEST_PG", "")
        # Not below pytest's folder: that is root's alone, and PostgreSQL runs as another user.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinsite-postgres-")))
        server = Postgres(given or stack.enter_context(_server(folder)))
        base = f"twinsite_base_{os.getpid()}"
        server.execute(f"CREATE DATABASE {base}")
        stack.callback(server.execute, f"DROP DATABASE {base} WITH (FORCE)")
        asyncio.run(_prepared(server.url(base)))
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "base.db"
    asyncio.run(_prepared(f"sqlite+aiosqlite:///{path}"))
    return path


BACKENDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BACKENDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A prepared database nobody has open."""
    if request.param == "sqlite":
        path = tmp_path / "coordinator.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
async def jobs(database: Database, clock: MovedClock) -> AsyncIterator[Jobs]:
    """Not started: register the handlers, then `await jobs.start()`; it is stopped at the end."""
    made = Jobs(database, clock)
    yield made
    await made.stop()


@pytest.fixture
def eventually() -> Callable[..., object]:
    """`await eventually(check)`: the first true value of an async check, asked until a deadline."""

    async def ask(check: Callable[[], object], *, seconds: float = 20.0) -> object:
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            value = check()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return value
            assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
            await asyncio.sleep(0.02)

    return ask
