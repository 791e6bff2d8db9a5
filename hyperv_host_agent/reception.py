"""One VM's replica while cycles arrive: the receiver decides, the store acts, both in one thread at a time."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Final

from hyperv_host_agent import blocking
from hyperv_host_agent.replicas import Held, Replicas
from hyperv_host_agent.replication.cycle import TargetState
from hyperv_host_agent.replication.receiver import Receiver
from hyperv_host_agent.replication.receiving import (
    Abandon,
    AckCommitted,
    AckDurable,
    Action,
    Answer,
    Asked,
    Begin,
    Begun,
    Commit,
    Event,
    Put,
    Refuse,
    SetTerm,
    Stored,
    StoreFailed,
    StreamClosed,
    Sync,
    TermRaised,
    Ticked,
)
from hyperv_host_agent.store.base import PointInfo
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError

TICK_SECONDS: Final = 0.1
Reply = AckDurable | AckCommitted | Refuse
_numbers: Final = itertools.count(1)  # of streams and calls, one series in this process


class Reception:
    """Thread hops are inside; every method is called on the event loop."""

    def __init__(
        self,
        held: Held,
        state: TargetState,
        clock: Clock,
        *,
        on_commit: Callable[[PointInfo], None],
        on_failure: Callable[[TwinsiteError], None],
    ) -> None:
        self.held = held
        self._receiver = Receiver(held.vm_id, state)
        self._clock = clock
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._streams: dict[int, asyncio.Queue[Reply]] = {}

    async def ask(self) -> TargetState:
        """What the target has, for `Open`."""
        call = next(_numbers)
        for action in await self._follow(lambda: [Asked(call, self.held.replica.state())]):
            if isinstance(action, Answer) and action.call == call:
                return action.state
        raise AssertionError("an Asked is always answered")

    async def raise_term(self, term: int) -> None:
        """Durable when it returns; what still arrives of an older term is refused from now on."""
        await self._tell(TermRaised(term))

    def stream(self) -> "Stream":
        number = next(_numbers)
        replies = self._streams[number] = asyncio.Queue()
        return Stream(self, number, replies)

    async def tell(self, *events: Event) -> None:
        """In order, in one visit to the store's thread."""
        await self._tell(*events)

    async def tick(self) -> None:
        """Runs beside a stream."""
        while True:
            await self._clock.sleep(TICK_SECONDS)
            await self._tell(Ticked())

    async def closed(self, number: int) -> None:
        self._streams.pop(number, None)
        await self._tell(StreamClosed(number))

    async def _tell(self, *events: Event) -> list[Action]:
        return await self._follow(lambda: events)

    async def _follow(self, events: Callable[[], Sequence[Event]]) -> list[Action]:
        """`events` are made in the store's thread, with nothing between what they say of the store and what follows.

        Whoever waits may be cancelled: what the store has done by then is told all the same.
        """
        return await blocking.whole(self._followed(events))

    async def _followed(self, events: Callable[[], Sequence[Event]]) -> list[Action]:
        points: list[PointInfo] = []
        failures: list[TwinsiteError] = []
        replies = await self.held.run(
            lambda: [reply for event in events() for reply in self._step(event, points, failures)]
        )
        for action in replies:
            if isinstance(action, Reply) and (queue := self._streams.get(action.stream)) is not None:
                queue.put_nowait(action)
        for error in failures:
            self._on_failure(error)
        for point in points:
            self._on_commit(point)
        return replies

    def _step(self, event: Event, points: list[PointInfo], failures: list[TwinsiteError]) -> list[Action]:
        """Everything an event leads to, in the store's thread; what is for the peer is returned."""
        replies: list[Action] = []
        actions = self._receiver.handle(event, self._clock.monotonic())
        for action in actions:
            try:
                followed = self._act(action, points)
            except TwinsiteError as error:
                failures.append(error)
                failed = StoreFailed(error, self.held.replica.state())
                return replies + self._step(failed, points, failures)
            if followed is not None:
                replies += self._step(followed, points, failures)
            elif isinstance(action, Answer | AckDurable | AckCommitted | Refuse):
                replies.append(action)
        return replies

    def _act(self, action: Action, points: list[PointInfo]) -> Event | None:
        replica = self.held.replica
        match action:
            case SetTerm():
                replica.set_term(action.term)
            case Begin():
                replica.begin(action.header, resume_after=action.resume_after)
                return Begun(action.stream, replica.state())
            case Put():
                replica.put(action.batch, action.digest)
            case Sync():
                replica.sync()
            case Commit():
                points.append(replica.commit())
                return Stored(replica.state())
            case Abandon():
                replica.abandon()
            case _:
                pass
        return None


class Stream:
    """One `Send` on a reception."""

    def __init__(self, reception: Reception, number: int, replies: asyncio.Queue[Reply]) -> None:
        self.reception = reception
        self.number = number
        self.replies = replies


class Receptions:
    """The receptions of this host, one per replica, made when they are first needed."""

    def __init__(
        self,
        replicas: Replicas,
        clock: Clock,
        *,
        on_commit: Callable[[str, PointInfo], None],
        on_failure: Callable[[str, TwinsiteError], None],
    ) -> None:
        self._replicas = replicas
        self._clock = clock
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._made: dict[str, Reception] = {}
        self._making = asyncio.Lock()

    async def get(self, vm_id: str) -> Reception:
        """Raises ReplicaMissing, StoreDamaged."""
        async with self._making:
            held = await self._replicas.get(vm_id)
            made = self._made.get(vm_id)
            if made is None or made.held is not held:
                state = await held.run(held.replica.state)
                made = self._made[vm_id] = Reception(
                    held,
                    state,
                    self._clock,
                    on_commit=lambda point: self._on_commit(vm_id, point),
                    on_failure=lambda error: self._on_failure(vm_id, error),
                )
            return made
