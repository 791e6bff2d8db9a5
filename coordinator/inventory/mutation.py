"""One mutation a person asked for: who, from where, under which request id; answered once."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator import audit
from coordinator.store import requests
from twinsite import access
from twinsite.errors import InvalidInput, Unauthenticated

REQUEST_ID: Final = "twinsite-request-id"
_LONGEST: Final = 64  # characters of a request id; a UUID has 36
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
FRESH_SECONDS: Final = 300.0  # how old the login may be that does what cannot be undone
_SLACK_SECONDS: Final = 30.0  # the CLI counts by its own clock, and a request takes its time
Answer = TypeVar("Answer", bound=Message)


class LoginTooOld(Unauthenticated):
    public = "{error.action} wants a login of the last 5 minutes"
    cause = "it cannot be undone, so whoever sits at the keyboard must show that he knows the password"
    still_works = "nothing was changed"
    next_step = "twinsite login, then repeat the command"

    def __init__(self, action: str) -> None:
        self.action = action


class ReasonMissing(InvalidInput):
    public = "{error.action} wants a reason"
    cause = "it cannot be undone; the reason is kept in the audit log"
    still_works = "nothing was changed"
    next_step = 'add --reason "…"'

    def __init__(self, action: str) -> None:
        self.action = action


@dataclass(frozen=True, slots=True)
class Mutation:
    action: str  # as the audit log names it, for example vm.protect; also the method of its request id
    actor: str
    address: str = ""
    request_id: str = ""  # empty: a repeat is a new request
    reason: str = ""
    login_age: float | None = None  # seconds; None: nobody logged in for this

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any], action: str, *, reason: str = "") -> "Mutation":
        """From the RPC being handled."""
        caller = access.caller()
        metadata = dict(context.invocation_metadata() or ())
        request_id = metadata.get(REQUEST_ID, "")
        return cls(
            action,
            f"user/{caller.name}",
            caller.address,
            str(request_id)[:_LONGEST],
            reason[:1000],
            login_age=caller.login_age,
        )

    def deliberate(self) -> None:
        """For what cannot be undone, asked when nothing else speaks against it. Raises ReasonMissing, LoginTooOld."""
        if not self.reason.strip():
            raise ReasonMissing(self.action)
        if self.login_age is None or self.login_age > FRESH_SECONDS + _SLACK_SECONDS:
            raise LoginTooOld(self.action)

    async def repeated(self, connection: AsyncConnection, kind: type[Answer], *, now: float) -> Answer | None:
        """The answer this request got before, if it is a repeat. Ask first thing in the write transaction."""
        data = await requests.recall(connection, self.request_id, self.action, self.actor, now=now)
        return None if data is None else kind.FromString(data)

    async def done(
        self,
        connection: AsyncConnection,
        target: str,
        answer: Answer,
        *,
        now: float,
        facts: Mapping[str, str] = _NONE,
    ) -> Answer:
        """Remember the answer and audit the deed, in its transaction; the last thing in it."""
        await requests.remember(
            connection, self.request_id, self.action, self.actor, answer.SerializeToString(), now=now
        )
        await audit.record(
            connection,
            actor=self.actor,
            action=self.action,
            target=target,
            outcome="ok",
            facts={**facts, "reason": self.reason} if self.reason else facts,
            address=self.address,
            now=now,
        )
        return answer
