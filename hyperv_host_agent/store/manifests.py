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
from hyperv_host_agent.store import copies, files, rules
from hyperv_host_agent.store.base import BadName, PointInfo

POINTS: Final = "points"
FORMAT: Final = 2
ASIDE: Final = ".damaged"  # a manifest that cannot be read, as long as its point would have been kept
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
        return files.seal(self.document())

    def document(self) -> dict[str, object]:
        return {
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

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises ValueError."""
        document = files.unseal(data)
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"has format {document['format']}")
            disks = tuple(
                DiskRef(
                    DiskGeometry(rules.check_id("disk", disk["id"]), int(disk["size"]), str(disk["name"])),
                    int(disk["at"]),
                    LayerRef.from_json(disk["layer"]) if disk["layer"] else None,
                )
                for disk in document["disks"]
            )
            manifest = cls(
                vm_id=str(document["vm"]),
                cycle=int(document["cycle"]),
                id=bytes.fromhex(document["id"]),
                parent=int(document["parent"]),
                instant=float(document["instant"]),
                consistency=str(document["consistency"]),
                term=int(document["term"]),
                machine=b64decode(document["machine"]),
                clusters=int(document["clusters"]),
                stored_bytes=int(document["bytes"]),
                disks=disks,
                placeholder=bool(document["placeholder"]),
            )
        except (KeyError, TypeError, BadName) as error:
            raise ValueError(f"is malformed: {error}") from error
        copies.as_written(document, manifest.document())
        return manifest


def layer_name(cycle: int) -> str:
    """The file a cycle's layer has in its disk's directory."""
    return f"{cycle:06}.qcow2"


def layer_cycle(file: str) -> int:
    """The newest cycle in a layer file."""
    return int(file.removesuffix(".qcow2"))


def point_path(directory: Path, cycle: int) -> Path:
    """Where the manifest of a point is in the replica's directory."""
    return directory / POINTS / f"{cycle:06}.json"


def cycles(directory: Path) -> list[int]:
    """Of all manifests there are, readable or not, ascending. Raises OSError."""
    found = copies.names(directory / POINTS, ".json")
    return [int(name.removesuffix(".json")) for name in found if _POINT_NAME.fullmatch(name)]


def load(directory: Path, vm_id: str) -> tuple[dict[int, Manifest], dict[int, str]]:
    """All manifests of a replica, by cycle, oldest first; and by cycle what is wrong with those that are lost.

    One that is damaged is restored from its second copy. Without that it is set aside, and stops no other point. Raises
    OSError.
    """
    found, lost = {}, {}
    points = directory / POINTS
    for name in copies.names(points, ".json"):
        if not _POINT_NAME.fullmatch(name):
            continue
        path = points / name
        manifest, problem = _read(path, vm_id)
        if problem:
            manifest, _ = _read(copies.copy_path(path), vm_id, path)
            if manifest:
                files.replace_file(path, manifest.encode())
        if manifest:
            found[manifest.cycle] = manifest
        else:
            lost[int(name.removesuffix(".json"))] = problem
            (path if path.exists() else copies.copy_path(path)).rename(path.with_name(name + ASIDE))
            files.remove_file(copies.copy_path(path))
    return dict(sorted(found.items())), lost


def set_aside(directory: Path) -> dict[int, Path]:
    """What stands for points whose manifests are lost, by cycle, oldest first."""
    return {int(path.name.split(".")[0]): path for path in sorted((directory / POINTS).glob(f"*{ASIDE}"))}


def _read(path: Path, vm_id: str, main: Path | None = None) -> tuple[Manifest | None, str]:
    """The manifest in a file, or what is wrong with it. `main`: the file is the second copy of that one."""
    try:
        manifest = Manifest.decode(path.read_bytes())
    except FileNotFoundError:
        return None, "is missing"
    except (OSError, ValueError) as error:
        return None, str(error)
    if manifest.vm_id != vm_id or point_path(path.parent.parent, manifest.cycle) != (main or path):
        return None, f"is of cycle {manifest.cycle} of VM {manifest.vm_id}"
    if not 0 <= manifest.parent < manifest.cycle:
        return None, f"names cycle {manifest.parent} as its parent"
    return manifest, ""
