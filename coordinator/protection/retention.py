"""What a changed policy would mean for the points there are, by the rule their host follows. No I/O."""

from collections.abc import Sequence

from coordinator.inventory.model import instant
from coordinator.protection.policy import Policy
from twinsite import retention
from twinsite.api.types.v1 import types_pb2


def would_go(points: Sequence[types_pb2.Point], policy: Policy, *, now: float) -> list[int]:
    """Cycles of recoverable points that neither the policy nor a person keeps, ascending."""
    stay = retention.keep(
        [
            retention.KeptPoint(
                point.cycle,
                instant(point.instant),
                recoverable=True,
                pinned=point.kept or bool(point.pinned_by) or instant(point.locked_until) > now,
            )
            for point in points
        ],
        additional=policy.additional_points,
        tiers=[retention.Tier(tier.every, tier.keep) for tier in policy.tiers],
        frequency=policy.frequency_seconds,
    )
    return sorted({point.cycle for point in points} - set(stay))
