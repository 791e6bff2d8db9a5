"""Writing a seed: the disks as they are now, read beside a replication that goes on, into parts and then a manifest.

What is read is torn under the guest's writes, as a fuzzy copy over the network is: every cluster written since the
placeholder's instant is in some cycle, so from the first cycle after the end of the export all of it fits together.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from hyperv_host_agent.changes.base import ChangeSource, SourceFailed
from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.reading import UNIT_CLUSTERS
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.seeds import manifest as manifests
from hyperv_host_agent.seeds.manifest import Part
from hyperv_host_agent.seeds.parts import (
    HEADER_BYTES,
    KEY_BYTES,
    PART_BYTES,
    RECORD_BYTES,
    Gathered,
    PartWriter,
    Place,
    digest,
    ours,
    part_name,
    records_of,
)
from hyperv_host_agent.seeds.paths import SeedMediumFull
from hyperv_host_agent.store.wanted import minus
from twinsite import files
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import Failed
from twinsite.extents import CLUSTER, Run, clusters

_SAMPLES: Final = 256  # clusters that are packed to guess how much room a seed takes
_MARGIN: Final = 1.1  # of that guess
PROGRESS: Final = "seed-export.json"  # in the folder of the VM's source state: it holds the key of an unfinished seed


class SeedWriteFailed(Failed):
    public = "the seed cannot be written to {error.path}: {error.reason}"
    still_works = "parts that are complete stay there; replication goes on"
    next_step = "look at the medium, then run twinsite seed export again: it goes on where it was"

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason


@dataclass(frozen=True, slots=True)
class Unit:
    """Clusters that are read at once."""

    disk: int
    run: Run


@dataclass(slots=True)
class Progress:
    """What is durable of an export: kept until its manifest is."""

    seed: bytes
    started: float
    disks: tuple[DiskGeometry, ...]  # as they were then
    key: bytes
    parts: list[Part] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)  # where the seed goes on after each part

    @property
    def place(self) -> Place:
        return self.places[-1] if self.places else Place()

    def encode(self) -> bytes:
        document = {
            "seed": self.seed.hex(),
            "started": self.started,
            "disks": [[disk.id, disk.size, disk.name] for disk in self.disks],
            "key": self.key.hex(),
            "parts": [[part.size, part.digest.hex()] for part in self.parts],
            "places": [[place.disk, place.cluster] for place in self.places],
        }
        return json.dumps(document).encode()

    @classmethod
    def load(cls, path: Path) -> "Progress | None":
        """None: there is none, or it cannot be read, and the export starts over."""
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            return cls(
                seed=bytes.fromhex(document["seed"]),
                started=document["started"],
                disks=tuple(DiskGeometry(*disk) for disk in document["disks"]),
                key=bytes.fromhex(document["key"]),
                parts=[Part(size, bytes.fromhex(digest)) for size, digest in document["parts"]],
                places=[Place(*place) for place in document["places"]],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


@contextmanager
def writing(path: Path, room: Callable[[], int]) -> Iterator[None]:
    """Turn the OSErrors of writing to the medium into SeedMediumFull and SeedWriteFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            free = 0
            with suppress(OSError):
                free = room()
            raise SeedMediumFull(path, free) from error
        raise SeedWriteFailed(path, error.strerror or str(error)) from error


def drop_empty(folder: Path) -> None:
    """Remove the folder of a seed of which nothing was written, so that nobody carries it."""
    with suppress(OSError):  # most often it is not empty
        folder.rmdir()


class SeedWriter:
    """The parts of a seed as they grow. Blocking; OSErrors pass through."""

    def __init__(self, folder: Path, progress_file: Path, progress: Progress, part_bytes: int = PART_BYTES) -> None:
        self.progress = progress
        self._folder, self._file = folder, progress_file
        self._most = records_of(part_bytes)
        self._part: PartWriter | None = None
        self._record: Gathered | None = None

    def keep_finished(self) -> None:
        """Of an interrupted export: the parts that are there as they were written; those after a bad one are not."""
        kept = finished(self._folder, self.progress)
        del self.progress.parts[kept:], self.progress.places[kept:]
        self._save()
        for path in self._folder.iterdir():
            if ours(path.name) and path.name not in {part_name(number) for number in range(1, kept + 1)}:
                path.unlink()

    def put(self, unit: Unit, packed: Packed) -> None:
        """The next clusters of a disk: data as packed, the rest of the unit zero."""
        pieces = iter(packed.parts)
        if self._record is None:
            self._record = Gathered(unit.disk, unit.run.start)
        for index, (cluster, length) in enumerate(zip(packed.clusters, packed.lengths, strict=True)):
            if not self._record.takes(length):
                self._flush(cluster)
                self._record = Gathered(unit.disk, cluster)
            start = index * FINGERPRINT_BYTES
            fingerprint = bytes(packed.fingerprints[start : start + FINGERPRINT_BYTES])
            self._record.add(cluster, length, _frame(pieces, length), fingerprint)
        if unit.run.end >= clusters(self.progress.disks[unit.disk].size):
            self._flush(unit.run.end)
            self._record = None

    def finish(self) -> tuple[Part, ...]:
        """The last part; all are durable when it returns."""
        self._close_part(Place(len(self.progress.disks), 0))
        return tuple(self.progress.parts)

    def close(self) -> None:
        """Of the unfinished part nothing stays."""
        if self._part:
            self._part.close()
            self._part = None

    def _flush(self, end: int) -> None:
        record = self._record
        if record is None:
            return
        record.end = end
        if self._part is None:
            number = len(self.progress.parts) + 1
            self._part = PartWriter(self._folder, self.progress.seed, number, self.progress.key)
        self._part.add(record)
        if self._part.records >= self._most:
            whole = end >= clusters(self.progress.disks[record.disk].size)
            self._close_part(Place(record.disk + 1, 0) if whole else Place(record.disk, end))

    def _close_part(self, goes_on: Place) -> None:
        if self._part is None:
            return
        found = self._part.finish()
        self.progress.parts.append(Part(self._part.size, found))
        self.progress.places.append(goes_on)
        self._part = None
        self._save()

    def _save(self) -> None:
        files.replace(self._file, self.progress.encode())


