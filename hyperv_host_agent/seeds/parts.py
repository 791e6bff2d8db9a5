"""The parts of a seed: files of records, each a run of one disk's clusters as the frames that travel on the wire.

A part is a header of HEADER_BYTES and records of RECORD_BYTES, the last one of a seed has fewer of them. A record is
sealed with AES-256-GCM under the part's key, with its number as nonce; seed, part and record are authenticated with
it. The part's key is derived from the seed's content key and from a salt that is drawn each time the part is written,
so no key ever seals two contents of one record. A record says which clusters it covers: those without a frame are
zero. So what is lost with a bad record is known from its neighbours.
"""

import os
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hyperv_host_agent import wire
from hyperv_host_agent.replication.cycle import Batch
from hyperv_host_agent.store.formats import zstd_frame
from twinsite import files
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import Failed
from twinsite.units import GiB, KiB, MiB

PART_BYTES: Final = 1 * GiB  # at most; file systems of removable media take it
HEADER_BYTES: Final = 4 * KiB
RECORD_BYTES: Final = 4 * MiB + 4 * KiB  # 64 clusters that do not shrink, and what describes them
KEY_BYTES: Final = 32
ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
MOST_CLUSTERS: Final = 4096  # data clusters of a record; as on the wire
TAG_BYTES: Final = 16
_READ: Final = 1 * MiB
_NAME: Final = re.compile(r"part-[0-9]{6,10}(?:\.tmp)?")
_MAGIC: Final = b"TWSEED1\0"
_HEADER: Final = struct.Struct(f"<8s{ID_BYTES}sI{KEY_BYTES}s")  # magic, seed, part, salt
_COVERED: Final = struct.Struct("<IQQI")  # disk, first cluster, past the last one, length of the message
_BOUND: Final = struct.Struct(f"<{ID_BYTES}sII")  # seed, part, record
_DESCRIPTOR: Final = 32  # bytes that describe one cluster, at most
_ZEROS: Final = memoryview(bytes(RECORD_BYTES))
_ROOM: Final = RECORD_BYTES - TAG_BYTES - _COVERED.size - 128


class PartMissing(Failed):
    public = "part {error.number} of the seed is missing"
    still_works = "the other parts are read; what this one holds comes over the network"
    next_step = "copy {error.name} from the export, if it is still there, and import again"

    def __init__(self, number: int) -> None:
        self.number, self.name = number, part_name(number)


class PartCut(Failed):
    public = "part {error.number} of the seed has {error.found} of its {error.size} bytes"
    cause = "copying it was interrupted, or the medium was full"
    still_works = "what is there of it is read; the rest comes over the network"
    next_step = "copy {error.name} from the export again and import again"

    def __init__(self, number: int, found: int, size: int) -> None:
        self.number, self.name, self.found, self.size = number, part_name(number), found, size


class PartSwapped(Failed):
    public = "{error.name} is {error.what}, not part {error.number} of this seed"
    still_works = "the other parts are read; what is missing comes over the network"
    next_step = "copy {error.name} from the folder of this export and import again"

    def __init__(self, number: int, what: str) -> None:
        self.number, self.name, self.what = number, part_name(number), what


class RecordDamaged(Failed):
    public = "part {error.number} of the seed is damaged in record {error.record}: {error.problem}"
    cause = "the medium, or what copied it, changed the file"
    still_works = "all other records are read; what this one holds comes over the network"
    next_step = "copy {error.name} from the export again, or let the network bring it"

    def __init__(self, number: int, record: int, problem: str) -> None:
        self.number, self.name, self.record, self.problem = number, part_name(number), record, problem


