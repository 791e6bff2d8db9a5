"""The sessions of this site's hosts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog

from provider_agent.assignments import Assignments
from provider_agent.commands import Commands
from provider_agent.outbox import Outbox
from provider_agent.presence import Presences
from provider_agent.samples import Samples
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.errors import Aborted, Exhausted, TwinsiteError, Unreachable

_log = structlog.get_logger()
_QUEUED: Final = 10_000  # messages to one host that does not read them


class SessionReplaced(Aborted):
    public = "another session of host {error.host_id} began"
    still_works = "the newer session goes on"
    next_step = "if this host does not run twice, nothing; else stop one of the two"

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id


class HostTooSlow(Exhausted):
    public = "host {error.host_id} does not read what it is sent"
    still_works = "it is told everything again in its next session"
    next_step = "look at the load of that host"

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id


class ProviderStops(Unreachable):
    public = "the provider is being stopped"
    still_works = "replication goes on; the host connects again by itself"


class Session:
    """One stream to one host."""

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id
        self._queue: asyncio.Queue[pb.ToHost] = asyncio.Queue(_QUEUED)
        self._ended = asyncio.Event()
        self._reason: TwinsiteError | None = None

    def send(self, message: pb.ToHost) -> None:
        try:
            self._queue.put_nowait(message)
        except asyncio.QueueFull:
            self.end(HostTooSlow(self.host_id))

    def end(self, reason: TwinsiteError) -> None:
        self._reason = self._reason or reason
        self._ended.set()

    async def ended(self) -> None:
        """Raises the reason with which the session was ended."""
        await self._ended.wait()
        if self._reason is not None:
            raise self._reason

    async def deliver(self, write: Callable[[pb.ToHost], Awaitable[None]]) -> None:
        while True:
            await write(await self._queue.get())


class Post:
    """Mail for the hosts that have a session."""

    def __init__(self) -> None:
        self._live: dict[str, Session] = {}

    def send(self, host_id: str, message: pb.ToHost) -> bool:
        session = self._live.get(host_id)
        if session is not None:
            session.send(message)
        return session is not None

    def open(self, host_id: str) -> Session:
        """A second session of one host ends the first."""
        previous = self._live.get(host_id)
        if previous is not None:
            previous.end(SessionReplaced(host_id))
        session = self._live[host_id] = Session(host_id)
        return session

    def close(self, session: Session) -> bool:
        """True when the host has no newer session."""
        if self._live.get(session.host_id) is not session:
            return False
        del self._live[session.host_id]
        return True

    def end_all(self) -> None:
        for session in self._live.values():
            session.end(ProviderStops())


class Sessions:
    def __init__(
        self,
        post: Post,
        presences: Presences,
        assignments: Assignments,
        commands: Commands,
        samples: Samples,
        outbox: Outbox,
    ) -> None:
        self._post, self._presences, self._samples = post, presences, samples
        self._assignments, self._commands, self._outbox = assignments, commands, outbox

    async def run(
        self,
        host_id: str,
        messages: AsyncIterator[pb.FromHost],
        write: Callable[[pb.ToHost], Awaitable[None]],
    ) -> None:
        """Until the host ends the stream. Raises SessionReplaced, HostTooSlow, JournalUnwritable (in a group)."""
        session = self._post.open(host_id)
        log = _log.bind(host=host_id)
        log.info("host_connected")
        self._presences.connected(host_id, connected=True)
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(session.ended()), group.create_task(session.deliver(write))]
                self._assignments.greet(host_id)
                self._commands.greet(host_id)
                async for message in messages:
                    await self._take(host_id, message)
                for helper in helpers:
                    helper.cancel()
        finally:
            if self._post.close(session):
                self._presences.connected(host_id, connected=False)
                self._samples.gone(host_id)
                log.info("host_disconnected")

    def _points(self, host_id: str, said: pb.HostPoints) -> None:
        if not said.changes:
            self._outbox.points(host_id, said.vm_id, said.points)
        elif not self._outbox.points_changed(host_id, said.vm_id, said.points, said.gone, total=said.total):
            self._post.send(host_id, pb.ToHost(points_asked=pb.PointsAsked(vm_id=said.vm_id)))

    async def _take(self, host_id: str, message: pb.FromHost) -> None:
        match message.WhichOneof("message"):
            case "status":
                await self._presences.said(host_id, message.status)
            case "statuses":
                for status in message.statuses.statuses:
                    # A host can only speak of what it was told to replicate.
                    if self._assignments.has(host_id, status.vm_id):
                        self._outbox.status(host_id, status)
            case "points":
                # Said once a session and when they change: before the assignments are known none may be lost.
                vm_id = message.points.vm_id
                if self._assignments.has(host_id, vm_id) or not self._assignments.knows(host_id):
                    self._points(host_id, message.points)
            case "progress":
                self._commands.progress(host_id, message.progress)
            case "result":
                await self._commands.result(host_id, message.result)
            case "samples":
                self._samples.take(host_id, message.samples)
            case "held":
                _log.debug("assignments_held", host=host_id, version=message.held.version)
            case "received":
                _log.debug("command_received_by_host", host=host_id, command=message.received.id)
