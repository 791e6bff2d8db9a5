"""The sessions providers keep with us: one per server, level-triggered, and not ended by junk."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final, Protocol

import structlog

from coordinator.inventory.model import LARGEST, POINTS, STATUSES, Changes, HelloMissing, Report, SessionReplaced, shown
from coordinator.inventory.service import Inventory
from coordinator.jobs import Jobs
from twinsite import __version__
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError

log = structlog.get_logger()
HELLO_SECONDS: Final = 10
_ALIVE_SECONDS: Final = 15.0
_WAITING: Final = 256  # messages for a provider that reads slowly; then we produce no more
_TEXT: Final = 500  # characters of a sentence
_LONG_TEXT: Final = 16_000  # of a note: a path for each of 64 disks

Write = Callable[[link_pb2.ToProvider], Awaitable[None]]
Outbox = asyncio.Queue[link_pb2.ToProvider]


class Replication(Protocol):
    """What a link needs of protection."""

    async def reported(self, server_id: str, statuses: list[types_pb2.ReplicationStatus]) -> None: ...

    async def points(self, server_id: str, points: link_pb2.Points) -> bool:
        """False: they are changes of what is not known here, all of them have to be told."""
        ...

    async def inventory_changed(self, changes: Changes) -> None: ...

    async def assignments(self, server_id: str, held: Mapping[str, int]) -> list[types_pb2.Assignments]:
        """Of every host of the server. `held`: versions the provider has, by host id; ours become greater."""
        ...

    def wakes(self) -> AsyncIterator[None]:
        """Once at the start, then whenever `assignments` may have changed; never ends."""
        ...


class Measurements(Protocol):
    """Where what hosts measured goes."""

    async def take(self, server_id: str, batch: link_pb2.HostSamples) -> None:
        """Durable when it returns; repeatable."""
        ...


class _Session:
    def __init__(self, server_id: str) -> None:
        self.server_id = server_id
        self.replaced = asyncio.Event()
        self.outbox: Outbox = asyncio.Queue(_WAITING)
        self.held: dict[str, int] = {}  # host id → version of assignments the provider has

    async def until_replaced(self) -> None:
        await self.replaced.wait()
        raise SessionReplaced


class Sessions:
    """`vault_name` tells the name providers show; Jobs gives and takes the commands."""

    def __init__(
        self,
        inventory: Inventory,
        replication: Replication,
        jobs: Jobs,
        measurements: Measurements,
        clock: Clock,
        vault_name: Callable[[], Awaitable[str]],
    ) -> None:
        self._inventory, self._replication, self._jobs = inventory, replication, jobs
        self._measurements = measurements
        self._clock, self._vault_name = clock, vault_name
        self._sessions: dict[str, _Session] = {}

    async def serve(self, server_id: str, messages: AsyncIterator[link_pb2.FromProvider], write: Write) -> None:
        """One session, until the provider ends it. Raises SessionReplaced, HelloMissing."""
        hello = await self._hello(messages)
        async with self._session(server_id, hello) as session, asyncio.TaskGroup() as group:
            duties = [
                group.create_task(session.until_replaced()),
                group.create_task(self._write(session, write)),
                group.create_task(self._commands(session)),
                group.create_task(self._assignments(session)),
                group.create_task(self._alive(session)),
            ]
            async for message in messages:
                await self._take(session, message)
            for duty in duties:
                duty.cancel()

    async def _hello(self, messages: AsyncIterator[link_pb2.FromProvider]) -> link_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                first = await anext(messages, None)
        except TimeoutError:
            raise HelloMissing from None
        if first is None or first.WhichOneof("message") != "hello":
            raise HelloMissing
        return first.hello

    @contextlib.asynccontextmanager
    async def _session(self, server_id: str, hello: link_pb2.Hello) -> AsyncIterator[_Session]:
        session = _Session(server_id)
        before = self._sessions.get(server_id)
        self._sessions[server_id] = session
        if before is not None:
            before.replaced.set()
        try:
            session.held.update(
                # Ours become greater and go on rising: what a provider makes up must leave room for that.
                {host: min(version, LARGEST // 2) for host, version in hello.assignment_versions.items()}
            )
            synced = await self._inventory.connected(server_id, shown(hello.agent_version))
            welcome = link_pb2.Welcome(
                vault_name=await self._vault_name(),
                coordinator_unix=int(self._clock.now()),
                coordinator_version=__version__,
                synced_clouds=synced,
            )
            await session.outbox.put(link_pb2.ToProvider(welcome=welcome))
            log.info("provider connected", server=server_id, version=shown(hello.agent_version))
            yield session
        finally:
            if self._sessions.get(server_id) is session:
                del self._sessions[server_id]
                await self._inventory.disconnected(server_id)
                self._jobs.wake()
                log.info("provider disconnected", server=server_id)

    # ---- down ---------------------------------------------------------------------------------------------------

    async def _write(self, session: _Session, write: Write) -> None:
        """The only writer of the stream: gRPC does not allow two."""
        while True:
            await write(await session.outbox.get())

    async def _commands(self, session: _Session) -> None:
        """Each command, and each cancellation, once per session; the provider knows the ones it has had before."""
        sent: set[tuple[str, bool]] = set()
        wakes = self._jobs.command_wakes(session.server_id)
        async for _ in wakes:
            for order in await self._jobs.commands_for(session.server_id):
                cancel = isinstance(order, commands_pb2.CancelCommand)
                if (order.id, cancel) in sent:
                    continue
                sent.add((order.id, cancel))
                down = (
                    link_pb2.ToProvider(cancel=order)
                    if isinstance(order, commands_pb2.CancelCommand)
                    else link_pb2.ToProvider(command=order)
                )
                await session.outbox.put(down)

    async def _assignments(self, session: _Session) -> None:
        """Every host's on connect, whatever the provider holds; after that, what is newer than what was sent."""
        sent: dict[str, int] = {}
        async for _ in self._replication.wakes():
            for assignments in await self._replication.assignments(session.server_id, session.held):
                if sent.get(assignments.host_id) == assignments.version:
                    continue
                sent[assignments.host_id] = assignments.version
                await session.outbox.put(link_pb2.ToProvider(assignments=assignments))

    async def _alive(self, session: _Session) -> None:
        """Dead peers are noticed by the transport; this keeps the instant of "last seen" near the truth."""
        while True:
            await self._clock.sleep(_ALIVE_SECONDS)
            await self._inventory.heard(session.server_id)

    # ---- up -----------------------------------------------------------------------------------------------------

    async def _take(self, session: _Session, message: link_pb2.FromProvider) -> None:
        """One message; what is wrong with it is logged and does not end the session."""
        try:
            await self._handle(session, message)
        except TwinsiteError as error:
            kind = message.WhichOneof("message")
            log.warning("message refused", server=session.server_id, kind=kind, code=error.code, problem=str(error))

    async def _handle(self, session: _Session, message: link_pb2.FromProvider) -> None:
        server_id = session.server_id
        match message.WhichOneof("message"):
            case "inventory":
                changes = await self._inventory.apply(server_id, Report.from_proto(message.inventory))
                if changes:
                    await self._replication.inventory_changed(changes)
                self._jobs.wake()
            case "statistics":
                statuses = list(message.statistics.statuses[:STATUSES])
                for status in statuses:
                    _shorten(status.reason)
                    status.late, status.note = status.late[:_TEXT], status.note[:_TEXT]
                await self._replication.reported(server_id, statuses)
                self._jobs.wake()
            case "points":
                del message.points.points[POINTS:]
                if not await self._replication.points(server_id, message.points):
                    asked = link_pb2.PointsAsked(host_id=message.points.host_id, vm_id=message.points.vm_id)
                    await session.outbox.put(link_pb2.ToProvider(points_asked=asked))
                self._jobs.wake()
            case "result":
                _shorten(message.result.error)
                message.result.note = message.result.note[:_LONG_TEXT]
                if message.result.HasField("machine"):
                    message.result.machine.name = message.result.machine.name[:_TEXT]
                await self._jobs.command_result(server_id, message.result)
                stored = link_pb2.ResultStored(id=message.result.id)
                await session.outbox.put(link_pb2.ToProvider(result_stored=stored))
            case "progress":
                await self._jobs.command_progress(server_id, _bounded(message.progress))
            case "samples":
                await self._measurements.take(server_id, message.samples)
                held = link_pb2.HostSamplesStored(host_id=message.samples.host_id, id=message.samples.id)
                await session.outbox.put(link_pb2.ToProvider(samples_stored=held))
            case "received":
                await self._jobs.command_received(server_id, message.received.id)
            case _:  # a second hello, or a message of a newer provider
                log.info("message ignored", server=server_id)


def _shorten(error: types_pb2.ErrorDetail) -> None:
    """What is shown of every VM must fit one answer, whatever a provider writes."""
    for name in ("code", "message", "cause", "still_works", "next_step"):
        text: str = getattr(error, name)
        if len(text) > _TEXT:
            setattr(error, name, text[:_TEXT] + "…")


def _bounded(report: commands_pb2.CommandProgress) -> commands_pb2.CommandProgress:
    """Numbers that fit the database and a table."""
    total = min(report.bytes_total, LARGEST)
    return commands_pb2.CommandProgress(
        id=report.id[:_TEXT],
        percent=min(report.percent, 100),
        bytes_total=total,
        bytes_done=min(report.bytes_done, total or LARGEST),
        message=report.message[:_TEXT],
    )
