"""What counts as a problem and which is worse. No I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coordinator.inventory.servers import ServerView
from coordinator.protection.health import CRITICAL, NORMAL, PAUSED, UNKNOWN, WARNING, WORST_FIRST
from coordinator.protection.views import VmView
from twinsite.units import duration


@dataclass(frozen=True, slots=True)
class Problem:
    rank: int  # 0 is worst
    sentence: str


def problems(servers: Iterable[ServerView], vms: Sequence[VmView], now: float) -> list[str]:
    """A sentence for each thing that is not as it should be, worst first; equal ones by their text."""
    found = [*_of_servers(servers, now), *_of_vms(vms)]
    return [problem.sentence for problem in sorted(found, key=lambda problem: (problem.rank, problem.sentence))]


def by_health(vms: Iterable[VmView]) -> Counter[str]:
    return Counter(vm.protection.health.health for vm in vms if vm.protection is not None)


def _of_vms(vms: Iterable[VmView]) -> list[Problem]:
    found = []
    for vm in vms:
        if vm.protection is None:
            continue
        health = vm.protection.health
        if health.health != NORMAL:
            rank = WORST_FIRST.index(health.health)
            found.append(Problem(rank, f"VM {vm.name}: {health.health}: {health.reason}"))
        if not vm.machine.present and vm.protection.item.owner_host == vm.machine.host.id:
            found.append(Problem(WORST_FIRST.index(WARNING), f"VM {vm.name} is not reported by its host any more"))
    return found


def _of_servers(servers: Iterable[ServerView], now: float) -> list[Problem]:
    found = []
    for view in servers:
        if view.server.state != "active":
            sentence = f"server {view.name} is {view.server.state}: remove it and register it again"
            found.append(Problem(WORST_FIRST.index(CRITICAL), sentence))
            continue
        if view.link is None:
            found.append(Problem(WORST_FIRST.index(PAUSED), f"server {view.name} has not connected yet"))
            continue
        if not view.link.connected:
            silent = duration(max(0.0, now - view.link.last_seen))
            # Whether its site burns or only its line is cut is not to be seen from here.
            sentence = f"server {view.name} is not connected for {silent}; hosts of it that run replicate without it"
            found.append(Problem(WORST_FIRST.index(UNKNOWN), sentence))
            continue
        found.extend(
            Problem(WORST_FIRST.index(WARNING), f"host {host.name} is not connected to server {view.name}")
            for host in view.hosts
            if not host.connected
        )
    return found
