"""A source that compares for hours has nothing to send, and is not taken for one that has gone."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from hyperv_host_agent import wire
from hyperv_host_agent.peer import ALIVE_SECONDS, SILENCE_SECONDS, Sending
from hyperv_host_agent.replication.sending import CommitAcked, Durable
from hyperv_host_agent.replication.stream import UnexpectedAck
from tests.fakes.hand_source import target, zeros
from tests.fakes.host_provider import eventually
from twinsite.api.host.v1 import replication_pb2 as pb
from twinsite.channel import Call
from twinsite.clock import MovedClock

QUIET = 12.0 * ALIVE_SECONDS


class Taking:
    """A call whose peer takes everything and says nothing."""

    def __init__(self) -> None:
        self.frames: list[str | None] = []

    async def write(self, message: bytes) -> None:
        self.frames.append(wire.decode(message).header.WhichOneof("frame"))

    def done(self) -> bool:
        return False


async def test_a_stream_on_which_nothing_goes_is_kept_alive() -> None:
    clock, call = MovedClock(), Taking()
    sending = Sending(1, cast("Call", call), clock)
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(sending.watch())
        began = clock.monotonic()
        while clock.monotonic() < began + QUIET:  # and longer than a target may owe an answer
            await eventually("the watch to sleep", lambda: clock._sleepers)
            clock.advance(10.0)
        watch.cancel()
    assert QUIET > SILENCE_SECONDS
    assert {*call.frames} == {"alive"}
    assert QUIET / ALIVE_SECONDS / 2 <= len(call.frames) <= QUIET / ALIVE_SECONDS


class Claiming(Taking):
    """A call whose peer says that it has more than it was sent."""

    async def read(self) -> pb.Ack:
        return pb.Ack(durable=3)


async def test_an_ack_of_what_was_not_sent_lets_go_of_nothing() -> None:
    sending = Sending(1, cast("Call", Claiming()), MovedClock(), resume_after=1)
    await sending.write(zeros(2, count=8), 2)
    with pytest.raises(UnexpectedAck, match="batch 3, which it was not sent"):
        [ack async for ack in sending.acks()]
    await sending.write(zeros(3, count=8), 3)
    assert await anext(sending.acks()) == Durable(1, 3)


async def test_a_target_takes_signs_of_life_for_nothing_else(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        header, alive = source.header(), wire.encode(wire.alive())
        sending = await source.peer.send(1, header, 0, source.grant())
        digest = bytes(16)
        for number, message in enumerate((zeros(1, count=8), zeros(2, start=8, count=8)), 1):
            await sending.write(alive)
            digest = wire.chain(digest, message)
            await sending.write(message, number)
        await sending.write(wire.encode(wire.end(2, digest)))
        (committed,) = [ack async for ack in sending.acks() if isinstance(ack, CommitAcked)]
        assert committed.committed.id == header.id
        sending.cancel()
