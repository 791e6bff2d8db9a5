"""Stopping a VM: the guest agent is asked, then the power button is pressed, then the power is cut."""

import contextlib
import threading
from typing import Final

from hyperv_host_agent.hypervisors.base import MachineFailed
from hyperv_host_agent.hypervisors.libvirt.domain import Domain, State
from hyperv_host_agent.hypervisors.libvirt.errors import AgentSilent, Busy, LibvirtFailed, NotThere
from twinsite.clock import SystemClock

_LOOK_SECONDS: Final = 0.1
_CUT_SECONDS: Final = 60.0  # QEMU stores its bitmaps; another job's lock is given up after 30
_AGENT_SHARE: Final = 0.5  # of the time there is; the rest is the power button's
_AGENT_ANSWER: Final = 5  # seconds

_CLOCK: Final = SystemClock()


def stop(domain: Domain, timeout: float) -> None:
    """Returns when no QEMU process is left. `timeout` seconds are the guest's. Raises MachineFailed."""
    with contextlib.suppress(NotThere):  # a VM that is not persistent is gone when it is off
        if timeout > 0 and domain.state()[0] in {State.RUNNING, State.BLOCKED, State.SHUTTING_DOWN}:
            deadline = _CLOCK.monotonic() + timeout
            if _ask(domain, "guest_agent") and _off(domain, deadline - timeout * (1 - _AGENT_SHARE)):
                return
            if _ask(domain, "acpi_power_btn") and _off(domain, deadline):
                return
        _cut(domain)


def cut(domain: Domain) -> None:
    """At once, without asking the guest. Raises MachineFailed."""
    with contextlib.suppress(NotThere):
        _cut(domain)


def _ask(domain: Domain, mode: str) -> bool:
    try:
        if mode == "guest_agent":  # libvirt would wait a minute for one that hangs
            domain.agent({"execute": "guest-ping"}, _AGENT_ANSWER)
        domain.shutdown(mode)
    except (AgentSilent, LibvirtFailed, Busy):
        return False
    return True


def _off(domain: Domain, deadline: float) -> bool:
    while domain.is_active():
        if _CLOCK.monotonic() >= deadline:
            return False
        threading.Event().wait(_LOOK_SECONDS)
    return True


def _cut(domain: Domain) -> None:
    deadline = _CLOCK.monotonic() + _CUT_SECONDS
    problem = ""
    while domain.is_active():
        try:
            domain.destroy()
        except (Busy, LibvirtFailed) as error:  # it went off in this moment, or a job holds it
            problem = error.problem
        if not domain.is_active():
            return
        if _CLOCK.monotonic() >= deadline:
            raise MachineFailed(domain.uuid, f"it cannot be stopped: {problem}")
        threading.Event().wait(_LOOK_SECONDS)
