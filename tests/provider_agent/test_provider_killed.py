"""A provider that is killed loses nothing it has acknowledged, and needs nobody to go on."""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from provider_agent.app import identity_folder
from tests.fakes import strace
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.host import FakeHost
from tests.provider_agent.conftest import Lab, Until
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.credentials import Credentials


class Process:
    """`twinsite-provider serve` as a process of its own."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        command = [sys.executable, "-m", "provider_agent.cli", "--config", str(lab.config), "serve"]
        self._log = (lab.folder / "provider.log").open("ab")
        self._process = subprocess.Popen(command, stderr=self._log)

    def ready(self) -> bool:
        assert self._process.poll() is None, (self._lab.folder / "provider.log").read_text()
        try:
            told = json.loads((self._lab.settings.state / "run" / "ready.json").read_text())
        except FileNotFoundError:
            return False
        return told["pid"] == self._process.pid

    def wait(self) -> int:
        status = self._process.wait(timeout=20)
        self._log.close()
        return status

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()


@pytest.fixture
async def start(lab: Lab, coordinator: FakeCoordinator, until: Until) -> AsyncIterator[Callable]:
    await lab.register()
    started: list[Process] = []

    @asynccontextmanager
    async def run() -> AsyncIterator[Process]:
        links = len(coordinator.links)
        process = Process(lab)
        started.append(process)
        await until(process.ready)
        await until(lambda: len(coordinator.links) > links and coordinator.links[-1].said)
        yield process
        process.stop()

    yield run
    for process in started:
        process.stop()


def order_for(host: FakeHost, number: int) -> commands_pb2.HostCommand:
    check = commands_pb2.CheckSource(vm_id="vm-1")
    return commands_pb2.HostCommand(id=f"j-1.{number}@1", host_id=host.id, check_source=check)


async def test_a_command_survives_a_kill_between_receipt_and_result_and_is_executed_once(
    lab: Lab, coordinator: FakeCoordinator, start: Callable, until: Until
):
    host = lab.invite("hv1")
    async with start() as provider:
        await host.join()
        waiting, running, done = (order_for(host, number) for number in (1, 2, 3))
        host.answer = lambda order: host.succeed(order) if order.id == done.id else None
        async with host.connected():
            coordinator.order(running)
            await until(lambda: host.executed[running.id])
            coordinator.withhold_stored = True
            coordinator.order(done)
            await until(lambda: done.id in coordinator.results)
        coordinator.order(waiting)
        await until(lambda: len(coordinator.links[-1].kind("received")) == 3)
        provider.kill()
    # The coordinator says nothing again: what was acknowledged is the provider's to remember.
    coordinator.commands.clear()
    coordinator.withhold_stored = False
    async with start():
        await until(lambda: coordinator.stored_count[done.id])
        host.answer = host.succeed
        async with host.connected():
            await host.finish(host.succeed(running))
            await until(lambda: {waiting.id, running.id} <= set(coordinator.results))
    assert all(count == 1 for count in host.executed.values())
    assert set(host.executed) == {waiting.id, running.id, done.id}


async def test_every_command_is_executed_once_whenever_the_provider_is_killed(
    lab: Lab, coordinator: FakeCoordinator, start: Callable, until: Until
):
    moments = random.Random(7)
    host = lab.invite("hv1")
    async with start():
        await host.join()
    async with asyncio.TaskGroup() as group:
        session = group.create_task(host.stay_connected())
        for round_ in range(6):
            async with start() as provider:
                for number in range(20):
                    coordinator.order(order_for(host, round_ * 20 + number))
                await asyncio.sleep(moments.uniform(0.0, 0.3))
                provider.kill()
        async with start():
            await until(lambda: len(coordinator.results) == 120)
        session.cancel()
    assert all(result.ok for result in coordinator.results.values())
    assert set(host.executed.values()) == {1}
    assert len(host.executed) == 120


@pytest.mark.parametrize("call", ["link", "rename", "unlink"])
async def test_registration_killed_at_any_step_is_finished_by_repeating_it(
    lab: Lab, coordinator: FakeCoordinator, call: str
):
    identity = identity_folder(lab.settings.state)
    key_file = coordinator.key_file(lab.folder / "vault.key")
    arguments = ["--config", str(lab.config), "register", "--key-file", str(key_file), "--name", "site-a"]
    script = lab.folder / "register.py"
    script.write_text("import sys; from provider_agent.cli import main; main()")
    names = ("registration-key.pem", "identity.pem", "roots.pem")
    for number in range(1, 10):
        inject = f"{call}:signal=SIGKILL:when={number}"
        paths = [identity / name for name in names] if call != "rename" else []
        done = await asyncio.to_thread(strace.run, script, arguments, inject=inject, paths=paths)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        repeated = await asyncio.to_thread(lab.command, *arguments[2:])
        # Killed after the identity was stored, it is registered, and says so.
        assert repeated in (0, 6)
        assert Credentials.load(identity).identity.id in coordinator.servers
        assert len(coordinator.servers) == 1
        coordinator.servers.clear()
        coordinator.keys = {id_: (secret, set()) for id_, (secret, _) in coordinator.keys.items()}
        shutil.rmtree(lab.settings.state)
    assert number > 1


async def test_assignments_survive_a_kill_and_reach_a_host_while_the_coordinator_is_away(
    lab: Lab, start: Callable, coordinator: FakeCoordinator, until: Until
):
    host = lab.invite("hv1")
    async with start() as provider:
        await host.join()
        assignment = types_pb2.Assignment(vm_id="vm-1", vm_name="web01", role=types_pb2.ROLE_SOURCE, term=1)
        told = types_pb2.Assignments(host_id=host.id, version=7, assignments=[assignment])
        coordinator.assign(told)
        kept = lab.settings.state / "assignments" / f"{host.id}.json"
        await until(kept.exists)
        provider.kill()
    coordinator.assignments.clear()
    async with start(), host.connected():
        await until(lambda: host.kind("assignments"))
        assert host.kind("assignments") == [told]
        # They are from an earlier session: the host may not conclude that it still owns the VM.
        assert not host.kind("welcome")[0].assignments_current


async def test_serve_ends_orderly_and_takes_its_run_files_away(lab: Lab, start: Callable, until: Until):
    async with start() as provider:
        await until(lambda: lab.command("status") == 0)
        pid = json.loads((lab.settings.state / "run" / "ready.json").read_text())["pid"]
        os.kill(pid, 0)
    assert provider.stop() == 0
    assert not list((lab.settings.state / "run").iterdir())
    assert lab.command("status") == 9


async def test_a_second_provider_on_the_same_state_is_refused(lab: Lab, start: Callable):
    async with start():
        second = Process(lab)
        assert second.wait() == 6
