"""Where a seed may be written and read: on media or a share, never on a hypervisor host itself.

A path on the file system that holds a host's VMs, replicas, state or root is that host's own disk; a network mount may
be another hypervisor's. Both are refused with the reason, before anything is read or written.
"""

import errno
import ipaddress
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from hyperv_host_agent.seeds.parts import PART_BYTES
from twinsite import units
from twinsite.errors import Conflict, Denied, Exhausted, NotFound, Precondition

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs", "fuse.sshfs", "fuse.glusterfs"}
)
_SERVER: Final = re.compile(r"(?://|(?:[^@/]*@)?)(\[[0-9A-Fa-f:.%]+\]|[^:/\[\]]+)")
_LOOP: Final = re.compile(r"/dev/(loop[0-9]+)")
_BLOCK: Final = Path("/sys/block")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class SeedPathMissing(NotFound):
    public = "{error.path} is no directory on host {error.host}"
    still_works = "nothing was changed"
    next_step = "mount the medium there, or name another path"

    def __init__(self, path: Path, host: str) -> None:
        self.path, self.host = path, host


class SeedPathDenied(Denied):
    public = "{error.path} cannot be {error.use} on host {error.host}: {error.reason}"
    still_works = "nothing was changed"
    next_step = "let the host agent's user in, or mount the medium so that it may"

    def __init__(self, path: Path, host: str, use: str, reason: str) -> None:
        self.path, self.host, self.use, self.reason = path, host, use, reason


class SeedPathOnHypervisor(Precondition):
    public = "{error.path} is on a hypervisor host: {error.why}"
    cause = "a seed is carried from site to site; on a hypervisor's own disk it takes the room of VMs, and goes nowhere"
    still_works = "nothing was changed"
    next_step = "name a path on removable media, or on a share that no hypervisor host serves"

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why


class SeedPathTooSmall(Exhausted):
    public = "{error.path} has {error.free_text} free, the seed may need {error.needed_text}"
    still_works = "nothing was written; replication goes on"
    next_step = "use a larger medium, or make room on it"

    def __init__(self, path: Path, free: int, needed: int) -> None:
        self.path, self.free, self.needed = path, free, needed

    @property
    def free_text(self) -> str:
        return units.size(self.free)

    @property
    def needed_text(self) -> str:
        return units.size(self.needed)


class SeedMediumFull(Exhausted):
    public = "{error.path} became full while the seed was written: {error.free_text} are free"
    still_works = "parts that are complete stay there; replication goes on"
    next_step = "make room on it, then run twinsite seed export again: it goes on where it was"

    def __init__(self, path: Path, free: int) -> None:
        self.path, self.free = path, free

    @property
    def free_text(self) -> str:
        return units.size(self.free)


class SeedPathTaken(Conflict):
    public = "{error.path} holds another seed of this VM: {error.folder}"
    cause = "it was exported for an earlier replication of the VM"
    still_works = "it was left as it is"
    next_step = "remove that folder, or name another path"

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.folder = path, folder


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the kernel's mount table."""

    point: Path
    kind: str  # of the file system
    source: str


class Surroundings(Protocol):
    """What of a host the rules look at. Blocking."""

    def device(self, path: Path) -> int:
        """The file system that a path is on. Raises OSError."""
        ...

    def mounts(self) -> Sequence[Mount]:
        """In the order they were made."""
        ...

    def beneath(self, source: str) -> Path | None:
        """The file that a mount's source is made of, when that is a loop device."""
        ...

    def addresses(self, name: str) -> frozenset[str]:
        """Of a host name or an address; empty when it is not known."""
        ...

    def here(self, address: str) -> bool:
        """Whether an address is one of this host's own."""
        ...

    def free(self, path: Path) -> int:
        """Bytes. Raises OSError."""
        ...


