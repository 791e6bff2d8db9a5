"""Which layers of a chain become one: few layers at any time, every byte rewritten seldom, space given back. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import Final

MOST: Final = 16  # layers that may be merged; one more, and some are
DEAD: Final = 0.25  # of a layer, or of a chain, that nobody needs: then it is rewritten
_WAIT: Final = 4  # layers over another before their overlap is thought of
_LAYER_COST: Final = 65536  # bytes that a layer costs even when it is empty
_LONG: Final = 3  # how much more a run counts that leaves fewer layers, as a power


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
    many layers, the run that is cheapest for the number of layers it saves. That leaves sizes growing towards the base
    and copies a byte about six times in 60 000 cycles.
    """
    runs = [[layer] for layer in chain]
    total = sum(layer.stored_bytes for layer in chain)
    planned: list[list[Candidate]] = []
    for start, end in reversed(_superseding(chain)):
        run = list(chain[start:end])
        sizes = [layer.stored_bytes for layer in run]
        if len(run) > _WAIT and sum(sizes) - max(sizes) >= DEAD * total:
            planned.append(run)
            runs[start:end] = [run]
    planned += [run for run in reversed(runs) if len(run) == 1 and _is_dead(run[0])]
    while sum(not run[0].pinned for run in runs) > MOST:
        cheapest = _cheapest(runs)
        if cheapest is None:
            break
        start, end = cheapest
        joined = [layer for run in runs[start:end] for layer in run]
        planned = [run for run in planned if run not in runs[start:end]] + [joined]
        runs[start:end] = [joined]
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


def _is_dead(layer: Candidate) -> bool:
    return not layer.pinned and layer.dead_bytes > DEAD * layer.stored_bytes


def _cheapest(runs: Sequence[Sequence[Candidate]]) -> tuple[int, int] | None:
    """Which neighbours (start, end) to join."""
    before = list(accumulate((sum(x.stored_bytes + _LAYER_COST for x in run) for run in runs), initial=0))
    pinned = list(accumulate((run[0].pinned for run in runs), initial=0))
    choices = [
        ((before[end] - before[start]) / (end - start - 1) ** _LONG, -start, -end)
        for start, end in combinations(range(len(runs) + 1), 2)
        if end - start > 1 and pinned[start] == pinned[end]
    ]
    if not choices:
        return None
    _, start, end = min(choices)
    return -start, -end
