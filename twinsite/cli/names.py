"""Names for the shell's completion, asked of the coordinator; silent when it cannot be asked in time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from twinsite.cli.home import Home

if TYPE_CHECKING:
    from twinsite.cli.session import Api

_SECONDS: Final = 2.0  # a person waits for a key press
Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _completed(ask: "Callable[[Api], Awaitable[Iterable[str]]]") -> Complete:
    def complete(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
        from twinsite.cli import session
        from twinsite.errors import TwinsiteError

        home = ctx.find_root().params.get("home") or Path(click.get_app_dir("twinsite", force_posix=False))

        async def names() -> list[str]:
            async with asyncio.timeout(_SECONDS), session.connect(Home(home), timeout=_SECONDS) as api:
                return sorted({name for name in await ask(api) if name.startswith(begun)})

        try:
            return asyncio.run(names())
        except (TwinsiteError, TimeoutError, OSError):
            return []

    return complete


def _empty() -> Any:
    from twinsite.api.coordinator.v1 import admin_pb2

    return admin_pb2.Empty()


async def _vms(api: "Api") -> Iterable[str]:
    return [one.name for one in (await api.machines.List(_empty())).machines]


async def _pairs(api: "Api") -> Iterable[str]:
    return [one.name for one in (await api.pairs.List(_empty())).pairs]


async def _hosts(api: "Api") -> Iterable[str]:
    return [one.name for one in (await api.hosts.List(_empty())).hosts]


async def _servers(api: "Api") -> Iterable[str]:
    return [one.name for one in (await api.servers.List(_empty())).servers]


async def _clouds(api: "Api") -> Iterable[str]:
    return [one.name for one in (await api.clouds.List(_empty())).clouds]


async def _keys(api: "Api") -> Iterable[str]:
    return [one.id for one in (await api.keys.List(_empty())).keys]


async def _jobs(api: "Api") -> Iterable[str]:
    from twinsite.api.coordinator.v1 import admin_pb2

    return [one.id for one in (await api.jobs.List(admin_pb2.ListJobsRequest(limit=200))).jobs]


vms, pairs, hosts = _completed(_vms), _completed(_pairs), _completed(_hosts)
servers, clouds, keys, jobs = _completed(_servers), _completed(_clouds), _completed(_keys), _completed(_jobs)