def _frame(pieces: Iterator[bytes | memoryview], length: int) -> Iterator[bytes | memoryview]:
    """The pieces of the next frame."""
    while length > 0:
        piece = next(pieces)
        length -= len(piece)
        yield piece


def begin(file: Path, seed: bytes, disks: tuple[DiskGeometry, ...], now: float) -> Progress:
    """What an earlier attempt at this seed left, or a new one."""
    found = Progress.load(file)
    names = [disk.id for disk in disks]
    if found and found.seed == seed and [disk.id for disk in found.disks] == names and len(found.key) == KEY_BYTES:
        return found
    return Progress(seed, now, disks, os.urandom(KEY_BYTES))


def finished(folder: Path, progress: Progress) -> int:
    """Of an interrupted export: how many parts from the first on are there as they were written. Raises OSError."""
    for number, part in enumerate(progress.parts, 1):
        if not _whole(folder, number, part):
            return number - 1
    return len(progress.parts)


def units(disks: tuple[DiskGeometry, ...], start: Place) -> Iterator[Unit]:
    """What is left of the disks, in order."""
    first = start.cluster
    for number in range(start.disk, len(disks)):
        end = clusters(disks[number].size)
        for at in range(first, end, UNIT_CLUSTERS):
            yield Unit(number, Run(at, min(UNIT_CLUSTERS, end - at)))
        first = 0


def content(source: ChangeSource, packer: Packer, unit: Unit, disk: str, end: int) -> Packed:
    """What a unit holds now, in frames; `end` of the disk as it is now, in clusters: past it there is nothing.

    Raises SourceFailed.
    """
    packed = Packed(unit.disk)
    there = Run(unit.run.start, max(0, min(unit.run.end, end) - unit.run.start))
    for run in minus([there] if there.count else [], source.holes_now(disk, there) if there.count else ()):
        packer.pack(packed, run, source.read_now(disk, run), None)
    return packed


def allocated(source: ChangeSource, disks: tuple[DiskGeometry, ...]) -> list[tuple[str, Run]]:
    """What of the disks is not known to be zero."""
    found = []
    for disk in disks:
        whole = Run(0, clusters(disk.size))
        found += [(disk.id, run) for run in minus([whole], source.holes_now(disk.id, whole))]
    return found


def expected_bytes(source: ChangeSource, packer: Packer, held: Sequence[tuple[str, Run]]) -> int:
    """About how much a seed of these clusters takes: a sample of them is packed."""
    total = sum(run.count for _, run in held)
    packed, looked = Packed(0), 0
    for at in range(0, total, max(1, total // _SAMPLES)):
        disk, run = _at(held, at)
        looked += 1
        try:
            packer.pack(packed, run, source.read_now(disk, run), None)
        except SourceFailed:  # the export says so once it comes there, with what is before it kept
            packed.frame_bytes += CLUSTER
    share = packed.frame_bytes / (looked * CLUSTER) if looked else 0.0
    return round(total * CLUSTER * share * _MARGIN) + HEADER_BYTES + 2 * RECORD_BYTES


def _at(held: Sequence[tuple[str, Run]], place: int) -> tuple[str, Run]:
    for disk, run in held:
        if place < run.count:
            return disk, Run(run.start + place, 1)
        place -= run.count
    raise IndexError(place)


def complete(folder: Path, found: manifests.Manifest) -> bool:
    """Whether all parts of a finished export are as they were written. Raises OSError."""
    return all(_whole(folder, number, part) for number, part in enumerate(found.parts, 1))


def _whole(folder: Path, number: int, part: Part) -> bool:
    path = folder / part_name(number)
    return path.is_file() and not path.is_symlink() and digest(path) == (part.size, part.digest)


def write_manifest(folder: Path, made: bytes) -> None:
    """Durable when it returns, and the last thing of an export that is. Raises OSError."""
    files.replace(folder / manifests.FILE, made, mode=0o644)


def sealed(made: manifests.Manifest, key: bytes, certificate: x509.Certificate) -> manifests.Manifest:
    """With the key of its parts in it."""
    return replace(made, sealed_key=manifests.seal_key(key, certificate, made))
