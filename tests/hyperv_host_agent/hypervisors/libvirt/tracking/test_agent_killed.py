"""An agent killed at any moment leaves its guest alone, and the next one loses no change and leaves no trace."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from deploy.lab.machine import until
from hyperv_host_agent.changes.base import Anchor, Tracking
from tests.fakes import libvirt_agent_program
from tests.fakes.libvirt_tracked import TrackedDomain
from twinsite.extents import CLUSTER
from twinsite.units import MiB


def killed_after(tracked: TrackedDomain, seconds: float, consistency: str = "crash") -> None:
    """An agent of the VM, SIGKILLed so long after it began with its cycles."""
    places, file = tracked.places, tracked.host.root / "replica"
    command = [sys.executable, "-m", libvirt_agent_program.__name__, tracked.host.uri, tracked.guest.uuid]
    folders = [str(places.state), str(places.run), str(places.scratch), str(file), consistency]
    with subprocess.Popen([*command, *folders], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"cycle\n"
        threading.Event().wait(seconds)  # the moment is the test
        agent.kill()


@pytest.mark.parametrize("power", ["running", "stopped"])
def test_nothing_is_lost_or_left_whenever_the_agent_is_killed(tracked: Callable[..., TrackedDomain], power: str):
    made = tracked(disks={"vda": 2 * MiB, "vdb": 1 * MiB + 512})
    if power == "running":
        made.guest.start()
    dice = random.Random(7)
    file = made.host.root / "replica"
    file.unlink(missing_ok=True)
    for value in range(1, 9):
        if power == "running":
            made.guest.write("vda", value, dice.randrange(31) * CLUSTER, CLUSTER)
            made.guest.write("vdb", value, dice.randrange(16) * CLUSTER, 512)
        killed_after(made, dice.random() * 0.8)
        made.source = made.new_source()
        made.source.start()
        if power == "running":
            assert made.host.state(made.guest.name) == "running"
            assert made.domain().job() is None
        number, identifier, replica = libvirt_agent_program.load(file)
        if not number:
            continue
        made.source.ack(number, identifier)  # it may have been killed in between
        assert made.source.status() == (Anchor(number, identifier), Tracking.OK)
        assert len(made.cycle(number + 1, replica)) == 0
        assert made.same(replica)
        anchor, _ = made.source.status()
        assert anchor is not None
        file.write_bytes(libvirt_agent_program.pickle.dumps((number + 1, anchor.id, replica)))
        until("servers to end", lambda: made.leftovers() == [] or None)
