"""kill -9 of the coordinator at random moments: no job is lost or doubled, no command is executed twice."""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import audit
from coordinator.jobs import Job, State, store
from coordinator.store.engine import Database
from twinsite.api.types.v1 import commands_pb2, types_pb2

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(240)  # about 20 s each on an idle machine
KILLS = 7  # then it may finish in peace
JOBS = ("plan", "failing", "cancelled")


class Agent:
    """Executes at most once per id by its ledger; the coordinator's process comes and goes."""

    def __init__(self, ledger: Path, decision: Path) -> None:
        self._ledger, self.decision = ledger, decision
        self.connected = asyncio.Event()
        self.cancels = False  # whether the user has made up his mind
        self.executed: Counter[str] = Counter()
        self.deliveries = 0
        self.results: dict[str, commands_pb2.CommandResult] = {}
        self.jobs: dict[str, str] = {}
        self.cancelling = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._cancelled: dict[str, asyncio.Event] = {}
        self._executing: list[asyncio.Task[None]] = []
        self._group = asyncio.TaskGroup()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with self._group:
            user = self._group.create_task(self._user())
            yield server.sockets[0].getsockname()[1]
            for task in (user, *self._executing):
                task.cancel()
            server.close()
            for writer in list(self._writers):
                writer.close()
        await server.wait_closed()

    async def _user(self) -> None:
        """Asks until it is answered, as a CLI with a request id does."""
        while True:
            for name in JOBS:
                if name not in self.jobs:
                    self._send(kind="submit", name=name, request_id=f"r-{name}", decision=str(self.decision))
            if self.cancels and not self.cancelling and any("endless" in key for key in self.executed):
                self._send(kind="cancel", job=self.jobs["cancelled"])
            await asyncio.sleep(0.3)

    def _send(self, **message: Any) -> None:
        for writer in self._writers:
            writer.write(json.dumps(message).encode() + b"\n")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connected.set()
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                self._take(json.loads(line))
        self._writers.discard(writer)
        writer.close()

    def _take(self, message: dict[str, str]) -> None:
        match message["kind"]:
            case "submitted":
                assert self.jobs.setdefault(message["name"], message["job"]) == message["job"], "a job was doubled"
            case "cancelling":
                self.cancelling = True
            case "cancel":
                order = commands_pb2.CancelCommand.FromString(bytes.fromhex(message["message"]))
                self._cancelled.setdefault(order.id, asyncio.Event()).set()
            case "order":
                command = commands_pb2.HostCommand.FromString(bytes.fromhex(message["message"]))
                self.deliveries += 1
                self._send(kind="received", server=message["server"], id=command.id)
                if command.id in self.results:
                    self._answer(message["server"], command.id)
                elif not any(key.startswith(command.id + " ") for key in self.executed):
                    key = f"{command.id} {command.check_source.vm_id}"
                    self.executed[key] += 1
                    with self._ledger.open("a") as ledger:
                        ledger.write(key + "\n")
                        ledger.flush()
                        os.fsync(ledger.fileno())
                    self._executing.append(self._group.create_task(self._execute(message["server"], command)))

    async def _execute(self, server: str, command: commands_pb2.HostCommand) -> None:
        what = command.check_source.vm_id
        cancelled = self._cancelled.setdefault(command.id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if what == "endless" else 1.2):
                while not cancelled.is_set():
                    self._send(kind="progress", server=server, id=command.id)
                    await asyncio.sleep(0.2)
        ok = what not in ("endless", "fails")
        error = None if ok else types_pb2.ErrorDetail(code="NO_SPACE", message="no room")
        self.results[command.id] = commands_pb2.CommandResult(id=command.id, ok=ok, error=error)
        self._answer(server, command.id)

    def _answer(self, server: str, command_id: str) -> None:
        self._send(kind="result", server=server, message=self.results[command_id].SerializeToString().hex())


async def _coordinator(url: str, port: int, log: Path) -> asyncio.subprocess.Process:
    with log.open("ab") as out:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.fakes.jobs_program", url, str(port), cwd=ROOT, stdout=out, stderr=out
        )


async def _kill_at_random(url: str, port: int, seed: int, log: Path, agent: Agent) -> asyncio.subprocess.Process:
    """The process that is left alone after KILLS others."""
    dice = random.Random(seed)
    decided = dice.randrange(KILLS)
    for kill in range(KILLS):
        agent.connected.clear()
        process = await _coordinator(url, port, log)
        if dice.random() < 0.2:  # while it starts
            await asyncio.sleep(dice.uniform(0.3, 2.0))
        else:
            async with asyncio.timeout(30):
                await agent.connected.wait()
            await asyncio.sleep(dice.uniform(0.05, 2.5))
        if kill == decided:
            agent.decision.touch()
        agent.cancels = kill >= KILLS // 2
        assert process.returncode is None, log.read_text()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    return await _coordinator(url, port, log)


async def _all_final(database: Database, agent: Agent) -> dict[str, Job]:
    async with asyncio.timeout(60):
        while True:
            async with database.read() as connection:
                found = {job.kind: job for job in await store.newest(connection, state="", target="", limit=50)}
            if len(found) == len(JOBS) and all(job.final for job in found.values()):
                return found
            await asyncio.sleep(0.1)


async def _survives(url: str, seed: int, folder: Path) -> None:
    log = folder / "log"
    agent = Agent(folder / "ledger", folder / "decision")
    database = Database(url)
    async with agent.listening() as port:
        process = await _kill_at_random(url, port, seed, log, agent)
        try:
            jobs = await _all_final(database, agent)
        except TimeoutError:
            pytest.fail(f"jobs did not end: {log.read_text()[-4000:]}")
        finally:
            process.kill()
            await process.wait()
    async with database.read() as connection:
        assert len(await store.newest(connection, state="", target="", limit=50)) == len(JOBS), "a job was doubled"
        assert await audit.verify(connection) is None
    await database.close()
    assert agent.deliveries > len(agent.executed), "no command was running when the coordinator was killed"
    assert set(agent.executed.values()) == {1}, "a command was executed twice"
    assert {name: job.state for name, job in jobs.items()} == {
        "plan": State.SUCCEEDED,
        "failing": State.FAILED,
        "cancelled": State.CANCELLED,
    }
    assert jobs["failing"].error is not None
    assert jobs["failing"].error.code == "NO_SPACE"
    whats = sorted(key.split(" ")[1] for key in agent.executed)
    assert whats == ["clean", "clean", "clean", "endless", "fails", "good", "last", "left", "right"]
    for job in jobs.values():
        assert job.tasks[-1].state is State.SUCCEEDED, "cleaning up did not run"
        assert all((task.state is State.NOT_STARTED) == (task.name == "never") for task in job.tasks)


@pytest.mark.parametrize("seed", [1, 2])
async def test_on_sqlite(seed: int, sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(sqlite_template.read_bytes())
    await _survives(f"sqlite+aiosqlite:///{path}", seed, tmp_path)


@pytest.mark.postgres
@pytest.mark.parametrize("seed", [3])
async def test_on_postgresql(seed: int, postgres: Any, tmp_path: Path) -> None:
    with postgres.database() as url:
        await _survives(url, seed, tmp_path)
