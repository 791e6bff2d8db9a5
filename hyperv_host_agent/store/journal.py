"""The receive journal: what of an unfinished cycle came, and how far it is durable.

Append-only records, each with a checksum: the cycle's header, one per batch, and marks. A mark is written after the
data of the batches before it was synced, so a mark that can be read holds whatever else a power loss left behind.
"""

import errno
import json
import os
import struct
from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import xxhash

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store.files import sync_data, write_all
from twinsite.digest import CHAIN_START, FINGERPRINT_BYTES
from twinsite.extents import Run

_FRAME: Final = struct.Struct("<IQ")  # length of the body, its xxh3
_BATCH: Final = struct.Struct("<cQIQII16s")  # kind, sequence, disk, position, data clusters, zero runs, chain digest
_MARK: Final = struct.Struct("<cQ16s")  # kind, sequence, chain digest
_MAX_BODY: Final = 64 << 20
_READ: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch as the journal keeps it: all but the payload, which is at `position` of its disk's layer file."""

    sequence: int
    disk: int
    position: int
    clusters: "array[int]"
    lengths: "array[int]"
    fingerprints: bytes
    zero_runs: tuple[Run, ...]
    digest: bytes


class Journal:
    """Open for appending. Not thread-safe."""

    def __init__(self, path: Path, fd: int, header: CycleHeader) -> None:
        self.path, self.header = path, header
        self.durable = 0  # newest marked batch
        self.durable_digest = CHAIN_START
        self._fd = fd
        self._start = 0  # of the first record after the header
        self._end = 0  # past the last record that counts

    @classmethod
    def create(cls, path: Path, header: CycleHeader) -> Self:
        """A new one with nothing but the header; not synced, a mark does that. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        journal = cls(path, fd, header)
        try:
            journal._append(b"H" + _encode_header(header))
        except OSError:
            os.close(fd)
            raise
        journal._start = journal._end
        return journal

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """What a crash left, up to its last mark. None: no mark, so nothing that has to be kept. Raises OSError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with ExitStack() as unless_kept:
            unless_kept.callback(os.close, fd)
            records = _records(fd, 0)
            at, body = next(records, (0, b""))
            header = _decode_header(body)
            if header is None:
                return None
            journal = cls(path, fd, header)
            journal._start = at
            for at, body in records:
                if body[:1] == b"M":
                    _, journal.durable, journal.durable_digest = _MARK.unpack(body)
                    journal._end = at
            if not journal.durable:
                return None
            unless_kept.pop_all()
            return journal

    def append(self, batch: Batch, position: int, digest: bytes) -> None:
        """Record a batch whose payload is at `position` of its layer file. Not recorded when it raises OSError."""
        runs = array("Q", (number for run in batch.zero_runs for number in (run.start, run.count)))
        self._append(
            _BATCH.pack(b"B", batch.sequence, batch.disk, position, len(batch.clusters), len(batch.zero_runs), digest),
            array("Q", batch.clusters).tobytes(),
            array("I", batch.lengths).tobytes(),
            batch.fingerprints,
            runs.tobytes(),
        )

    def mark(self, sequence: int, digest: bytes) -> None:
        """Batches up to `sequence` are durable in their files; make that durable here. Raises OSError."""
        self._append(_MARK.pack(b"M", sequence, digest))
        sync_data(self._fd)
        self.durable, self.durable_digest = sequence, digest

    def cut(self, sequence: int) -> None:
        """Forget, durably, what came after batch `sequence`. Raises OSError; ValueError if it is not durable."""
        if sequence > self.durable:
            raise ValueError(f"batch {sequence} is not durable, {self.durable} is")
        end, digest = self._start, CHAIN_START
        for at, body in _records(self._fd, self._start):
            if at > self._end or not sequence:
                break
            if body[:1] == b"B":
                number, *_, batch_digest = _BATCH.unpack_from(body)[1:]
                if number > sequence:
                    break
                end, digest = at, batch_digest
        self._end = end
        # Synced with the mark: an older mark must not come to light behind the records that follow.
        os.ftruncate(self._fd, end)
        self.mark(sequence, digest)

    def entries(self) -> Iterator[Entry]:
        """Every batch, as it came. Raises OSError when a record is damaged."""
        reached = self._start
        for at, body in _records(self._fd, self._start):
            if at > self._end:
                break
            reached = at
            if body[:1] == b"B":
                yield _entry(body)
        if reached != self._end:
            raise OSError(errno.EIO, "the journal of the unfinished cycle is damaged")

    def is_whole(self) -> bool:
        """Whether every record can be read; for another thread, too."""
        return self._reads_whole() or self._reads_whole()  # it may have been cut back while it was read

    def _reads_whole(self) -> bool:
        end, reached = self._end, 0
        try:
            for at, _ in _records(self._fd, 0):
                reached = at
                if at >= end:
                    break
        except OSError:
            return False
        return reached >= end

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, *parts: bytes) -> None:
        body = b"".join(parts)
        record = _FRAME.pack(len(body), xxhash.xxh3_64_intdigest(body)) + body
        write_all(self._fd, record, self._end)
        self._end += len(record)


