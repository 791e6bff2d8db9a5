"""The recovery points of a VM as they are told from program to program: all of them once, then what changed. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from twinsite.api.types.v1 import types_pb2
from twinsite.units import MiB

ByCycle = dict[int, types_pb2.Point]
MOST_BYTES: Final = 3 * MiB  # of the points of one VM: all of them have to fit into one message


def by_cycle(points: Iterable[types_pb2.Point]) -> ByCycle:
    """Ascending, as they are told."""
    return {point.cycle: point for point in points}


def since(told: Mapping[int, types_pb2.Point], now: Mapping[int, types_pb2.Point]) -> tuple[ByCycle, list[int]]:
    """Those that are new or other than they were told, and the cycles of those that are gone."""
    fresh = {cycle: point for cycle, point in now.items() if told.get(cycle) != point}
    return fresh, [cycle for cycle in told if cycle not in now]


def applied(
    held: Mapping[int, types_pb2.Point], fresh: Iterable[types_pb2.Point], gone: Iterable[int], *, total: int
) -> ByCycle | None:
    """What there is after such changes; None: `held` was not what they count from, or it is too much to be told."""
    left = set(gone)
    now = {cycle: point for cycle, point in held.items() if cycle not in left} | by_cycle(fresh)
    fits = sum(point.ByteSize() for point in now.values()) <= MOST_BYTES
    return dict(sorted(now.items())) if len(now) == total and fits else None
