"""Streams and calls between two hosts: ordered, late, cut at any message, half-open for a while, never doubled."""

from collections.abc import Callable

from tests.simulation.world import World
from twinsite.errors import Unreachable


class Cut(Unreachable):
    public = "the connection was cut"


class Network:
    def __init__(self, world: World) -> None:
        self.world = world
        self.down = False
        self.calm = False
        self.streams: list[Stream] = []
        self.calls = 0

    def delay(self) -> float:
        if not self.calm and self.world.chance(0.03):
            return self.world.between(0.5, 5.0)
        return self.world.between(0.001, 0.05)

    def number(self) -> int:
        self.calls += 1
        return self.calls

    def cut_all(self) -> None:
        for stream in list(self.streams):
            stream.cut()

    def call(self, request: Callable[[Callable[[object], None]], None], reply: Callable[[object | None], None]) -> None:
        """Carry a request there and its answer back; `reply(None)` when none comes in time. Replies exactly once."""
        answered = False

        def answer(value: object | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                reply(value)

        def back(value: object) -> None:
            if not self.down:
                self.world.after(self.delay(), lambda: answer(value))

        def there() -> None:
            if not self.down:
                request(back)

        self.world.after(self.delay(), there)
        self.world.after(4.0, lambda: answer(None))


class Stream:
    """Both directions of one call. `to_target` and `to_source` get messages; None says it is over."""

    def __init__(
        self, network: Network, to_target: Callable[[object], None], to_source: Callable[[object], None]
    ) -> None:
        self.network = network
        self.number = network.number()
        self.ends = (to_target, to_source)
        self.open = True
        self._last = [0.0, 0.0]
        self._left: list[int | None] = [None, None]  # messages that still arrive after the cut
        network.streams.append(self)
        if network.down:
            self.cut()

    def send(self, direction: int, message: object) -> None:
        world = self.network.world
        if not self.open:
            return
        when = max(self._last[direction], world.now + self.network.delay())
        self._last[direction] = when
        world.after(when - world.now, lambda: self._deliver(direction, message))

    def close(self, direction: int, message: object) -> None:
        """End it in order, after everything that was sent in this direction."""
        self.send(direction, message)
        self.send(direction, None)
        self._gone()

    def cut(self, *, by: int | None = None) -> None:
        """Some of what is under way still arrives; both ends learn of it, each in its time. `by`: who knows already."""
        if not self.open:
            return
        self._gone()
        world = self.network.world
        for direction in (0, 1):
            self._left[direction] = world.rng.choice((0, 0, 1, 2, 1000))
            if direction == by:
                continue
            # Half open: an end may believe in the stream for seconds.
            end = self.ends[direction]
            when = max(self._last[direction], world.now) + world.between(0.0, 4.0)
            world.after(when - world.now, lambda end=end: end(None))

    def _gone(self) -> None:
        self.open = False
        if self in self.network.streams:
            self.network.streams.remove(self)

    def _deliver(self, direction: int, message: object) -> None:
        left = self._left[direction]
        if left is not None:
            if left <= 0:
                return
            self._left[direction] = left - 1
        self.ends[direction](message)
