"""Why a task group ended."""

import asyncio


def first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The error inside nested groups; of several the first."""
    inner = group.exceptions[0]
    return first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def end_if_cancelled() -> None:
    """Raises CancelledError when the present task was told to end.

    A task group whose child fails while it is being cancelled raises the child's error and forgets the cancellation
    (https://github.com/python/cpython/issues/116720); a loop that handles errors asks here before it goes on.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
