"""What each cause of lateness means, and what would fix it. No I/O."""

from collections.abc import Callable, Mapping
from typing import Final

from coordinator.statistics.facts import share
from coordinator.statistics.lateness import Pace, speed
from coordinator.statistics.situation import Situation
from twinsite import schedules
from twinsite.units import span


def _network(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    remedies = []
    frequency = case.policy.frequency_seconds
    fits = []
    if needed := pace.rate_that_fits("network", frequency):
        fits.append(f"a link of {speed(needed)}")
    if longer := pace.frequency_that_fits(frequency):
        fits.append(f"a frequency of {span(longer)}")
    if fits:
        remedies.append(f"{', or '.join(fits)}, would do")
    if not case.policy.compression:
        remedies.append(f"compression is off: turn it on for pair {case.pair}")
    return f"the network takes {share(pace, 'network')} of each cycle", remedies


def _capped(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    remedies = list(cap_remedies(case))
    if longer := pace.frequency_that_fits(case.policy.frequency_seconds):
        remedies.append(f"or a frequency of {span(longer)}")
    return f"{cap(case)} holds it back for {share(pace, 'cap')} of each cycle", remedies


def _turns(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    host = case.source.host
    remedies = [
        f"let more cycles of {host} run at once: [transfer] concurrency in its host.toml (0: learned)",
        "a longer frequency for VMs of that host that can do with it, or another host for some of them",
    ]
    return f"it waits for other VMs of {host} for {share(pace, 'turn')} of each cycle", remedies


def _target(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    host = case.target.host
    remedies = [f"look at the load and health of the disk that holds {host}'s store", *_or_rarer(case, pace)]
    return f"{host} writes slowly: that takes {share(pace, 'target')} of each cycle", remedies


def _source(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    host = case.source.host
    remedies = [f"look at the load and health of the disks of {host}", *_or_rarer(case, pace)]
    return f"reading its disks on {host} takes {share(pace, 'source')} of each cycle", remedies


def _compressing(case: Situation, pace: Pace) -> tuple[str, list[str]]:
    host = case.source.host
    remedies = [f"more threads for it on {host}: [transfer] compressors in its host.toml", *_or_rarer(case, pace)]
    if 0 < pace.ratio < 1.2:
        remedies.insert(0, f"it gains {pace.ratio:.1f} : 1 only: turn compression off for pair {case.pair}")
    return f"compressing takes {share(pace, 'compress')} of each cycle", remedies


BY_CAUSE: Final[Mapping[str, Callable[[Situation, Pace], tuple[str, list[str]]]]] = {
    "network": _network,
    "cap": _capped,
    "turn": _turns,
    "target": _target,
    "source": _source,
    "compress": _compressing,
}


def _or_rarer(case: Situation, pace: Pace) -> list[str]:
    longer = pace.frequency_that_fits(case.policy.frequency_seconds)
    return [f"or a frequency of {span(longer)}"] if longer else []


def cap(case: Situation) -> str:
    """Which cap it is, as it was set."""
    rate = case.sending.rate_bytes_per_second
    if not rate:
        return "a rate cap"
    for rules, whose in ((case.policy.vm_rates, "each VM"), (case.policy.link_rates, "the link")):
        for rule in rules:
            if rule.bytes_per_second == rate:
                return f"the cap of {whose}, {schedules.rate_text(rule.to_proto())},"
    if case.policy.link_rates:
        shares = schedules.rates_text(rule.to_proto() for rule in case.policy.link_rates)
        return f"the cap of {speed(rate)}, this host's share of the link's ({shares}),"
    return f"the cap of {speed(rate)} of host {case.source.host}"


def cap_remedies(case: Situation) -> tuple[str, ...]:
    if case.policy.vm_rates or case.policy.link_rates:
        return (
            f"raise the cap or shorten its hours: twinsite pair set {case.pair} --rate …, --link-rate … or --no-rates",
        )
    return (f"raise it: [transfer] rates in the host.toml of {case.source.host}",)
