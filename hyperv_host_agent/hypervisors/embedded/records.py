"""What a guest writes, and the proof that a disk holds it: numbered, checksummed records in a ring on every disk.

The last sector of a disk is a label that says where its ring is and what its guest does. So the guest's program lies on
the VM's own disks, as any VM's does, and a VM that was failed over goes on by itself.

Record n is written to disk 0, then disk 1 …; it is acknowledged when all have it. Therefore, of any one instant:
the newest record of a disk is that of the disk before it or one older, at most one older than disk 0's, and every ring
is contiguous. Anything else proves that writes were lost, torn or reordered.
"""

import itertools
import json
import struct
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Protocol

from blake3 import blake3

SECTOR: Final = 512
_LABEL_MAGIC: Final = b"TWGUEST1"
_RECORD_MAGIC: Final = b"TWRECRD1"
_HEAD: Final = struct.Struct("<8s16sQIId")  # magic, guest, sequence, disk, number of disks, wall time
_DIGEST_BYTES: Final = 32
_PAYLOAD_BYTES: Final = SECTOR - _HEAD.size - _DIGEST_BYTES
_RING_BYTES: Final = 1 << 20  # on a big enough disk


class Readable(Protocol):
    """Any disk: an open one, an overlay, a chain of layers."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Label:
    """What a guest does with one of its disks; areas are (offset, length) in bytes."""

    guest: str  # hex; stays the same through failovers and tests, whatever the VM's id
    disk: int
    disks: int  # that carry a label of this guest
    ring: tuple[int, int]
    load: tuple[int, int]  # where random load may write; length 0: nowhere
    interval_seconds: float
    load_bytes_per_second: int

    @property
    def slots(self) -> int:
        return self.ring[1] // SECTOR

    def place(self, sequence: int) -> int:
        """Where on the disk the record goes."""
        return self.ring[0] + sequence % self.slots * SECTOR


@dataclass(frozen=True, slots=True)
class RecordsReport:
    newest: int  # the newest record that all disks hold; 0: none
    newest_at: float  # when it was written, seconds since 1970
    per_disk: tuple[int, ...]  # the newest of each disk
    problems: tuple[str, ...]  # empty: nothing was lost, torn or reordered


def new_labels(
    sizes: Sequence[int], *, loadable: Sequence[bool], interval_seconds: float, load_bytes_per_second: int
) -> list[Label]:
    """For disks of these sizes in bytes; `loadable` ones hold nothing that random load could damage."""
    guest = uuid.uuid4().hex
    labels: list[Label] = []
    for position, size in enumerate(sizes):
        end = size // SECTOR * SECTOR - SECTOR
        start = end - min(_RING_BYTES - SECTOR, size // 4 // SECTOR * SECTOR)
        labels.append(
            Label(
                guest=guest,
                disk=position,
                disks=len(sizes),
                ring=(start, end - start),
                load=(0, start if loadable[position] else 0),
                interval_seconds=interval_seconds,
                load_bytes_per_second=load_bytes_per_second,
            )
        )
    return labels


def moved(label: Label, size: int) -> Label:
    """What the guest does with the disk when it has `size` bytes; its records keep their slots in the ring.

    A disk that takes load has its ring at its end. Before the ring of any other one is somebody's content, so that
    stays where it is. Raises ValueError when there is no room.
    """
    end = label_place(size)
    start, length = label.ring
    if label.load[1]:
        start = end - length
    if start < 0 or start + length > end:
        raise ValueError(f"what is on it needs {label.ring[1] + SECTOR + (0 if label.load[1] else start)} bytes")
    return replace(label, ring=(start, length), load=(0, start) if label.load[1] else label.load)


def label_place(size: int) -> int:
    return size // SECTOR * SECTOR - SECTOR


def encode_label(label: Label) -> bytes:
    body = _LABEL_MAGIC + json.dumps(asdict(label), separators=(",", ":")).encode()
    return _sealed(body.ljust(SECTOR - _DIGEST_BYTES, b"\0"))


def read_label(disk: Readable) -> Label | None:
    """Of the guest that uses this disk; None: no guest of ours does. Raises OSError."""
    if disk.size < 2 * SECTOR:
        return None
    sector = disk.read(label_place(disk.size), SECTOR)
    if not sector.startswith(_LABEL_MAGIC) or not _intact(sector):
        return None
    words = json.loads(sector[len(_LABEL_MAGIC) : -_DIGEST_BYTES].rstrip(b"\0"))
    return Label(**words | {"ring": tuple(words["ring"]), "load": tuple(words["load"])})


def encode_record(label: Label, sequence: int, at: float) -> bytes:
    head = _HEAD.pack(_RECORD_MAGIC, bytes.fromhex(label.guest), sequence, label.disk, label.disks, at)
    return _sealed(head + _payload(sequence))


def verify_records(disks: Sequence[Readable]) -> RecordsReport:
    """Read all rings of a VM's disks, in any order; disks without a label are not looked at. Raises OSError."""
    found = [(label, disk) for disk in disks if (label := read_label(disk)) is not None]
    found.sort(key=lambda pair: pair[0].disk)
    if not found:
        return RecordsReport(0, 0.0, (), ("no disk carries a guest's label",))
    problems: list[str] = []
    if [label.disk for label, _ in found] != list(range(found[0][0].disks)):
        problems.append(f"labels of disks {[label.disk for label, _ in found]} of {found[0][0].disks} were found")
    if len({label.guest for label, _ in found}) != 1:
        problems.append("the disks belong to different guests")
    rings = [_read_ring(label, disk, problems) for label, disk in found]
    newest = tuple(max(ring, default=0) for ring in rings)
    for position, (before, after) in enumerate(itertools.pairwise(newest)):
        if after > before:
            problems.append(
                f"disk {position + 1} has record {after}, but disk {position}, written first, ends at {before}"
            )
    if newest[0] > newest[-1] + 1:
        problems.append(f"disk 0 has record {newest[0]}, but disk {len(newest) - 1} ends at {newest[-1]}")
    common = min(newest)
    return RecordsReport(common, rings[0].get(common, 0.0), newest, tuple(problems))


