import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from provider_agent import cli
from provider_agent.app import Addresses, identity_folder, provider
from provider_agent.inventory import Selection
from provider_agent.registration import Request, register
from provider_agent.settings import Settings
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.host import FakeHost
from twinsite.clock import Clock, MovedClock, SystemClock
from twinsite.credentials import Credentials

FABRIC = """
[[clouds]]
name = "gold"
networks = ["prod"]
storage_classifications = ["fast"]
  [[clouds.host_groups]]
  name = "rack"
  hosts = ["hv1", "hv2"]

[[clouds]]
name = "silver"
networks = ["dev"]

[[networks]]
name = "prod"
logical_network = "dc"
subnets = ["10.0.0.0/24"]

[[networks]]
name = "dev"

[[storage_classifications]]
name = "fast"
"""

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A command that serves sends the log to the stderr of its test, which is gone afterwards."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def until() -> Until:
    """Wait for a condition, at most 15 s; a clock that stands is moved along."""

    async def wait(condition: Callable[[], object], *, moving: MovedClock | None = None, by: float = 1.0) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, "it does not happen"
            await asyncio.sleep(0.02)
            if moving is not None:
                moving.advance(by)

    return wait


@dataclass
class Lab:
    """One provider with its settings, and the coordinator it belongs to."""

    coordinator: FakeCoordinator
    settings: Settings
    folder: Path
    config: Path

    async def register(self, *, selection: str = "all", proxy: str = "") -> Credentials:
        key_file = self.coordinator.key_file(self.folder / "vault.key")
        request = Request(key_file, "site-a", "", Selection.parse(selection), proxy)
        return await register(request, identity_folder(self.settings.state), self.settings.fabric, SystemClock())

    def serving(self, clock: Clock | None = None) -> AbstractAsyncContextManager[Addresses]:
        return provider(self.settings, clock or SystemClock())

    def invite(self, name: str) -> FakeHost:
        """A host with the join file that the command line made for it."""
        path = self.folder / f"{name}.{time.monotonic_ns()}.json"
        assert self.command("host-key", "create", "--host", name, "-O", str(path)) == 0
        return FakeHost(path)

    def command(self, *arguments: str) -> int:
        return cli.run(["--config", str(self.config), *arguments])


@pytest.fixture
def lab(tmp_path: Path, free_port: Callable[[], int]) -> Lab:
    coordinator = FakeCoordinator(free_port(), free_port())
    fabric = tmp_path / "fabric.toml"
    fabric.write_text(FABRIC)
    config = tmp_path / "provider.toml"
    ports = free_port(), free_port()
    config.write_text(
        f'state = "{tmp_path}/state"\nfabric = "{fabric}"\n'
        f'listen_join = "127.0.0.1:{ports[0]}"\nlisten = "127.0.0.1:{ports[1]}"\n'
    )
    settings = Settings(
        state=tmp_path / "state",
        fabric=fabric,
        listen_join=f"127.0.0.1:{ports[0]}",
        listen=f"127.0.0.1:{ports[1]}",
    )
    return Lab(coordinator, settings, tmp_path, config)


@pytest.fixture
async def coordinator(lab: Lab) -> AsyncIterator[FakeCoordinator]:
    async with lab.coordinator.serving() as serving:
        yield serving
