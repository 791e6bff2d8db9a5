"""A coordinator that is down for minutes, or a provider, does not stop replication."""

import pytest

from demo.lab import Lab, until
from tests.system.promises import fail_over, guest_at, new_point, nothing_of_the_point_is_lost
from twinsite.units import MiB

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def cycles_at(lab: Lab) -> int:
    """Committed cycles as the target's own files tell them."""
    return max((int(p.stem) for p in (lab.root / "host-b" / "store").glob("*/points/*.json")), default=0)


def test_cycles_go_on_while_coordinator_and_providers_are_down(lab: Lab) -> None:
    lab.cli("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
    for name in ("coordinator", "provider-a", "provider-b"):
        lab[name].kill()
    before = cycles_at(lab)
    until("ten more cycles", lambda: cycles_at(lab) >= before + 10 or None, timeout=120, every=0.5)

    # A host that is restarted meanwhile goes on as well: it knows its assignments.
    lab["host-a"].kill()
    lab["host-a"].start()
    before = cycles_at(lab)
    until("cycles of the restarted host", lambda: cycles_at(lab) >= before + 3 or None, timeout=60, every=0.5)

    for name in ("coordinator", "provider-a", "provider-b"):
        lab[name].start()
    until("the coordinator to know the newest point", lambda: new_point(lab) >= before, timeout=60)
    nothing_of_the_point_is_lost(lab, guest_at(lab, "a"), fail_over(lab))


def test_the_agents_stay_small(lab: Lab) -> None:
    lab.cli("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
    new_point(lab)
    for name in ("host-a", "host-b"):
        assert lab[name].peak_memory() <= 150 * MiB + 64 * MiB, name