@dataclass(frozen=True, slots=True)
class Place:
    """A cluster of a disk, the disk an index into the seed's disks."""

    disk: int = 0
    cluster: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """Clusters `start` up to `end` of a disk; those the batch does not name are zero."""

    disk: int
    start: int
    end: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a part say; not authenticated until a record opens under the key made of it."""

    seed: bytes
    number: int
    salt: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.seed, self.number, self.salt).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> "Header | None":
        """None: no part of a seed begins like this."""
        if len(data) < _HEADER.size:
            return None
        magic, seed, number, salt = _HEADER.unpack_from(data)
        return cls(seed, number, salt) if magic == _MAGIC else None


def part_name(number: int) -> str:
    return f"part-{number:06}"


def records_of(part_bytes: int) -> int:
    """Records in a part of at most so many bytes; at least one."""
    return max(1, (part_bytes - HEADER_BYTES) // RECORD_BYTES)


class PartWriter:
    """One part, written anew. OSErrors pass through. Its file has a temporary name until `finish`."""

    def __init__(self, folder: Path, seed: bytes, number: int, key: bytes) -> None:
        self.number = number
        self.records = 0
        self._path = folder / part_name(number)
        self._temporary = self._path.with_name(self._path.name + ".tmp")
        self._header = Header(seed, number, os.urandom(KEY_BYTES))
        self._aead = _aead(key, self._header)
        self._hasher = blake3()
        self._sealed = bytearray(RECORD_BYTES)
        # What somebody laid there under that name is not followed.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o600)
        self.size = 0
        try:
            self._append(self._header.encode())
        except OSError:
            os.close(self._fd)
            raise

    def add(self, record: "Gathered") -> None:
        """The next record."""
        number = self.records + 1
        self._aead.encrypt_into(_nonce(number), record.encode(number), _bound(self._header, number), self._sealed)
        self._append(self._sealed)
        self.records = number

    def finish(self) -> bytes:
        """Durable under its name when it returns; the digest of the file."""
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._temporary.rename(self._path)
        files.sync_directory(self._path.parent)
        return self._hasher.digest(length=DIGEST_BYTES)

    def close(self) -> None:
        """Of an unfinished one nothing stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._temporary.unlink(missing_ok=True)

    def _append(self, data: bytes | bytearray) -> None:
        self._hasher.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class Gathered:
    """A record that grows: clusters of one disk, ascending."""

    def __init__(self, disk: int, start: int) -> None:
        self.disk = disk
        self.start = self.end = start
        self._clusters: list[int] = []
        self._lengths: list[int] = []
        self._fingerprints = bytearray()
        self._pieces: list[bytes | memoryview] = []
        self._bytes = 0

    def takes(self, length: int) -> bool:
        """Whether one more cluster with a frame of so many bytes fits."""
        count = len(self._clusters) + 1
        return count <= MOST_CLUSTERS and self._bytes + length + count * _DESCRIPTOR <= _ROOM

    def add(self, cluster: int, length: int, frame: Iterable[bytes | memoryview], fingerprint: bytes) -> None:
        """A frame of so many bytes, in pieces. Clusters between the one before and this one are zero."""
        self._clusters.append(cluster)
        self._lengths.append(length)
        self._fingerprints += fingerprint
        self._pieces += frame
        self._bytes += length
        self.end = cluster + 1

    def encode(self, number: int) -> bytes:
        """Padded to the length of a record, so that the file does not tell how well what shrank."""
        header = wire.batch_header(
            number,
            self.disk,
            clusters=self._clusters,
            lengths=self._lengths,
            prints=bytes(self._fingerprints),
            zeros=(),
        )
        head = wire.encode(header)
        length = len(head) + self._bytes
        covered = _COVERED.pack(self.disk, self.start, self.end, length)
        padding = _ZEROS[: RECORD_BYTES - TAG_BYTES - len(covered) - length]
        return b"".join((covered, head, *self._pieces, padding))  # the one copy of the content


