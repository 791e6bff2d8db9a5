"""The session with the coordinator: one stream, kept for as long as the provider runs.

Hosts do not depend on it. What the site says lies in the outbox, what it is told goes to commands and assignments; a
new session starts from the whole state on both sides.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, cast

import structlog

from provider_agent.assignments import Assignments
from provider_agent.commands import Commands
from provider_agent.joining import CoordinatorAway
from provider_agent.membership import Membership
from provider_agent.outbox import PACE_SECONDS, Outbox
from provider_agent.samples import Samples
from provider_agent.site import Site
from twinsite import __version__, retry
from twinsite.api.coordinator.v1 import identity_pb2, identity_pb2_grpc
from twinsite.api.coordinator.v1 import link_pb2 as pb
from twinsite.api.coordinator.v1 import link_pb2_grpc as rpc
from twinsite.channel import Call, Channel
from twinsite.clock import Clock
from twinsite.errors import Denied, Internal, Precondition, TwinsiteError, Unauthenticated, Unreachable

_log = structlog.get_logger()
_STEADY_SECONDS: Final = 30.0  # a session that lasted so long starts the waits anew

State = Literal["connecting", "connected", "refused"]


class SessionEnded(Unreachable):
    public = "the session with the coordinator ended"
    still_works = "replication and the hosts' sessions go on; the provider connects again by itself"


class Renewed(Unreachable):
    public = "the certificate was renewed, the session begins anew"


@dataclass(frozen=True, slots=True)
class Standing:
    """How it is with the coordinator, for the status. `refused`: a person has to act there."""

    state: State
    since: float
    problem: TwinsiteError | None = None


class Link:
    def __init__(
        self,
        membership: Membership,
        *,
        clock: Clock,
        outbox: Outbox,
        commands: Commands,
        assignments: Assignments,
        samples: Samples,
        site: Site,
        on_standing: Callable[[], None],
    ) -> None:
        self._membership, self._clock, self._outbox = membership, clock, outbox
        self._commands, self._assignments, self._samples, self._site = commands, assignments, samples, site
        self._on_standing = on_standing
        self._channel: Channel | None = None
        self.standing = Standing("connecting", clock.now())

    async def issue(
        self, request: identity_pb2.IssueHostCertificateRequest
    ) -> identity_pb2.IssueHostCertificateResponse:
        """Raises CoordinatorAway, and what the coordinator refuses with."""
        if self._channel is None:
            raise CoordinatorAway
        response: identity_pb2.IssueHostCertificateResponse
        response = await identity_pb2_grpc.IdentityStub(self._channel).IssueHostCertificate(request)
        return response

    async def run(self) -> None:
        """Connects, serves, connects again; ends only when it is cancelled."""
        waits = retry.delays(base=0.2, cap=5.0)
        while True:
            problem: TwinsiteError = SessionEnded()
            started = self._clock.monotonic()
            try:
                await self._session()
            except* TwinsiteError as group:
                problem = _first(group)
            except* Exception:  # noqa: BLE001  # the top of this task: a defect here must not end the hosts' sessions
                _log.exception("coordinator_session_failed")
                problem = Internal()
            finally:
                self._channel = None
                self._assignments.session_lost()
            _stay_cancelled()
            if isinstance(problem, Renewed):
                continue
            refused = isinstance(problem, Unauthenticated | Denied | Precondition)
            if self._clock.monotonic() - started > _STEADY_SECONDS:
                waits = retry.delays(base=0.2, cap=5.0)
            wait = next(waits)
            if refused and not self._membership.token_due:
                self._membership.drop_token()  # maybe only the token is not good any more: the next try gets a new one
                refused = False
            elif refused:
                wait = next(retry.delays(base=60.0, cap=60.0))
            self._stand("refused" if refused else "connecting", problem)
            await self._clock.sleep(wait)

    async def _session(self) -> None:
        async with self._membership.channel() as channel:
            if self._membership.token_due:
                await self._membership.fetch_token(channel)
            self._channel = channel
            async with asyncio.TaskGroup() as group:
                call = cast("Call", rpc.LinkStub(channel).Connect())
                hello = pb.Hello(agent_version=__version__, assignment_versions=self._assignments.versions())
                await call.write(pb.FromProvider(hello=hello))
                self._outbox.begin(await self._commands.unstored())
                async for message in call:
                    if message.WhichOneof("message") == "welcome":
                        self._welcomed(message.welcome)
                        group.create_task(self._write(call))
                        group.create_task(self._write_paced(call))
                        group.create_task(self._membership.keep_token(channel))
                        group.create_task(self._keep_certificate(channel))
                    else:
                        await self._take(message)
                raise SessionEnded

    async def _write(self, call: Call) -> None:
        while True:
            for message in await self._outbox.next():
                await call.write(message)

    async def _write_paced(self, call: Call) -> None:
        while True:
            for message in await self._outbox.next_paced():
                await call.write(message)
            await self._clock.sleep(PACE_SECONDS)

    async def _keep_certificate(self, channel: Channel) -> None:
        """A stream keeps the certificate it began with, so a new one means a new stream."""
        await self._membership.wait_for_renewal()
        for wait in retry.delays(base=5.0, cap=600.0):
            try:
                await self._membership.renew(channel)
            except (Unauthenticated, Denied, Precondition):
                raise  # locked or revoked: the session is over too
            except TwinsiteError as error:
                _log.error("renewal_failed", reason=str(error), cause=error.text("cause"))
                await self._clock.sleep(wait)
            else:
                raise Renewed

    def _welcomed(self, welcome: pb.Welcome) -> None:
        _log.info("coordinator_connected", vault=welcome.vault_name, coordinator_version=welcome.coordinator_version)
        self._site.chosen_there(welcome.synced_clouds)
        self._stand("connected", None)

    async def _take(self, message: pb.ToProvider) -> None:
        match message.WhichOneof("message"):
            case "assignments":
                await self._assignments.replace(message.assignments)
            case "command":
                await self._commands.submit(message.command)
            case "cancel":
                await self._commands.cancel(message.cancel.id)
            case "result_stored":
                await self._commands.stored(message.result_stored.id)
            case "points_asked":
                self._outbox.tell_points(message.points_asked.host_id, message.points_asked.vm_id)
            case "samples_stored":
                self._samples.stored(message.samples_stored)
            case "sync_clouds":
                await self._site.look()
                self._outbox.resend_inventory()

    def _stand(self, state: State, problem: TwinsiteError | None) -> None:
        if problem is not None and (state, problem.code) != (self.standing.state, self._code):
            _log.warning(
                "coordinator_refuses" if state == "refused" else "coordinator_away",
                reason=str(problem),
                cause=problem.text("cause"),
                next_step=problem.text("next_step"),
            )
        since = self.standing.since if state == self.standing.state else self._clock.now()
        self.standing = Standing(state, since, problem)
        self._on_standing()

    @property
    def _code(self) -> str:
        return self.standing.problem.code if self.standing.problem is not None else ""


def _stay_cancelled() -> None:
    """A task group that is cancelled while one of its tasks fails reports the failure and forgets the cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _first(group: BaseExceptionGroup[TwinsiteError]) -> TwinsiteError:
    """The error that ended the session: a refusal or a renewal says more than the lost stream that is its echo."""
    found = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return min(found, key=lambda error: isinstance(error, Unreachable) and not isinstance(error, Renewed))
