"""What a host measures is shown at the coordinator, also what it measured while nobody was there to be told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from demo.lab import Lab, until
from hyperv_host_agent import app
from hyperv_host_agent.sample_store import SampleStore
from hyperv_host_agent.settings import Settings
from tests.system.conftest import create_vm
from twinsite.clock import SystemClock

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


class HurriedClock(SystemClock):
    """The wall's time goes on in leaps, so that a minute is soon over."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@contextlib.asynccontextmanager
async def source_host(lab: Lab, clock: HurriedClock) -> AsyncIterator[app.Agent]:
    """The host agent of site A, in the test's own process."""
    folder = lab.root / "host-a"
    settings = Settings(
        state=folder,
        join_file=lab.root / "join-a.json",
        store=folder / "store",
        vms=lab.vms("a"),
        listen=lab.address("replication-a"),
    )
    async with app.agent(settings, clock) as agent:
        yield agent


def connect(lab: Lab) -> None:
    """Everything but the host agent of site A, which joins by itself."""
    lab.start_coordinator()
    lab.cli("vault", "create", "demo")
    key = lab.create_key()
    for site in ("a", "b"):
        lab.register(site, key)
    join = ("host-key", "create", "--host", "host-a1", "-O", str(lab.root / "join-a.json"))
    lab.run("twinsite-provider", "--config", str(lab.config("provider-a")), *join)
    lab["provider-a"].start()
    lab.start_site("b")


def stats(lab: Lab) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = lab.json("vm", "stats", "web01")["items"]
    return items


def kept(folder: Path) -> int:
    """Minutes the host holds for the coordinator."""
    store = SampleStore(folder / "statistics.db")
    try:
        return len(store.oldest(1000, 10**9, but=(0, 0)))
    finally:
        store.close()


async def there(what: str, check: Callable[[], object], *, timeout: float = 60.0) -> Any:
    """Polled beside the agent that runs on this loop."""
    return await asyncio.to_thread(until, what, check, timeout=timeout, every=0.5)


async def test_no_minute_is_lost_while_the_coordinator_is_away_and_the_agent_is_restarted(
    lay_out: Callable[..., Lab],
) -> None:
    lab, clock = lay_out(), HurriedClock()
    create_vm(lab)
    await asyncio.to_thread(connect, lab)
    folder = lab.root / "host-a"
    async with source_host(lab, clock):
        await there("both sites", lambda: lab.sites_connected() or None)
        await asyncio.to_thread(lab.cli, "pair", "create", "gold-a", "gold-b", "--frequency", "2s")
        await asyncio.to_thread(lab.cli, "vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
        clock.ahead += 60
        first = await there("the first minute", lambda: [row for row in stats(lab) if row["cycles"]])
        assert first[0]["wire_bytes"] > 0
        assert first[0]["resolution_seconds"] == 60
        assert {change["disk_id"] for row in first for change in row["disks"]}

        lab["coordinator"].kill()
        clock.ahead += 60
        await there("a minute that waits", lambda: kept(folder) >= 2)
    async with source_host(lab, clock):
        before = kept(folder)
        clock.ahead += 60
        await there("another one", lambda: kept(folder) > before)
        lab["coordinator"].start()
        await there("nothing to wait any more", lambda: kept(folder) <= 1)
        rows = await there("all minutes", lambda: found if len(found := stats(lab)) >= 3 else None)
        starts = [row["start"] for row in rows]
        assert len(set(starts)) == len(starts)
        assert sum(row["cycles"] for row in rows[1:]) > 0

        def verdict() -> str:
            found: str = lab.json("vm", "explain", "web01")["verdict"]
            return found if found.startswith(("web01 ", "the age of web01")) else ""

        await there("a verdict, once the target's host is heard of again", verdict)
