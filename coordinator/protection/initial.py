"""How the first copy of a VM comes to the target, as it was asked for. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from coordinator.inventory.model import instant
from coordinator.protection.errors import (
    InvalidPath,
    InvalidStart,
    NoSuchDisk,
    SeedAndImage,
    UnknownMethod,
)
from coordinator.protection.model import START_AHEAD
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.units import duration, rfc3339

LONGEST_PATH: Final = 4096
_SLACK: Final = 120.0  # seconds between what a person meant by "now" and its arrival here; clocks differ, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Initial:
    """The wish of whoever protects."""

    offline: bool = False
    start: float = 0.0  # seconds since 1970; 0: at once
    images: Mapping[str, str] = field(default_factory=dict)  # disk, by name or id → image file at the target

    @classmethod
    def from_proto(cls, request: admin_pb2.ProtectRequest) -> "Initial":
        """Raises UnknownMethod, InvalidStart, InvalidPath, SeedAndImage."""
        wanted = request.initial
        if wanted.method not in types_pb2.InitialReplication.Method.values():
            raise UnknownMethod(wanted.method)
        offline = wanted.method == types_pb2.InitialReplication.METHOD_OFFLINE
        start = instant(wanted.start_at)
        if wanted.HasField("start_at") and not start:
            raise InvalidStart("it is no instant of this century")
        images = {disk: good_path(path) for disk, path in request.existing.items()}
        if offline and images:
            raise SeedAndImage
        return cls(offline=offline, start=start, images=images)

    def begins(self, now: float) -> float:
        """When, as an instant; 0: at once. Raises InvalidStart."""
        if not self.start:
            return 0.0
        if self.start < now - _SLACK:
            raise InvalidStart(f"it is {duration(now - self.start)} ago")
        if self.start > now + START_AHEAD + _SLACK:
            raise InvalidStart(f"it is {duration(self.start - now)} ahead, {duration(START_AHEAD)} is the most")
        return self.start if self.start > now else 0.0

    def existing(self, disks: Sequence[types_pb2.Disk]) -> tuple[tuple[str, str], ...]:
        """(disk id, image) in the order of ids. Raises NoSuchDisk when a word means no disk, or two."""
        found: dict[str, str] = {}
        for word, path in self.images.items():
            meant = [disk.id for disk in disks if word in (disk.id, disk.name)]
            if len(meant) != 1 or meant[0] in found:
                raise NoSuchDisk(word, [disk.name or disk.id for disk in disks], several=bool(meant))
            found[meant[0]] = path
        return tuple(sorted(found.items()))

    def consequences(self, vm: str, target: str, now: float, disks: Sequence[types_pb2.Disk]) -> list[str]:
        names = {disk.id: disk.name or disk.id for disk in disks}
        begins, found = self.begins(now), []
        if begins:
            when = f"{rfc3339(begins)}, in {duration(begins - now)}"
            found.append(f"the initial replication of {vm} begins at {when}; nothing is tracked or sent before")
        if self.offline:
            found.append("its initial copy comes on media: twinsite seed export, carry it, twinsite seed import")
            found.append("what changes meanwhile is replicated; there is no recovery point before the import")
        for disk, path in self.existing(disks):
            found.append(
                f"disk {names[disk]} begins as {path} of host {target}, which stays as it is: what differs is sent"
            )
        return found


def good_path(path: str) -> str:
    """An absolute path without tricks, as it came. Raises InvalidPath."""
    parts = PurePosixPath(path).parts
    if not 0 < len(path) <= LONGEST_PATH or not path.isprintable() or parts[:1] != ("/",) or ".." in parts:
        raise InvalidPath(path)
    return path
