"""Blocking calls from the event loop, and work that is not left half done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


async def finish(call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
    """`call` in a thread. A waiter that is cancelled still waits for its end: a thread cannot be stopped, and what it
    does must not overlap with what comes next.
    """
    return await whole(asyncio.to_thread(call, *args, **kwargs))


async def whole(steps: Coroutine[Any, Any, Answer]) -> Answer:
    """All of the steps, also when the waiter is cancelled meanwhile: it waits for their end."""
    work = asyncio.ensure_future(steps)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody is there to be told
        raise
