"""The laboratory that stays: it is brought up by one command and ended by another."""

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Final

from deploy.lab import guest_image
from deploy.lab.accelerator import accelerator
from deploy.lab.guest import Guest
from deploy.lab.hosts import LAN, Hosts, running_below
from deploy.lab.machine import LabFailed, until
from twinsite.units import MiB

VM: Final = "web01"
_DISKS: Final = {"vda": 256 * MiB, "vdb": 256 * MiB}


def up(root: Path, number: int) -> str:
    """What to do with it, for people. Raises LabFailed; then nothing of it is left."""
    if root.exists():
        raise LabFailed(f"there is a laboratory in {root} already: make lab-down")
    with contextlib.ExitStack() as undo:
        undo.callback(down, root)
        hosts = Hosts(root, held=False)
        hosts.boot(number)
        image = guest_image.build()
        made = Guest.define(
            hosts["a"], image, VM, network=hosts.network("a", LAN), sizes=_DISKS, accelerator=accelerator(image)
        ).up()
        address = made.address(hosts.network("a", LAN))
        undo.pop_all()
    lines = [f"virsh -c '{host.uri}' list --all        # {host.name}" for host in hosts]
    lines += [
        f"{' '.join(hosts['a'].machine.inside('bash'))}        # a shell on host-a; the guest is http://{address}/log",
        "make lab-down",
    ]
    return "\n".join(lines)


def status(root: Path) -> str:
    """A line for each host and each of its domains."""
    lines = []
    for host in Hosts.found(root):
        lines.append(f"{host.name}: {'up' if host.machine.up else 'down'}")
        if host.machine.up:
            lines += [f"  {name}: {host.state(name)}" for name in host.virsh("list", "--all", "--name").split()]
    return "\n".join(lines) or f"there is no laboratory in {root}"


def down(root: Path) -> None:
    """Processes, namespaces with all that is in them, files; repeatable. Raises LabFailed when something stays."""
    Hosts.found(root).remove()
    for pid in running_below(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until("the laboratory's processes to end", lambda: not running_below(root) or None)
    shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        raise LabFailed(f"{root} cannot be removed")
