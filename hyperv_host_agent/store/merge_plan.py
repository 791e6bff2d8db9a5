"""Which layers of a disk become one: few enough layers at any time, and every byte rewritten seldom. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST: Final = 16  # layers that no kept point needs; one more, and layers are merged
FEWEST: Final = 8  # how many merging leaves, so that most calls merge nothing
_BASE_WAITS: Final = 4  # layers over the base before it is thought of
_LAYER_COST: Final = 65536  # bytes that a layer costs even when it is empty


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer of a chain."""

    file: str
    stored_bytes: int
    top: bool  # a point's disk is exactly this layer: it may be the newest in a merge, nothing else
    pinned: bool  # a pinned point stands on it: it is left alone


def groups(chain: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """Runs of adjacent layers, oldest first, that become one layer each; newest group first.

    The cheapest neighbours are joined first, again and again: that keeps sizes growing towards the base, so a byte is
    copied about as often as its layer's size has doubled. The base is rewritten once what lies on it, up to the
    oldest kept point, is half its size.
    """
    runs = [[layer] for layer in chain]
    base = next((at for at, layer in enumerate(chain) if layer.top), len(chain) - 1)
    over_base = sum(layer.stored_bytes for layer in chain[1 : base + 1])
    if base >= _BASE_WAITS and over_base * 2 >= chain[0].stored_bytes and not any(x.pinned for x in chain[: base + 1]):
        runs[: base + 1] = [list(chain[: base + 1])]
    elif sum(not layer.top for layer in chain) <= MOST:
        return []
    while sum(not run[-1].top for run in runs) > FEWEST:
        costs = [
            (_cost(runs[at]) + _cost(runs[at + 1]), at)
            for at in range(len(runs) - 1)
            if _may_join(runs[at], runs[at + 1]) and runs[at][0] is not chain[0]
        ]
        if not costs:
            break
        _, at = min(costs)
        runs[at : at + 2] = [runs[at] + runs[at + 1]]
    return [tuple(layer.file for layer in run) for run in reversed(runs) if len(run) > 1]


def _may_join(older: Sequence[Candidate], newer: Sequence[Candidate]) -> bool:
    return not (older[-1].top or older[-1].pinned or newer[-1].pinned)


def _cost(run: Sequence[Candidate]) -> int:
    return sum(layer.stored_bytes + _LAYER_COST for layer in run)