def _records(fd: int, start: int) -> Iterator[tuple[int, bytes]]:
    """(where it ends, body) of each record from `start` on, up to the first that is torn."""
    buffer, at, read = b"", 0, start  # `at` is in the buffer, `read` in the file
    while True:
        length, checksum = _FRAME.unpack_from(buffer, at) if len(buffer) - at >= _FRAME.size else (0, 0)
        if not length or len(buffer) - at < _FRAME.size + length:
            more = os.pread(fd, max(_READ, length), read) if length <= _MAX_BODY else b""
            if not more:
                return
            buffer, at, read = buffer[at:] + more, 0, read + len(more)
            if len(buffer) >= _FRAME.size and not _FRAME.unpack_from(buffer)[0]:
                return
            continue
        at += _FRAME.size + length
        body = buffer[at - length : at]
        if xxhash.xxh3_64_intdigest(body) != checksum:
            return
        yield read - len(buffer) + at, body


def _entry(body: bytes) -> Entry:
    _, sequence, disk, position, count, runs, digest = _BATCH.unpack_from(body)
    at = _BATCH.size
    indexes = array("Q", body[at : at + 8 * count])
    at += 8 * count
    lengths = array("I", body[at : at + 4 * count])
    at += 4 * count
    fingerprints = body[at : at + FINGERPRINT_BYTES * count]
    numbers = array("Q", body[at + FINGERPRINT_BYTES * count :])
    zero_runs = tuple(Run(numbers[i], numbers[i + 1]) for i in range(0, 2 * runs, 2))
    return Entry(sequence, disk, position, indexes, lengths, fingerprints, zero_runs, digest)


def _encode_header(header: CycleHeader) -> bytes:
    document = {
        "vm": header.vm_id,
        "id": header.id.hex(),
        "number": header.number,
        "parent": header.parent,
        "parent_id": header.parent_id.hex(),
        "term": header.term,
        "kind": header.kind.value,
        "instant": header.instant,
        "consistency": header.consistency,
        "disks": [[disk.id, disk.size, disk.name] for disk in header.disks],
        "machine": b64encode(header.machine).decode(),
    }
    return json.dumps(document).encode()


def _decode_header(body: bytes) -> CycleHeader | None:
    if body[:1] != b"H":
        return None
    document: dict[str, Any] = json.loads(body[1:])
    return CycleHeader(
        vm_id=document["vm"],
        id=bytes.fromhex(document["id"]),
        number=document["number"],
        parent=document["parent"],
        parent_id=bytes.fromhex(document["parent_id"]),
        term=document["term"],
        kind=Kind(document["kind"]),
        instant=document["instant"],
        consistency=document["consistency"],
        disks=tuple(DiskGeometry(*disk) for disk in document["disks"]),
        machine=b64decode(document["machine"]),
    )
