"""What a changed policy would mean for the points there are. An estimate: the host that keeps them decides. No I/O."""

from collections.abc import Sequence
from typing import Final

from coordinator.inventory.model import instant
from coordinator.protection.policy import Policy
from twinsite.api.types.v1 import types_pb2

_HOUR: Final = 3600


def would_go(points: Sequence[types_pb2.Point], policy: Policy, *, now: float) -> list[int]:
    """Cycles of the points that neither the policy nor a person keeps, ascending.

    As hosts do it: of the points in one stretch of a tier's distance the first stays, so that a choice made stays one.
    """
    if not points:
        return []
    ordered = sorted(points, key=lambda point: point.cycle)
    newest = ordered[-1]
    kept = {newest.cycle}
    kept.update(point.cycle for point in ordered if point.kept or point.pinned_by or instant(point.locked_until) > now)
    hours = _first_of(ordered[:-1], _HOUR)
    kept.update(cycle for _, cycle in sorted(hours.items(), reverse=True)[: policy.additional_points])
    for tier in policy.tiers:
        young = [point for point in ordered if instant(newest.instant) - instant(point.instant) <= tier.keep]
        kept.update(_first_of(young, tier.every).values() if tier.every else (point.cycle for point in young))
    return [point.cycle for point in ordered if point.cycle not in kept]


def _first_of(ordered: Sequence[types_pb2.Point], every: int) -> dict[int, int]:
    """The first cycle of each stretch of so many seconds."""
    found: dict[int, int] = {}
    for point in ordered:
        found.setdefault(int(instant(point.instant) // every), point.cycle)
    return found