class Linux:
    """The host this program runs on."""

    def device(self, path: Path) -> int:
        return path.stat().st_dev

    def mounts(self) -> Sequence[Mount]:
        return parse_mounts(_MOUNTS.read_text(errors="surrogateescape"))

    def beneath(self, source: str) -> Path | None:
        match = _LOOP.match(source)
        try:
            return Path((_BLOCK / match[1] / "loop" / "backing_file").read_text().strip()) if match else None
        except OSError:
            return None

    def addresses(self, name: str) -> frozenset[str]:
        try:
            return frozenset(str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(name, None))
        except (OSError, UnicodeError):
            return frozenset()

    def here(self, address: str) -> bool:
        """An address can be bound to only where it is."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
        except OSError:
            return False
        return True

    def free(self, path: Path) -> int:
        return shutil.disk_usage(path).free


@dataclass(frozen=True, slots=True)
class Media:
    """What seeds are written to and read from: where that may be, and how large a file on it."""

    surroundings: Surroundings = field(default_factory=Linux)
    part_bytes: int = PART_BYTES


class PathRules:
    """`own`: the directories of this host that media must not share a file system with. Blocking."""

    def __init__(self, own: Iterable[Path], surroundings: Surroundings) -> None:
        self._own = (*own, Path("/"))
        self._around = surroundings

    def check_export(self, path: Path, host: str, hypervisors: Sequence[str]) -> None:
        """Raises SeedPathMissing, SeedPathDenied, SeedPathOnHypervisor."""
        self._check(path, host, hypervisors)
        try:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"twinsite")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise SeedPathTooSmall(path, 0, 1) from error
            raise SeedPathDenied(path, host, "written", error.strerror or str(error)) from error

    def check_import(self, path: Path, host: str, hypervisors: Sequence[str]) -> None:
        """Raises SeedPathMissing, SeedPathDenied, SeedPathOnHypervisor."""
        self._check(path, host, hypervisors)
        try:
            next(path.iterdir(), None)
        except OSError as error:
            raise SeedPathDenied(path, host, "read", error.strerror or str(error)) from error

    def free(self, path: Path) -> int:
        """Bytes. Raises OSError."""
        return self._around.free(path)

    def check_room(self, path: Path, needed: int) -> None:
        """Raises SeedPathTooSmall."""
        free = self._around.free(path)
        if free < needed:
            raise SeedPathTooSmall(path, free, needed)

    def _check(self, path: Path, host: str, hypervisors: Sequence[str]) -> None:
        try:
            missing = not path.is_absolute() or not path.is_dir()
        except (OSError, ValueError):  # a name that is too long, or holds a zero byte
            missing = True
        if missing:
            raise SeedPathMissing(path, host)
        path = path.resolve()
        self._check_device(path, path, host)
        mount = _mount_of(path, self._around.mounts())
        if mount is not None and mount.kind in _NETWORK:
            self._check_server(path, mount, hypervisors)
        beneath = self._around.beneath(mount.source) if mount is not None else None
        if beneath is not None and beneath.exists():
            self._check_device(path, beneath, host)

    def _check_device(self, path: Path, where: Path, host: str) -> None:
        device = self._around.device(where)
        for own in self._own:
            if own.exists() and self._around.device(own) == device:
                raise SeedPathOnHypervisor(path, f"it shares the file system of {own} on host {host}")

    def _check_server(self, path: Path, mount: Mount, hypervisors: Sequence[str]) -> None:
        server = server_of(mount.source)
        addresses = self._around.addresses(server) | {server.casefold()}
        for address in addresses:
            if _is_address(address) and (ipaddress.ip_address(address).is_loopback or self._around.here(address)):
                raise SeedPathOnHypervisor(path, f"{mount.source} is served by this host")
        for named in map(host_of, hypervisors):
            if addresses & (self._around.addresses(named) | {named.casefold()}):
                raise SeedPathOnHypervisor(path, f"{mount.source} is served by {named}")


def parse_mounts(text: str) -> list[Mount]:
    """Of /proc/self/mountinfo; lines of another form are left out."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) >= 5 and len(rest) >= 2:
            found.append(Mount(Path(_unescaped(fields[4])), rest[0], _unescaped(rest[1])))
    return found


def server_of(source: str) -> str:
    """The host in the source of a network mount: ``nas:/export``, ``//nas/share``, ``me@nas:/x``, ``[fd00::1]:/x``."""
    match = _SERVER.match(source)
    return match[1].strip("[]") if match else source


def host_of(address: str) -> str:
    """The host of an address with or without a port."""
    if _is_address(address):
        return address
    host, colon, port = address.rpartition(":")
    return (host if colon and port.isdigit() else address).strip("[]")


def _mount_of(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """The mount a path is on: the longest mount point above it, of two at one place the later."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    deepest = max((len(mount.point.parts) for mount in above), default=0)
    return next((mount for mount in reversed(above) if len(mount.point.parts) == deepest), None)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
