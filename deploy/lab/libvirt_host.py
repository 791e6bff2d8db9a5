"""A KVM host of the laboratory: a machine with its own libvirtd, virtlogd and directories."""

import contextlib
import grp
import json
import os
import pwd
import shutil
import signal
import uuid
from pathlib import Path
from typing import Final

from deploy.lab.machine import LabFailed, Machine, find, run, until

# What libvirtd keeps, and where it looks for it.
_PLACES: Final = {
    "run": "/run",
    "lib": "/var/lib/libvirt",
    "etc": "/etc/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
_QEMU_CONF: Final = """\
security_driver = "none"
user = "root"
group = "root"
namespaces = [ ]
cgroup_controllers = [ ]
remember_owner = 0
"""
_LIBVIRTD_CONF: Final = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
listen_tls = 0
host_uuid = "{host_uuid}"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
_USER: Final = "libvirt-qemu"
_PROGRAMS: Final = {
    "libvirtd": "libvirt-daemon",
    "virtlogd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ip": "iproute2",
    "nsenter": "util-linux",
}


def _users() -> dict[str, str]:
    """What /etc/passwd and /etc/group must say where they lack the user that libvirtd asks for and never uses.

    The package that makes it would start daemons of this machine's own.
    """
    try:
        pwd.getpwnam(_USER)
        grp.getgrnam(_USER)
    except KeyError:
        passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
        return {
            "passwd": f"{passwd.rstrip()}\n{_USER}:x:64055:64055::/nonexistent:/usr/sbin/nologin\n",
            "group": f"{group.rstrip()}\n{_USER}:x:64055:\n",
        }
    return {}


def hindrance() -> str:
    """Why no such host can run here; empty: it can."""
    if os.geteuid():
        return "libvirt hosts of the laboratory need root: namespaces and mounts"
    missing = sorted({package for program, package in _PROGRAMS.items() if find(program) is None})
    return f"not installed: apt-get install {' '.join(missing)}" if missing else ""


class LibvirtHost:
    """Its directories are below `root` (a short path: it holds sockets). `held`: it ends when this process does."""

    def __init__(self, root: Path, name: str, *, held: bool = True) -> None:
        self.root, self.name = root, name
        binds: dict[Path, str] = {}
        for source, place in _PLACES.items():
            if not Path(place).is_dir():  # the package alone makes them; a folder of ours hides the one that lacks it
                binds[root / f"beside-{source}"] = str(Path(place).parent)
            binds[root / source] = place
        binds |= {root / name: f"/etc/{name}" for name in _users()}
        self.machine = Machine(name, binds=binds, held=held)

    @property
    def uri(self) -> str:
        """For any libvirt client of this machine."""
        return f"qemu+unix:///system?socket={self.root}/run/libvirt/libvirt-sock"

    @property
    def images(self) -> Path:
        """A folder for disks; its path is the same outside and inside."""
        return self.root / "images"

    def boot(self) -> None:
        """From nothing, or again after a power cut: what is defined is there still, nothing runs. Raises LabFailed."""
        shutil.rmtree(self.root / "run", ignore_errors=True)  # a boot finds /run empty
        for folder in (*(f"beside-{source}/libvirt" for source in _PLACES), *_PLACES, "images"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "run" / "lock").mkdir()
        for name, content in _users().items():
            (self.root / name).write_text(content)
        (self.root / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        config = self.root / "etc" / "libvirtd.conf"
        if not config.exists():
            config.write_text(_LIBVIRTD_CONF.format(host_uuid=uuid.uuid4()))
        self.machine.boot()
        (self.root / "pid").write_text(str(self.machine.pid))
        self.machine.run("virtlogd", "-d", "-p", "/run/virtlogd.pid")
        self.start_libvirtd()

    def resume(self) -> None:
        """Take over a host that another process booted without holding it."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.machine.pid = int((self.root / "pid").read_text())

    def power_off(self) -> None:
        """libvirtd, its guests, the network: gone at once. Files stay. Repeatable."""
        self.machine.power_off()

    def remove(self) -> None:
        """Without a trace, whatever state it is in; repeatable."""
        self.power_off()
        shutil.rmtree(self.root, ignore_errors=True)

    def start_libvirtd(self) -> None:
        """Returns when its socket answers."""
        self.machine.run("libvirtd", "-d", "-p", "/run/libvirtd.pid")

    def kill_libvirtd(self) -> None:
        """SIGKILL; guests run on."""
        pid = self._pid("libvirtd.pid")
        if pid is None:
            raise LabFailed(f"libvirtd of {self.name} does not run")
        self._kill(pid)
        (self.root / "run" / "libvirtd.pid").unlink(missing_ok=True)

    def restart_libvirtd(self) -> None:
        """In an orderly way; guests run on."""
        pid = self._pid("libvirtd.pid")
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            until("libvirtd to end", lambda: self._pid("libvirtd.pid") is None or None)
        self.start_libvirtd()

    def qemu_pid(self, name: str) -> int | None:
        """Of the QEMU process of a domain, as this machine counts; None: it does not run."""
        return self._pid(f"libvirt/qemu/{name}.pid")

    def kill_qemu(self, name: str) -> None:
        """SIGKILL, as the kernel does when memory is short; returns when it is dead."""
        pid = self.qemu_pid(name)
        if pid is None:
            raise LabFailed(f"domain {name} does not run on {self.name}")
        self._kill(pid)

    def virsh(self, *arguments: str, timeout: float = 60.0, check: bool = True) -> str:
        """What it wrote. Raises LabFailed."""
        return run("virsh", "-q", "-c", self.uri, *arguments, timeout=timeout, check=check).strip()

    def monitor(self, name: str, command: str) -> str:
        """The answer of a domain's QEMU monitor (HMP)."""
        return self.virsh("qemu-monitor-command", "--hmp", name, command)

    def qmp(self, name: str, command: str, **arguments: object) -> object:
        """The answer of a domain's QEMU (QMP). Raises LabFailed."""
        words = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        answer: dict[str, object] = json.loads(self.virsh("qemu-monitor-command", name, json.dumps(words)))
        if "return" not in answer:
            raise LabFailed(f"{command}: {answer.get('error')}")
        return answer["return"]

    def state(self, name: str) -> str:
        """`running`, `shut off`, `paused` …"""
        return self.virsh("domstate", name)

    def _pid(self, file: str) -> int | None:
        try:
            inside = int((self.root / "run" / file).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return self.machine.processes().get(inside)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(f"process {pid} to end", lambda: pid not in self.machine.processes().values() or None)