class PartReader:
    """One part of a seed, open for reading; memory is bounded by a record, whatever the file says."""

    def __init__(self, path: Path, seed: bytes, number: int, key: bytes) -> None:
        """Raises PartMissing, PartSwapped; RecordDamaged for record 0, the header."""
        self.number = number
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would never open
        except FileNotFoundError:
            raise PartMissing(number) from None
        except OSError as error:
            raise RecordDamaged(number, 0, f"it cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(self._fd)
            self.size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise RecordDamaged(number, 0, "it is no file")
            header = self._header(seed)
        except Failed:
            os.close(self._fd)
            raise
        self._bound_to = header
        self._sealed, self._plain = bytearray(RECORD_BYTES), bytearray(RECORD_BYTES - TAG_BYTES)
        self._aead = _aead(key, header)

    def read(self, number: int, sizes: Sequence[int]) -> Record:
        """Record 1, 2 …; `sizes` of the disks in clusters. Raises RecordDamaged."""
        at = HEADER_BYTES + (number - 1) * RECORD_BYTES
        try:
            found = os.preadv(self._fd, [self._sealed], at)
        except OSError as error:
            raise RecordDamaged(self.number, number, error.strerror or "it cannot be read") from error
        if found < RECORD_BYTES:
            raise RecordDamaged(self.number, number, "it is cut off")
        try:
            self._aead.decrypt_into(_nonce(number), self._sealed, _bound(self._bound_to, number), self._plain)
        except InvalidTag:
            raise RecordDamaged(self.number, number, "it does not open with the seed's key") from None
        try:
            return _record(memoryview(self._plain), sizes)
        except (ValueError, struct.error, wire.BadMessage, zstd_frame.BadFrame) as error:
            raise RecordDamaged(self.number, number, str(error)) from error

    def close(self) -> None:
        os.close(self._fd)

    def _header(self, seed: bytes) -> Header:
        try:
            data = os.pread(self._fd, HEADER_BYTES, 0)
        except OSError as error:
            raise RecordDamaged(self.number, 0, error.strerror or "it cannot be read") from error
        header = Header.decode(data)
        if header is None or data != header.encode():
            raise RecordDamaged(self.number, 0, "it does not begin like a part of a seed")
        if header.seed != seed:
            raise PartSwapped(self.number, "a part of another seed")
        if header.number != self.number:
            raise PartSwapped(self.number, f"part {header.number}")
        return header


def ours(name: str) -> bool:
    """Whether a file in a seed's folder is a part, whole or begun."""
    return _NAME.fullmatch(name) is not None


def digest(path: Path) -> tuple[int, bytes]:
    """Size in bytes and digest of a part. Raises OSError."""
    hasher, size = blake3(), 0
    with path.open("rb", buffering=0) as file:  # not mapped: a medium that fails would end the process
        while data := file.read(_READ):
            hasher.update(data)
            size += len(data)
    return size, hasher.digest(length=DIGEST_BYTES)


def _record(plain: memoryview, sizes: Sequence[int]) -> Record:
    """Raises ValueError, struct.error, BadMessage, BadFrame."""
    disk, start, end, length = _COVERED.unpack_from(plain)
    message = wire.decode(bytes(plain[_COVERED.size : _COVERED.size + length]))
    if message.header.WhichOneof("frame") != "batch":
        raise ValueError("it holds no clusters")
    batch = wire.batch_of(message)
    if batch.disk != disk or disk >= len(sizes) or not start <= end <= sizes[disk] or batch.zero_runs:
        raise ValueError(f"clusters {start} to {end} of disk {disk}")
    if list(batch.clusters) != sorted(set(batch.clusters)) or len(batch.clusters) > MOST_CLUSTERS:
        raise ValueError("its clusters are out of order")
    if batch.clusters and not start <= batch.clusters[0] <= batch.clusters[-1] < end:
        raise ValueError("it holds clusters it does not cover")
    if len(batch.fingerprints) != len(batch.clusters) * FINGERPRINT_BYTES or len(batch.payload) > RECORD_BYTES:
        raise ValueError("its descriptors differ in number")
    zstd_frame.check(batch.payload, batch.lengths)
    return Record(disk, start, end, batch)


def _aead(key: bytes, header: Header) -> AESGCM:
    info = b"twinsite seed part v1\0" + header.seed + header.number.to_bytes(4, "little")
    return AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, header.salt, info).derive(key))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _bound(header: Header, number: int) -> bytes:
    return _BOUND.pack(header.seed, header.number, number)
