"""The session with this host's provider: one stream, kept for as long as the agent runs, and the certificate it needs.

Replication does not depend on it. What the agent says lies in the outbox, what it is told goes to the commands and the
assignments; a new session starts from the whole state on both sides.
"""

import asyncio
from typing import Final

import grpc
import structlog

from hyperv_host_agent.assignments import Assignments
from hyperv_host_agent.causes import end_if_cancelled, first
from hyperv_host_agent.commands import Commands
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.sampling import Sampling
from twinsite import retry
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.provider.v1 import host_link_pb2_grpc as rpc
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError, Unreachable

_log = structlog.get_logger()
_STEADY_SECONDS: Final = 30.0  # a session that lasted so long starts the waits anew

_SKEW_SECONDS: Final = 60.0  # RPO ages are differences between the clocks of two hosts


class SessionEnded(Unreachable):
    public = "the session with the provider ended"
    still_works = "replication goes on; the agent connects again by itself"


class Link:
    def __init__(
        self,
        membership: Membership,
        *,
        clock: Clock,
        outbox: Outbox,
        commands: Commands,
        assignments: Assignments,
        sampling: Sampling,
    ) -> None:
        self._membership = membership
        self._clock = clock
        self._outbox = outbox
        self._commands = commands
        self._assignments = assignments
        self._sampling = sampling
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Connects, serves, connects again; ends only when it is cancelled."""
        waits = retry.delays(base=0.2, cap=10.0)
        said = ""
        while True:
            started = self._clock.monotonic()
            try:
                await self._session()
            except* TwinsiteError as group:
                reason = str(first(group))
                if reason != said or self.connected.is_set():  # not once a second while the provider is down
                    _log.warning("provider_link_down", reason=reason)
                said = reason
            finally:
                self.connected.clear()
                self._assignments.session_lost()
            end_if_cancelled()
            if self._clock.monotonic() - started > _STEADY_SECONDS:
                waits = retry.delays(base=0.2, cap=10.0)
            await self._clock.sleep(next(waits))

    async def _session(self) -> None:
        async with self._membership.channel() as channel, asyncio.TaskGroup() as group:
            call = rpc.HostLinkStub(channel).Connect()
            self._outbox.begin(await asyncio.to_thread(self._commands.unstored))
            group.create_task(self._write(call))
            group.create_task(self._outbox.pace(self._clock))
            group.create_task(self._sampling.session(self._outbox.samples))
            group.create_task(self._renewed())
            async for message in call:
                await self._take(message)
            raise SessionEnded

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.FromHost, pb.ToHost]) -> None:
        while True:
            for message in await self._outbox.next():
                await call.write(message)

    async def _renewed(self) -> None:
        """A stream keeps the certificate it began with, so a new one means a new stream."""
        await self._membership.renewed()
        raise SessionEnded

    async def _take(self, message: pb.ToHost) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                skew = self._clock.now() - message.welcome.provider_unix
                _log.info("provider_link_up", provider_version=message.welcome.provider_version)
                if abs(skew) > _SKEW_SECONDS:
                    _log.warning("clocks_differ", host_ahead_seconds=round(skew))
                self._assignments.welcome(current=message.welcome.assignments_current)
                self.connected.set()
            case "assignments":
                await self._assignments.replace(message.assignments)
            case "command":
                await self._commands.submit(message.command)
            case "cancel":
                self._commands.cancel(message.cancel.id)
            case "result_stored":
                await self._commands.stored(message.result_stored.id)
            case "points_asked":
                self._outbox.tell_points(message.points_asked.vm_id)
            case "samples_stored":
                await self._sampling.stored(message.samples_stored.id)
