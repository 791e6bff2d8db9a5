"""The manifest of a point: what it is, and for each disk the chain of layer files it stands on.

One JSON document per point, `points/000042.json`, sealed with its own digest. Its rename is what commits a cycle for
all disks. Every manifest names its whole chain, so points do not need one another.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry
from hyperv_host_agent.store import files, rules
from hyperv_host_agent.store.base import BadName, PointInfo, StoreDamaged

POINTS: Final = "points"
FORMAT: Final = 1
_LAYER_NAME = re.compile(r"[0-9]{6,12}\.qcow2")
_POINT_NAME = re.compile(r"[0-9]{6,12}\.json")


@dataclass(frozen=True, slots=True)
class LayerRef:
    """One layer file of one disk."""

    file: str
    size: int  # bytes of the disk at this layer
    clusters: int  # data and zero clusters in it
    stored_bytes: int  # of its frames
    digest: bytes  # of its side file

    @property
    def cycle(self) -> int:
        """The newest cycle in it."""
        return layer_cycle(self.file)

    def to_json(self) -> list[object]:
        return [self.file, self.size, self.clusters, self.stored_bytes, self.digest.hex()]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises ValueError, TypeError."""
        file, size, clusters, stored_bytes, digest = value
        if not _LAYER_NAME.fullmatch(file):
            raise ValueError(f"{file!r} is no layer file")
        return cls(file, int(size), int(clusters), int(stored_bytes), bytes.fromhex(digest))


@dataclass(frozen=True, slots=True)
class DiskRef:
    """One disk at a point: oldest layer first."""

    geometry: DiskGeometry
    layers: tuple[LayerRef, ...]

    def merged(self, group: tuple[str, ...], into: LayerRef) -> Self:
        """The same disk after the layers of `group` became one; itself when it does not stand on all of them."""
        names = [layer.file for layer in self.layers]
        for start in range(len(names) - len(group) + 1):
            if tuple(names[start : start + len(group)]) == group:
                return replace(self, layers=(*self.layers[:start], into, *self.layers[start + len(group) :]))
        return self


@dataclass(frozen=True, slots=True)
class Manifest:
    vm_id: str
    cycle: int
    id: bytes
    parent: int
    instant: float
    consistency: str
    term: int
    machine: bytes
    clusters: int
    stored_bytes: int
    disks: tuple[DiskRef, ...]
    placeholder: bool = False  # its layers hold nothing yet: their content comes on media

    @classmethod
    def of(cls, header: CycleHeader, disks: tuple[DiskRef, ...], *, clusters: int, stored_bytes: int) -> Self:
        """What a finished cycle commits."""
        return cls(
            vm_id=header.vm_id,
            cycle=header.number,
            id=header.id,
            parent=header.parent,
            instant=header.instant,
            consistency=header.consistency,
            term=header.term,
            machine=header.machine,
            clusters=clusters,
            stored_bytes=stored_bytes,
            disks=disks,
            placeholder=header.placeholder,
        )

    def disk(self, disk_id: str) -> DiskRef | None:
        return next((disk for disk in self.disks if disk.geometry.id == disk_id), None)

    def merged(self, disk_id: str, group: tuple[str, ...], into: LayerRef) -> Self:
        """The same point after layers of one disk became one; equal to itself when that does not concern it."""
        disks = tuple(disk.merged(group, into) if disk.geometry.id == disk_id else disk for disk in self.disks)
        return replace(self, disks=disks)

    def info(self, pinned_by: tuple[str, ...]) -> PointInfo:
        return PointInfo(
            cycle=self.cycle,
            id=self.id,
            parent=self.parent,
            instant=self.instant,
            consistency=self.consistency,
            term=self.term,
            machine=self.machine,
            disks=tuple(disk.geometry for disk in self.disks),
            clusters=self.clusters,
            stored_bytes=self.stored_bytes,
            pinned_by=pinned_by,
        )

    def encode(self) -> bytes:
        return files.seal(
            {
                "format": FORMAT,
                "vm": self.vm_id,
                "cycle": self.cycle,
                "id": self.id.hex(),
                "parent": self.parent,
                "instant": self.instant,
                "consistency": self.consistency,
                "term": self.term,
                "machine": b64encode(self.machine).decode(),
                "clusters": self.clusters,
                "bytes": self.stored_bytes,
                "placeholder": self.placeholder,
                "disks": [
                    {
                        "id": disk.geometry.id,
                        "name": disk.geometry.name,
                        "size": disk.geometry.size,
                        "layers": [layer.to_json() for layer in disk.layers],
                    }
                    for disk in self.disks
                ],
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError."""
        document = files.unseal(data)
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"has format {document['format']}")
            disks = tuple(
                DiskRef(
                    DiskGeometry(rules.check_id("disk", disk["id"]), disk["size"], disk["name"]),
                    tuple(LayerRef.from_json(layer) for layer in disk["layers"]),
                )
                for disk in document["disks"]
            )
            return cls(
                vm_id=document["vm"],
                cycle=document["cycle"],
                id=bytes.fromhex(document["id"]),
                parent=document["parent"],
                instant=document["instant"],
                consistency=document["consistency"],
                term=document["term"],
                machine=b64decode(document["machine"]),
                clusters=document["clusters"],
                stored_bytes=document["bytes"],
                disks=disks,
                placeholder=document["placeholder"],
            )
        except (KeyError, TypeError, BadName) as error:
            raise ValueError(f"is malformed: {error}") from error


def layer_name(cycle: int) -> str:
    """The file a cycle's layer has in its disk's directory."""
    return f"{cycle:06}.qcow2"


def layer_cycle(file: str) -> int:
    """The newest cycle in a layer file."""
    return int(file.removesuffix(".qcow2"))


def point_path(directory: Path, cycle: int) -> Path:
    """Where the manifest of a point is in the replica's directory."""
    return directory / POINTS / f"{cycle:06}.json"


def load(directory: Path, vm_id: str) -> dict[int, Manifest]:
    """All manifests of a replica, by cycle, oldest first. Raises StoreDamaged naming the file."""
    found = {}
    for path in sorted((directory / POINTS).iterdir()):
        if not _POINT_NAME.fullmatch(path.name):
            continue
        try:
            manifest = Manifest.decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreDamaged(vm_id, f"manifest {path.name} {error}") from error
        if manifest.vm_id != vm_id or point_path(directory, manifest.cycle) != path:
            raise StoreDamaged(vm_id, f"manifest {path.name} is of cycle {manifest.cycle} of VM {manifest.vm_id}")
        if not 0 <= manifest.parent < manifest.cycle:
            raise StoreDamaged(vm_id, f"manifest {path.name} names cycle {manifest.parent} as its parent")
        found[manifest.cycle] = manifest
    return dict(sorted(found.items()))
