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

REQUEST_ID: Final = "twinsite-request-id"
_LONGEST: Final = 64  # characters of a request id; a UUID has 36
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Mutation:
    action: str  # as the audit log names it, for example vm.protect; also the method of its request id
    actor: str
    address: str = ""
    request_id: str = ""  # empty: a repeat is a new request
    reason: str = ""

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext[Any, Any], action: str, *, reason: str = "") -> "Mutation":
        """From the RPC being handled."""
        caller = access.caller()
        metadata = dict(context.invocation_metadata() or ())
        request_id = metadata.get(REQUEST_ID, "")
        return cls(action, f"user/{caller.name}", caller.address, str(request_id)[:_LONGEST], reason[:1000])

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
