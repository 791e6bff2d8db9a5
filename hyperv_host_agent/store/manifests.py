"""The manifest of a point: what it is, and for each disk its size and which cycle last changed it.

One JSON document per point, `points/000042.json`, sealed with its own digest. Its rename is what commits a cycle for
all disks. It also names the layers that its cycle brought; where their content is later, after merges, is for
`chains.py` to tell: so a merge rewrites one document, however many points there are.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry
from hyperv_host_agent.store import files, rules
from hyperv_host_agent.store.base import BadName, PointInfo, StoreDamaged

POINTS: Final = "points"
FORMAT: Final = 2
_LAYER_NAME = re.compile(r"[0-9]{6,12}\.qcow2")
_POINT_NAME = re.compile(r"[0-9]{6,12}\.json")


@dataclass(frozen=True, slots=True)
class LayerRef:
    """One layer file of one disk."""

    file: str
    backing: str | None  # the layer it stands on; None: the first one of the disk
    size: int  # bytes of the disk at this layer
    clusters: int  # data and zero clusters in it
    stored_bytes: int  # of its frames
    digest: bytes  # of its side file
    points: tuple[int, ...] = ()  # cycles before its newest whose content can still be had from it, ascending

    @property
    def cycle(self) -> int:
        """The newest cycle in it."""
        return layer_cycle(self.file)

    def to_json(self) -> dict[str, object]:
        return {
            "file": self.file,
            "backing": self.backing,
            "size": self.size,
            "clusters": self.clusters,
            "bytes": self.stored_bytes,
            "digest": self.digest.hex(),
            "points": list(self.points),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises ValueError, TypeError, KeyError."""
        file, backing = value["file"], value["backing"]
        for name in (file, backing):
            if name is not None and not _LAYER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no layer file")
        points = tuple(map(int, value["points"]))
        if points != tuple(sorted(set(points))) or (points and points[-1] >= layer_cycle(file)):
            raise ValueError(f"the points in {file} are out of order")
        return cls(
            file=file,
            backing=backing,
            size=int(value["size"]),
            clusters=int(value["clusters"]),
            stored_bytes=int(value["bytes"]),
            digest=bytes.fromhex(value["digest"]),
            points=points,
        )


@dataclass(frozen=True, slots=True)
class DiskRef:
    """One disk at a point."""

    geometry: DiskGeometry
    at: int  # the newest cycle up to the point that changed it: its content is that of this cycle
    layer: LayerRef | None = None  # as the point's own cycle brought it; None: the cycle did not change the disk


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
                        "at": disk.at,
                        "layer": disk.layer.to_json() if disk.layer else None,
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
                    disk["at"],
                    LayerRef.from_json(disk["layer"]) if disk["layer"] else None,
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
