"""Which layers of a chain become one: few layers at any time, every byte rewritten seldom, space given back. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST: Final = 16  # layers that may be merged; one more, and they are
FEWEST: Final = 8  # how many merging leaves, so that most calls merge nothing
DEAD: Final = 0.25  # of a layer, or of a chain, that nobody needs: then it is rewritten
_WAIT: Final = 4  # layers over another before their overlap is thought of
_LAYER_COST: Final = 65536  # bytes that a layer costs even when it is empty


@dataclass(frozen=True, slots=True)
class Candidate:
    """One layer of a chain."""

    file: str
    stored_bytes: int
    pinned: bool = False  # a point in use stands on it: it is left alone
    needed: bool = True  # a point before the next layer's cycle sees what this one's tables show
    dead_bytes: int = 0  # of versions inside it that no point needs any more


def groups(chain: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """Runs of adjacent layers, oldest first, that become one layer each, to be merged in this order.

    Points inside do not matter: the merged layer keeps what they need. First come layers that lie over one another
    with no point between them, once a good part of the chain may be superseded: so the base is rewritten about as
    often as what changed makes a third of it. Then layers with versions that no point needs. Then, should there be too
    many layers, the cheapest neighbours are joined, again and again: that keeps sizes growing towards the base, so a
    byte is copied about as often as its layer's size has doubled.
    """
    runs = [[layer] for layer in chain]
    total = sum(layer.stored_bytes for layer in chain)
    freeing: list[list[Candidate]] = []
    for start, end in reversed(_superseding(chain)):
        run = list(chain[start:end])
        sizes = [layer.stored_bytes for layer in run]
        if len(run) > _WAIT and sum(sizes) - max(sizes) >= DEAD * total:
            freeing.append(run)
            runs[start:end] = [run]
    freeing += [
        run
        for run in reversed(runs)
        if len(run) == 1 and not run[0].pinned and run[0].dead_bytes > DEAD * run[0].stored_bytes
    ]
    joined: list[list[Candidate]] = []
    if sum(not run[0].pinned for run in runs) > MOST:
        while sum(not run[0].pinned for run in runs) > FEWEST:
            costs = [
                (_cost(older) + _cost(newer), at)
                for at, (older, newer) in enumerate(zip(runs, runs[1:], strict=False))
                if not (older[0].pinned or newer[0].pinned)
            ]
            if not costs:
                break
            _, at = min(costs)
            runs[at : at + 2] = [runs[at] + runs[at + 1]]
        joined = [run for run in reversed(runs) if len(run) > 1]
    planned = [run for run in freeing if run in runs] + [run for run in joined if run not in freeing]
    return [tuple(layer.file for layer in run) for run in planned]


def _superseding(chain: Sequence[Candidate]) -> list[tuple[int, int]]:
    """Longest runs (start, end) of layers of which no point needs any but what the last one shows."""
    found: list[tuple[int, int]] = []
    start = 0
    for at, layer in enumerate(chain):
        if layer.pinned:
            start = at + 1
        elif layer.needed or at == len(chain) - 1:
            if at > start:
                found.append((start, at + 1))
            start = at + 1
    return found


def _cost(run: Sequence[Candidate]) -> int:
    return sum(layer.stored_bytes + _LAYER_COST for layer in run)