def _read_ring(label: Label, disk: Readable, problems: list[str]) -> dict[int, float]:
    """Time of each record by its sequence."""
    area = memoryview(disk.read(*label.ring))
    times: dict[int, float] = {}
    for slot in range(label.slots):
        sector = bytes(area[slot * SECTOR : (slot + 1) * SECTOR])
        if not any(sector):
            continue
        where = f"disk {label.disk}, slot {slot}"
        if not _intact(sector):
            problems.append(f"{where}: a torn or damaged record")
            continue
        magic, guest, sequence, position, count, at = _HEAD.unpack_from(sector)
        if magic != _RECORD_MAGIC or guest.hex() != label.guest or (position, count) != (label.disk, label.disks):
            problems.append(f"{where}: a record of another guest or disk")
        elif sequence % label.slots != slot or sector[_HEAD.size : -_DIGEST_BYTES] != _payload(sequence):
            problems.append(f"{where}: record {sequence} does not belong here")
        else:
            times[sequence] = at
    newest = max(times, default=0)
    missing = [n for n in range(max(1, newest - label.slots + 1), newest + 1) if n not in times]
    if missing:
        problems.append(
            f"disk {label.disk} has record {newest}, but {len(missing)} before it are missing: {missing[:5]}"
        )
    return times


def _payload(sequence: int) -> bytes:
    return blake3(sequence.to_bytes(8, "little")).digest(length=_PAYLOAD_BYTES)


def _sealed(body: bytes) -> bytes:
    return body + blake3(body).digest(length=_DIGEST_BYTES)


def _intact(sector: bytes) -> bool:
    return blake3(sector[:-_DIGEST_BYTES]).digest(length=_DIGEST_BYTES) == sector[-_DIGEST_BYTES:]
