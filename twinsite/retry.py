"""How long to wait before trying again."""

import random
from collections.abc import Iterator


def ceiling(attempt: int, *, base: float, cap: float) -> float:
    """Longest wait in seconds before the given attempt (0, 1, 2 …); the caller draws below it."""
    return min(cap, base * 2.0 ** min(attempt, 60))


def delays(*, base: float = 0.2, cap: float = 30.0) -> Iterator[float]:
    """Endless waits with full jitter (half to whole of the ceiling), so that a site's agents do not return as one."""
    attempt = 0
    while True:
        yield ceiling(attempt, base=base, cap=cap) * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        attempt += 1
