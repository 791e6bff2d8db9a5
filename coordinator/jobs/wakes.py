"""Tell waiting coroutines of this process to look at the database again. A hint only: every waiter also polls."""

import asyncio
import contextlib
from collections.abc import Iterator


class Wakes:
    """Events by topic; a wake while nobody listens is lost, one while a listener works is not."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def listening(self, *topics: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        for topic in topics:
            self._events.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            for topic in topics:
                listeners = self._events[topic]
                listeners.discard(event)
                if not listeners:
                    del self._events[topic]

    def wake(self, *topics: str) -> None:
        for topic in topics:
            for event in self._events.get(topic, ()):
                event.set()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, at most so long; clears it. Process time on purpose: it bounds a poll, no deadline."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
