"""What a guest says of itself through its agent, and what it is told."""

import base64
import ipaddress
import threading
from collections.abc import Sequence
from typing import Any, Final

from hyperv_host_agent.hypervisors.base import Address, Guest, MachineFailed
from hyperv_host_agent.hypervisors.libvirt import tree
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.errors import AgentSilent, Busy, LibvirtFailed
from twinsite.clock import SystemClock

_AGENT: Final = "org.qemu.guest_agent.0"
_ANSWER_SECONDS: Final = 3
_COMMAND_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1

_CLOCK: Final = SystemClock()


def look(domain: Domain) -> Guest | None:
    """None: the VM has no device for an agent."""
    ports = tree.devices(tree.parse(domain.xml()), "channel")
    if not any(tree.get(port.find("target"), "name") == _AGENT for port in ports):
        return None
    try:
        domain.agent({"execute": "guest-ping"}, _ANSWER_SECONDS)
        hostname = domain.agent({"execute": "guest-get-host-name"}, _ANSWER_SECONDS)["host-name"]
        return Guest(answers=True, hostname=str(hostname), addresses=_addresses(_interfaces(domain)))
    except (AgentSilent, Busy, LibvirtFailed):
        return Guest(answers=False)


def set_address(domain: Domain, wanted: Address) -> None:
    """With the guest's `ip`, until its next boot. Raises MachineFailed, AgentSilent."""
    name = next(
        (
            str(interface["name"])
            for interface in _interfaces(domain)
            if str(interface.get("hardware-address", "")).lower() == wanted.mac.lower()
        ),
        "",
    )
    if not name:
        raise MachineFailed(domain.uuid, f"its guest has no interface {wanted.mac}")
    family = ["-6"] if ":" in wanted.address else []
    _run(domain, ["ip", *family, "address", "replace", wanted.address, "dev", name])
    _run(domain, ["ip", "link", "set", "dev", name, "up"])
    if wanted.gateway:
        _run(domain, ["ip", *family, "route", "replace", "default", "via", wanted.gateway, "dev", name])


def _interfaces(domain: Domain) -> list[dict[str, Any]]:
    found = domain.agent({"execute": "guest-network-get-interfaces"}, _ANSWER_SECONDS)
    return [interface for interface in found if isinstance(interface, dict) and "name" in interface]


def _addresses(interfaces: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Those by which others reach it."""
    found = []
    for interface in interfaces:
        for told in interface.get("ip-addresses", ()):
            try:
                address = ipaddress.ip_interface(f"{told['ip-address']}/{told['prefix']}")
            except (KeyError, ValueError):
                continue  # a guest may say anything
            if not address.is_loopback and not address.is_link_local:
                found.append(str(address))
    return tuple(found)


def _run(domain: Domain, command: Sequence[str]) -> None:
    """Raises MachineFailed when the guest has no such command, when it fails, or does not end."""
    path, *arguments = command
    order = {"path": path, "arg": arguments, "capture-output": True}
    shown = " ".join(command)
    try:
        pid = domain.agent({"execute": "guest-exec", "arguments": order}, _ANSWER_SECONDS)["pid"]
        deadline = _CLOCK.monotonic() + _COMMAND_SECONDS
        asked = {"execute": "guest-exec-status", "arguments": {"pid": pid}}
        while not (status := domain.agent(asked, _ANSWER_SECONDS))["exited"]:
            if _CLOCK.monotonic() > deadline:
                raise MachineFailed(domain.uuid, f"its guest did not end {shown!r}")
            threading.Event().wait(_LOOK_SECONDS)
    except LibvirtFailed as error:  # guest agents of some distributions may not run commands
        raise MachineFailed(domain.uuid, f"its guest does not run {shown!r}: {error.problem}") from error
    if status.get("exitcode", 0):
        said = base64.b64decode(status.get("err-data", "")).decode(errors="replace").strip()
        raise MachineFailed(domain.uuid, f"{shown!r} failed in its guest: {said or status['exitcode']}")
