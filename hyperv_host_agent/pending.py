"""Fingerprints of the cycle on its way, until the target has committed it and they move into the index.

A log beside the index, one record a batch: a copy of hours makes it durable piece by piece, and goes on after a restart
where both ends are sure. Records of batches beyond that point are cut off; a torn tail is cut off by its checksum. A
mark says how far it was made durable: a log that does not end with one misses something, and is of no use to the index.
"""

import os
import struct
import zlib
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from hyperv_host_agent.changes.fingerprints import FingerprintIndex, IndexDamaged
from hyperv_host_agent.replication.cycle import ID_BYTES, Committed, CycleHeader
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import Run
from twinsite.files import sync_directory

_HEAD: Final = struct.Struct("<II")  # length and CRC-32 of the body
_BODY: Final = struct.Struct("<QIII")  # batch, disk, data clusters, zero runs
_MARK: Final = 0  # in place of a batch's number; its one cluster is the last batch before it
_VOID: Final = bytes(ID_BYTES)  # in place of the cycle's id: some of its fingerprints are lost


@dataclass(frozen=True, slots=True)
class _Record:
    sequence: int
    disk: int
    clusters: "array[int]"
    fingerprints: bytes
    zeros: "array[int]"  # start, count, start, count …

    @classmethod
    def of(cls, sequence: int, disk: int, clusters: Sequence[int], fingerprints: bytes, zeros: Sequence[Run]) -> Self:
        flat = array("Q", (number for run in zeros for number in (run.start, run.count)))
        return cls(sequence, disk, array("Q", clusters), fingerprints, flat)

    def dump(self) -> bytes:
        body = b"".join(
            (
                _BODY.pack(self.sequence, self.disk, len(self.clusters), len(self.zeros) // 2),
                self.clusters.tobytes(),
                self.fingerprints,
                self.zeros.tobytes(),
            )
        )
        return _HEAD.pack(len(body), zlib.crc32(body)) + body


class Pending:
    """One caller at a time, blocking; except for `note`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "pending"
        self._file: BinaryIO | None = None
        self._id = b""
        self._named = False  # the log's name is durable
        self._next = 1  # the batch that may come next
        self._notes: deque[tuple[bytes, _Record]] = deque()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def note(
        self,
        cycle: bytes,
        sequence: int,
        disk: int,
        *,
        clusters: Sequence[int],
        fingerprints: bytes,
        zeros: Sequence[Run],
    ) -> int:
        """Take up a batch that is about to be sent; beside any call and without blocking. How many were taken up so.

        The next call writes it down, in the cycle and at the place it names, as `begin` and `add` would have.
        """
        self._notes.append((cycle, _Record.of(sequence, disk, clusters, fingerprints, zeros)))
        return len(self._notes)

    def write(self) -> None:
        """Write down what was noted, so that memory holds no more of it."""
        while self._notes:
            cycle, record = self._notes.popleft()
            self._begin(cycle, record.sequence)
            self._add(record)

    def begin(self, cycle: bytes, sequence: int) -> None:
        """Collect for this cycle from batch `sequence` on; what is there of earlier batches of it stays."""
        self.write()
        self._begin(cycle, sequence)

    def _begin(self, cycle: bytes, sequence: int) -> None:
        if self._file is not None and self._id == cycle and self._next == sequence:
            return
        self._close()
        keep = present = 0
        if sequence > 1:
            keep, present = self._extent(cycle, sequence)
        if present == sequence - 1 and keep:
            self._file = self._path.open("r+b")
            self._file.truncate(keep)
            self._file.seek(keep)
        else:
            # A state folder from before, or damaged: the cycle goes on, and `apply` will say that the index does not.
            self._file = self._path.open("w+b")
            self._file.write(cycle if sequence == 1 else _VOID)
        self._id, self._next, self._named = cycle, sequence, False

    def add(self, sequence: int, disk: int, clusters: Sequence[int], fingerprints: bytes, zeros: Sequence[Run]) -> None:
        self.write()
        self._add(_Record.of(sequence, disk, clusters, fingerprints, zeros))

    def _add(self, record: _Record) -> None:
        if self._file is None or record.sequence != self._next:
            raise ValueError(f"batch {record.sequence} is not the one that may come next")
        self._file.write(record.dump())
        self._next += 1

    def store(self, cycle: bytes, through: int) -> None:
        """Durable up to that batch, as far as they are here."""
        self.write()
        if self._file is None or self._id != cycle or through >= self._next:
            _, present = self._extent(cycle, through + 1)
            if present >= through > 0:
                return  # of an earlier life of the agent: they were stored then
            self._begin(cycle, through + 1)
        if self._file is None:  # never: it was begun
            return
        self._file.write(_Record.of(_MARK, 0, [self._next - 1], bytes(FINGERPRINT_BYTES), ()).dump())
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._named:
            sync_directory(self._path.parent)
            self._named = True

    def apply(self, index: FingerprintIndex, header: CycleHeader, *, complete: bool) -> bool:
        """Put them into the index, durably; they stay here. Repeatable.

        False: those of this cycle are not here, or do not fit; the index is as it was, or empty.
        """
        self.close()
        named = Committed(header.number, header.id)
        if index.base == named:
            return True
        if self._stored_id() != header.id:
            return False
        parent = None if complete else Committed(header.parent, header.parent_id)
        if parent is not None and index.base != parent:
            return False
        try:
            staging = index.stage(named, header.disks, parent=parent)
            last, marked = 0, -1
            for record in self._records():
                if record.sequence == _MARK:
                    marked = record.clusters[0]
                    continue
                last, marked = record.sequence, -1
                disk = header.disks[record.disk].id
                staging.put(disk, record.clusters, record.fingerprints)
                for start, count in zip(record.zeros[::2], record.zeros[1::2], strict=True):
                    staging.zero(disk, Run(start, count))
            if last != marked:
                staging.close()
                return False
            staging.seal()
            index.apply(named)
        except IndexDamaged:
            return False
        return True

    def drop(self) -> None:
        self._notes.clear()
        self.close()
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)

    def close(self) -> None:
        self.write()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stored_id(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                return file.read(ID_BYTES)
        except FileNotFoundError:
            return b""

    def _extent(self, cycle: bytes, before: int) -> tuple[int, int]:
        """Bytes of the log that batches below `before` take, and the last batch in them."""
        if self._file is not None:
            self._file.flush()
        if self._stored_id() != cycle:
            return 0, 0
        length, last = ID_BYTES, 0
        for record in self._records():
            if record.sequence >= before:
                break
            length += len(record.dump())
            last = record.sequence or last
        return length, last

    def _records(self) -> Iterator[_Record]:
        """Up to the first one that is torn."""
        with self._path.open("rb") as file:
            file.seek(ID_BYTES)
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                length, checksum = _HEAD.unpack(head)
                body = file.read(length)
                if len(body) < length or zlib.crc32(body) != checksum:
                    return
                sequence, disk, clusters, zeros = _BODY.unpack_from(body)
                prints = _BODY.size + clusters * 8
                runs = prints + clusters * FINGERPRINT_BYTES
                yield _Record(
                    sequence,
                    disk,
                    array("Q", body[_BODY.size : prints]),
                    body[prints:runs],
                    array("Q", body[runs : runs + zeros * 16]),
                )
