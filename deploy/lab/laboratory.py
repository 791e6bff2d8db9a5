"""The laboratory that stays: it is brought up by one command and ended by another."""

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Final

from demo.lab import CommandFailed, Lab
from demo.libvirt_sites import LibvirtSites
from demo.process import ProgramFailed
from deploy.lab.hosts import Hosts, running_below
from deploy.lab.machine import LabFailed, until

VM: Final = "web01"
_FREQUENCY: Final = "5s"


def up(root: Path, number: int) -> str:
    """What to do with it, for people. Raises LabFailed; then nothing of it is left."""
    if root.exists():
        raise LabFailed(f"there is a laboratory in {root} already: make lab-down")
    with contextlib.ExitStack() as undo:
        undo.callback(down, root)
        lab = Lab(root)
        sites = LibvirtSites(lab, held=False, number=number)
        try:
            source, _ = sites.prepare(VM, None)
            source.start()
            where = source.answers()
            lab.up(frequency=_FREQUENCY)
            until("the VM to be seen", lambda: any(v["name"] == VM for v in lab.json("vm", "list")["items"]) or None)
            lab.cli("vm", "protect", VM, "--pair", "gold-a:gold-b", "-y")
        except (ProgramFailed, CommandFailed) as error:
            raise LabFailed(str(error)) from error
        hosts = list(Hosts.found(root / "sites"))
        undo.pop_all()
    lines = [f"{VM} {where} of host-a and is replicated to host-b every {_FREQUENCY}. Explore:"]
    lines += [f"  virsh -c '{host.uri}' list --all        # {host.name}" for host in hosts]
    lines += [
        f"  {' '.join(hosts[0].machine.inside('bash'))}        # a shell on host-a",
        f"  export TWINSITE_HOME={lab.root}/login PATH={Path('.venv/bin').absolute()}:$PATH",
        f"  twinsite vm show {VM}",
        "End it: make lab-down",
    ]
    return "\n".join(lines)


def status(root: Path) -> str:
    """A line for each host and each of its domains."""
    lines = []
    for host in Hosts.found(root / "sites"):
        lines.append(f"{host.name}: {'up' if host.machine.up else 'down'}")
        if host.machine.up:
            lines += [f"  {name}: {host.state(name)}" for name in host.virsh("list", "--all", "--name").split()]
    return "\n".join(lines) or f"there is no laboratory in {root}"


def down(root: Path) -> None:
    """Processes, namespaces with all that is in them, files; repeatable. Raises LabFailed when something stays."""
    Hosts.found(root / "sites").remove()
    for pid in running_below(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until("the laboratory's processes to end", lambda: not running_below(root) or None)
    shutil.rmtree(root, ignore_errors=True)
    if root.exists():
        raise LabFailed(f"{root} cannot be removed")
