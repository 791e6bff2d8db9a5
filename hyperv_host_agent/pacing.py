"""The rate caps of this host's transfers: of one VM, of all VMs to one peer host, of the host."""

import time
from asyncio import Lock
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hyperv_host_agent.replication import rates
from hyperv_host_agent.replication.rates import Bucket, Rule
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock

_LOOK_SECONDS: Final = 0.5  # between two looks at calendar and policy while a message waits, and while none does


class Cap:
    """One cap, for any number of transfers; they are let through in the order they came."""

    def __init__(self, rules: Callable[[], Iterable[Sequence[Rule]]], clock: Clock) -> None:
        """`rules`: of everyone who has a say; the least of their caps holds."""
        self._rules = rules
        self._clock = clock
        self._bucket = Bucket()
        self._turn = Lock()
        self._looked = float("-inf")

    @property
    def rate(self) -> int:
        """Bytes a second that hold now, 0: no cap."""
        now = self._clock.monotonic()
        if now >= self._looked + _LOOK_SECONDS:
            self.look()
        return self._bucket.rate

    def look(self) -> None:
        """What the rules say now counts from now on."""
        self._looked = self._clock.monotonic()
        local = time.localtime(self._clock.now())
        minute = local.tm_hour * 60 + local.tm_min
        rate = rates.least(rates.cap(rules, local.tm_wday, minute) for rules in self._rules())
        if rate != self._bucket.rate:
            self._bucket.set(rate, self._looked)

    async def through(self, count: int) -> None:
        """Wait until `count` bytes may go."""
        if not self.rate:
            return
        async with self._turn:
            while self.rate and (wait := self._bucket.wait(self._clock.monotonic())):
                await self._clock.sleep(min(wait, _LOOK_SECONDS))
            self._bucket.take(count, self._clock.monotonic())


class Pacer:
    """What holds one VM's messages back."""

    def __init__(self, pacing: "Pacing", clock: Clock) -> None:
        self.rules: tuple[Rule, ...] = ()
        self.link_rules: tuple[Rule, ...] = ()
        self.seconds = 0.0  # waited, in all
        self._pacing = pacing
        self._clock = clock
        self._own = Cap(lambda: (self.rules,), clock)
        self._caps: tuple[Cap, ...] = ()

    @property
    def rate(self) -> int:
        """The least cap that holds now in bytes a second, 0: none."""
        return rates.least(cap.rate for cap in self._caps)

    def change(self, policy: types_pb2.Policy, peer: str) -> None:
        """Counts at once, also for a message that waits."""
        self.rules, self.link_rules = rules_of(policy.vm_rates), rules_of(policy.link_rates)
        shared = self._pacing.joined(self, peer)
        self._caps = (self._own, *shared)
        for cap in self._caps:
            cap.look()

    async def through(self, count: int) -> None:
        """Wait until a message of so many bytes may go."""
        if not self._pacing.capped:
            return
        started = self._clock.monotonic()
        for cap in self._caps:
            await cap.through(count)
        self.seconds += self._clock.monotonic() - started

    def close(self) -> None:
        self._pacing.left(self)


class Pacing:
    """Of this host. `rules` are the host's own."""

    def __init__(self, rules: Sequence[Rule], clock: Clock) -> None:
        self._rules = tuple(rules)
        self._clock = clock
        self._host = Cap(lambda: (self._rules,), clock)
        self._links: dict[str, tuple[Cap, set[Pacer]]] = {}
        self.capped = bool(rules)  # somebody has a rule; without one nothing is ever asked

    def pacer(self) -> Pacer:
        return Pacer(self, self._clock)

    def joined(self, pacer: Pacer, peer: str) -> tuple[Cap, Cap]:
        """The caps a VM that goes to `peer` shares with others."""
        self._leave(pacer)
        link, members = self._links.setdefault(peer, self._link())
        members.add(pacer)
        self._count()
        return link, self._host

    def left(self, pacer: Pacer) -> None:
        self._leave(pacer)
        self._count()

    def _leave(self, pacer: Pacer) -> None:
        for _, members in self._links.values():
            members.discard(pacer)

    def _count(self) -> None:
        everyone = (pacer for _, members in self._links.values() for pacer in members)
        self.capped = bool(self._rules) or any(pacer.rules or pacer.link_rules for pacer in everyone)

    def _link(self) -> tuple[Cap, set[Pacer]]:
        members: set[Pacer] = set()
        return Cap(lambda: [pacer.link_rules for pacer in members], self._clock), members


def rules_of(given: Iterable[types_pb2.RateRule]) -> tuple[Rule, ...]:
    """Rules of a policy; one that makes no sense caps nothing, the coordinator refuses it."""
    made = (Rule(rule.days, rule.from_minute, rule.to_minute, rule.bytes_per_second) for rule in given)
    return tuple(rule for rule in made if not rates.problem(rule))
