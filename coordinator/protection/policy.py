"""How VMs of a pair are replicated and what is kept of them: values, their limits, what makes little sense. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from coordinator.protection.errors import (
    ApplicationTooRare,
    InvalidPolicy,
    InvalidRate,
    InvalidTier,
    TiersUnordered,
    TooManyPoints,
)
from twinsite import schedules
from twinsite.api.types.v1 import types_pb2
from twinsite.units import span

FREQUENCY: Final = range(1, 86400 + 1)  # seconds
ADDITIONAL_POINTS: Final = range(25)  # hourly points besides the newest
APPLICATION_HOURS: Final = range(13)  # 0: never
MOST_TIERS: Final = 8
MOST_RATES: Final = 32
MOST_POINTS: Final = 5000  # of one VM; with every new one its host tells of all of them
LONGEST_TIER: Final = 10 * 366 * 86400  # seconds
SLOWEST: Final = 1024  # bytes per second; below it not even the answers of a transfer get through
FASTEST: Final = 2**50
_DAY: Final = 1440  # minutes


@dataclass(frozen=True, slots=True)
class Tier:
    """Keep one point of every `every` seconds for `keep` seconds; every 0: each cycle."""

    every: int
    keep: int

    def to_proto(self) -> types_pb2.RetentionTier:
        return types_pb2.RetentionTier(every_seconds=self.every, for_seconds=self.keep)

    def step(self, frequency: int) -> int:
        """Seconds between two of its points: no more points than cycles."""
        return max(self.every, frequency)


@dataclass(frozen=True, slots=True)
class RateRule:
    """As types.proto says it."""

    days: int
    from_minute: int
    to_minute: int
    bytes_per_second: int

    def to_proto(self) -> types_pb2.RateRule:
        return types_pb2.RateRule(
            days=self.days,
            from_minute=self.from_minute,
            to_minute=self.to_minute,
            bytes_per_second=self.bytes_per_second,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    frequency_seconds: int = 300
    additional_points: int = 0
    compression: bool = True
    delete_replica: bool = True  # on unprotect the replica goes too
    tiers: tuple[Tier, ...] = ()
    vm_rates: tuple[RateRule, ...] = ()
    link_rates: tuple[RateRule, ...] = ()
    application_hours: int = 0  # 0: never

    @classmethod
    def from_proto(cls, policy: types_pb2.Policy) -> "Policy":
        """Raises InvalidPolicy and its kin: InvalidTier, TiersUnordered, TooManyPoints, InvalidRate,
        ApplicationTooRare.
        """
        for what, value, among, unit in (
            ("frequency", policy.frequency_seconds, FREQUENCY, "seconds"),
            ("additional recovery points", policy.additional_points, ADDITIONAL_POINTS, "hourly points"),
            ("time between application-consistent points", policy.application_hours, APPLICATION_HOURS, "hours"),
            ("number of retention tiers", len(policy.tiers), range(MOST_TIERS + 1), "tiers"),
            ("number of rates of a VM", len(policy.vm_rates), range(MOST_RATES + 1), "rules"),
            ("number of rates of the link", len(policy.link_rates), range(MOST_RATES + 1), "rules"),
        ):
            if value not in among:
                raise InvalidPolicy(what, value, among[0], among[-1], unit)
        made = cls(
            frequency_seconds=policy.frequency_seconds,
            additional_points=policy.additional_points,
            compression=policy.compression,
            delete_replica=policy.delete_replica,
            tiers=tuple(Tier(tier.every_seconds, tier.for_seconds) for tier in policy.tiers),
            vm_rates=tuple(_rate(rule) for rule in policy.vm_rates),
            link_rates=tuple(_rate(rule) for rule in policy.link_rates),
            application_hours=policy.application_hours,
        )
        _check_tiers(made.tiers)
        if most_points(made) > MOST_POINTS:
            raise TooManyPoints(most_points(made), MOST_POINTS)
        if made.additional_points and made.application_hours >= made.additional_points:
            raise ApplicationTooRare(made.application_hours, made.additional_points)
        return made

    def to_proto(self) -> types_pb2.Policy:
        return types_pb2.Policy(
            frequency_seconds=self.frequency_seconds,
            additional_points=self.additional_points,
            compression=self.compression,
            delete_replica=self.delete_replica,
            tiers=[tier.to_proto() for tier in self.tiers],
            vm_rates=[rule.to_proto() for rule in self.vm_rates],
            link_rates=[rule.to_proto() for rule in self.link_rates],
            application_hours=self.application_hours,
        )

    @property
    def keeps_history(self) -> bool:
        return bool(self.additional_points or self.tiers)

    def told(self, *, source_hosts: int) -> types_pb2.Policy:
        """As one of so many source hosts gets it: its part of what the link may carry, and nothing that is ignored."""
        shared = tuple(
            replace(rule, bytes_per_second=max(SLOWEST, rule.bytes_per_second // max(1, source_hosts)))
            for rule in self.link_rates
        )
        hours = self.application_hours if self.keeps_history else 0
        return replace(self, link_rates=shared, application_hours=hours).to_proto()


def most_points(policy: Policy) -> int:
    """The newest and all that the policy keeps when no cycle fails; of two tiers over one stretch the denser counts."""
    total, reached = 1 + policy.additional_points, 0
    for tier in policy.tiers:
        total += -(-(tier.keep - reached) // tier.step(policy.frequency_seconds))
        reached = tier.keep
    return total


def doubts(policy: Policy) -> list[str]:
    """Sentences on what is allowed and will hardly be what somebody wants."""
    found = []
    every = policy.frequency_seconds
    for tier in policy.tiers:
        if tier.keep < every:
            found.append(f"a tier of {span(tier.keep)} keeps nothing: a point is made every {span(every)} only")
        elif 0 < tier.every < every:
            asked = f"one point every {span(tier.every)} for {span(tier.keep)}"
            found.append(f"{asked} is more than there will be: a point is made every {span(every)} only")
    if policy.application_hours and not policy.keeps_history:
        found.append("application-consistent points are not tried: no point besides the newest is kept")
    return found


def changes(before: Policy, after: Policy) -> list[tuple[str, str, str]]:
    """(what, was, becomes) of each setting that differs, in words."""
    pairs = zip(words(before), words(after), strict=True)
    return [(what, was, becomes) for (what, was), (_, becomes) in pairs if was != becomes]


def words(policy: Policy) -> list[tuple[str, str]]:
    """Every setting and its value, in words."""
    hours, said = policy.application_hours, policy.to_proto()
    return [
        ("frequency", span(policy.frequency_seconds)),
        ("hourly points", str(policy.additional_points)),
        ("retention", schedules.keep_text(said.tiers)),
        ("compression", "on" if policy.compression else "off"),
        ("the replica on unprotect", "deleted" if policy.delete_replica else "kept"),
        ("rate of each VM", schedules.rates_text(said.vm_rates)),
        ("rate of the link", schedules.rates_text(said.link_rates)),
        ("application-consistent points", f"every {hours}h" if hours else "never"),
    ]


def _rate(rule: types_pb2.RateRule) -> RateRule:
    if not SLOWEST <= rule.bytes_per_second <= FASTEST:
        raise InvalidRate("bytes per second", rule.bytes_per_second, SLOWEST, FASTEST)
    if rule.days > 0b1111111:
        raise InvalidRate("days", rule.days, 0, 0b1111111)
    for name, minute, most in (("from", rule.from_minute, _DAY - 1), ("to", rule.to_minute, _DAY)):
        if minute > most:
            raise InvalidRate(f"{name} minute", minute, 0, most)
    return RateRule(rule.days, rule.from_minute, rule.to_minute, rule.bytes_per_second)


def _text(tier: Tier) -> str:
    return schedules.tier_text(tier.to_proto())


def _check_tiers(tiers: Sequence[Tier]) -> None:
    before: Tier | None = None
    for tier in tiers:
        if not 0 < tier.keep <= LONGEST_TIER or tier.keep < tier.every:
            raise InvalidTier(_text(tier), LONGEST_TIER // 86400)
        if before is not None and (tier.every <= before.every or tier.keep <= before.keep):
            raise TiersUnordered(_text(before), _text(tier))
        before = tier
