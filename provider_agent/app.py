"""Puts the provider agent together and runs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from provider_agent import rpc
from provider_agent.assignments import Assignments
from provider_agent.commands import Commands
from provider_agent.host_keys import HostKeys
from provider_agent.hosts import HostJudge, Hosts
from provider_agent.joining import Joining
from provider_agent.link import Link
from provider_agent.membership import Membership
from provider_agent.outbox import Outbox
from provider_agent.presence import Presences
from provider_agent.runfiles import HostLine, Problem, Report, RunFiles
from provider_agent.samples import Samples
from provider_agent.sessions import Post, Sessions
from provider_agent.settings import Settings
from provider_agent.site import Site
from provider_agent.vmm.fabric_file import FabricFile
from twinsite import files
from twinsite.access import Gate
from twinsite.clock import Clock
from twinsite.credentials import Watched
from twinsite.journal import Journal
from twinsite.server import CONTROL, ENROLLMENT, Running, serve
from twinsite.tls import server_credentials

_log = structlog.get_logger()
_DRAIN_SECONDS = 5.0


def identity_folder(state: Path) -> Path:
    return state / "identity"


def host_keys_folder(state: Path) -> Path:
    return state / "host-keys"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the provider really listens."""

    join: str
    link: str


@contextlib.asynccontextmanager
async def provider(settings: Settings, clock: Clock) -> AsyncIterator[Addresses]:
    """The provider serves while the block runs. Raises NoCredentials, PortInUse, JournalInUse, SettingsError."""
    state = files.private_directory(settings.state)
    membership = Membership(identity_folder(state), clock)
    journal = Journal.open(state / "commands.journal", clock)
    try:
        async with _running(settings, clock, membership, journal) as addresses:
            yield addresses
    finally:
        journal.close()


@contextlib.asynccontextmanager
async def _running(
    settings: Settings, clock: Clock, membership: Membership, journal: Journal
) -> AsyncIterator[Addresses]:
    state = settings.state
    hosts = Hosts(state / "hosts.json")
    outbox, post = Outbox(), Post()
    host_keys = HostKeys(host_keys_folder(state), clock)
    host_keys.sweep()
    changed = asyncio.Event()

    def on_presence() -> None:
        site.refresh()
        changed.set()

    presences = Presences(state / "presence", hosts, on_presence)
    site = Site(
        FabricFile(settings.fabric, state / "fabric-last-good.toml"),
        presences.all,
        membership.selection,
        outbox,
        clock,
        on_problem=changed.set,
    )
    await site.look()
    assignments = Assignments(state / "assignments", hosts, outbox, post, clock)
    commands = Commands(journal, hosts, outbox, post)
    samples = Samples(outbox, post)
    link = Link(
        membership,
        clock=clock,
        outbox=outbox,
        commands=commands,
        assignments=assignments,
        samples=samples,
        site=site,
        on_standing=changed.set,
    )
    addresses: list[str] = []
    joining = Joining(
        hosts,
        host_keys,
        link,
        membership.identity,
        clock=clock,
        link_address=lambda: settings.advertise or addresses[0],
    )
    sessions = Sessions(post, presences, assignments, commands, samples, outbox)
    run_files = RunFiles(state)

    async def report() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await run_files.report(_report(link, site, presences))

    gates = (
        Gate(rpc.LINK_TABLE, HostJudge(hosts, membership.identity.vault), clock),
        Gate(rpc.JOIN_TABLE, HostJudge(hosts, membership.identity.vault), clock),
    )
    listeners: list[Running] = []
    try:
        listeners.append(await _hosts_listener(settings, membership.watched, sessions, joining, gates[0]))
        addresses.append(listeners[0].address)
        listeners.append(await _join_listener(settings, membership.watched, joining, gates[1]))
        started = clock.now()
        await run_files.report(_report(link, site, presences))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(link.run()), group.create_task(site.watch()), group.create_task(report())]
            await run_files.ready({"link": listeners[0].address, "join": listeners[1].address}, started)
            _log.info("provider_serves", server=str(membership.identity), link=listeners[0].address)
            yield Addresses(join=listeners[1].address, link=listeners[0].address)
            for task in tasks:
                task.cancel()
    finally:
        # Streams do not end by themselves; a unary call that runs may finish.
        post.end_all()
        await asyncio.gather(*(listener.stop(_DRAIN_SECONDS) for listener in listeners))
        run_files.remove()
        _log.info("provider_ended")


async def _hosts_listener(
    settings: Settings, watched: Watched, sessions: Sessions, joining: Joining, gate: Gate
) -> Running:
    return await serve(
        settings.listen,
        [rpc.host_link(sessions, joining)],
        credentials=server_credentials(watched),
        gate=gate,
        limits=CONTROL,
    )


async def _join_listener(settings: Settings, watched: Watched, joining: Joining, gate: Gate) -> Running:
    return await serve(
        settings.listen_join,
        [rpc.enrollment(joining)],
        credentials=server_credentials(watched, require_client=False),
        gate=gate,
        limits=ENROLLMENT,
    )


def _report(link: Link, site: Site, presences: Presences) -> Report:
    standing = link.standing
    return Report(
        coordinator=standing.state,
        since=standing.since,
        problem=Problem.of(standing.problem) if standing.problem is not None else None,
        fabric_problem=Problem.of(site.problem) if site.problem is not None else None,
        hosts=tuple(HostLine(one.status.host_id, one.status.name, one.connected) for one in presences.all()),
    )
