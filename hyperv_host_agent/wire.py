"""The messages of `Replication.Send`: 4 bytes little-endian header length, the FrameHeader, the payload.

A message is built with one copy of the payload and read with none. Bounds are checked here, before anything is
allocated for what a peer claims; what a descriptor may name (disk, order, size) is the receiver's to judge.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from hyperv_host_agent.replication.cycle import ID_BYTES, Batch, CycleHeader, DiskGeometry, Kind
from twinsite import digest
from twinsite.api.host.v1 import replication_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import InvalidInput
from twinsite.extents import Run
from twinsite.units import KiB, MiB

MESSAGE_BYTES: Final = 4 * MiB + 64 * KiB  # also gRPC's limit on the data channel
HEADER_BYTES: Final = 1 * MiB  # a begin frame carries a VM's description and a grant, a batch its descriptors
_LENGTH: Final = struct.Struct("<I")

_KINDS: Final = {
    Kind.INITIAL: pb.CYCLE_KIND_INITIAL,
    Kind.DELTA: pb.CYCLE_KIND_DELTA,
    Kind.RESYNC: pb.CYCLE_KIND_RESYNC,
}
_KIND_OF: Final = {value: kind for kind, value in _KINDS.items()}


class BadMessage(InvalidInput):
    public = "a replication message breaks the rules: {error.problem}"
    still_works = "nothing of it was written"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, problem: str) -> None:
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Message:
    """One decoded message; `body` is header and payload, what the chain digest covers."""

    header: pb.FrameHeader
    payload: memoryview
    body: memoryview


def encode(header: pb.FrameHeader, payload: Sequence[bytes | memoryview] = ()) -> bytes:
    """The message of a header and the parts of its payload, which are copied once."""
    raw = header.SerializeToString()
    return b"".join((_LENGTH.pack(len(raw)), raw, *payload))


def decode(message: bytes) -> Message:
    """Raises BadMessage. The payload is a view of `message`."""
    if not _LENGTH.size <= len(message) <= MESSAGE_BYTES:
        raise BadMessage(f"{len(message)} bytes long")
    (length,) = _LENGTH.unpack_from(message)
    view = memoryview(message)[_LENGTH.size :]
    if length > min(len(view), HEADER_BYTES):
        raise BadMessage(f"a header of {length} bytes in a message of {len(message)}")
    try:
        header = pb.FrameHeader.FromString(bytes(view[:length]))
    except DecodeError as error:
        raise BadMessage("the header is not a FrameHeader") from error
    return Message(header, view[length:], view)


def chain(previous: bytes, message: bytes) -> bytes:
    """The chain digest after a batch's message."""
    return digest.chained(previous, link(message))


def link(message: bytes) -> bytes:
    """A message's part in the chain digest (`twinsite.digest.chained`)."""
    return digest.link(memoryview(message)[_LENGTH.size :])


def batch_header(
    sequence: int, disk: int, *, clusters: Sequence[int], lengths: Sequence[int], prints: bytes, zeros: Sequence[Run]
) -> pb.FrameHeader:
    """`prints` are the fingerprints of `clusters`, back to back. On a stream the order says the sequence: it is 0."""
    return pb.FrameHeader(
        batch=pb.Batch(
            sequence=sequence,
            disk=disk,
            clusters=clusters,
            lengths=lengths,
            fingerprints=prints,
            zero_starts=[run.start for run in zeros],
            zero_counts=[run.count for run in zeros],
        )
    )


def batch_of(message: Message, sequence: int = 0) -> Batch:
    """The batch in a message; parallel arrays agree and the frames fill the payload. Raises BadMessage.

    `sequence` is what its place in a stream gives it, and it may not say another; 0: what it says itself.
    """
    batch = message.header.batch
    count = len(batch.clusters)
    if len(batch.lengths) != count or len(batch.fingerprints) != count * FINGERPRINT_BYTES:
        raise BadMessage("descriptors of different lengths")
    if sequence and batch.sequence not in {0, sequence}:
        raise BadMessage(f"batch {batch.sequence} where {sequence} is next")
    if len(batch.zero_starts) != len(batch.zero_counts):
        raise BadMessage("zero runs of different lengths")
    if sum(batch.lengths) != len(message.payload):
        raise BadMessage(f"frames of {sum(batch.lengths)} bytes in a payload of {len(message.payload)}")
    return Batch(
        sequence=sequence or batch.sequence,
        disk=batch.disk,
        clusters=tuple(batch.clusters),
        lengths=tuple(batch.lengths),
        fingerprints=batch.fingerprints,
        zero_runs=tuple(Run(start, length) for start, length in zip(batch.zero_starts, batch.zero_counts, strict=True)),
        payload=message.payload,
    )


def begin(header: CycleHeader, *, resume_after: int, grant: types_pb2.SignedDocument) -> pb.FrameHeader:
    frame = pb.Begin(
        id=header.id,
        cycle=header.number,
        parent=header.parent,
        parent_id=header.parent_id,
        term=header.term,
        kind=_KINDS[header.kind],
        consistency=header.consistency,
        disks=[types_pb2.Disk(id=disk.id, name=disk.name, size_bytes=disk.size) for disk in header.disks],
        machine=types_pb2.Machine.FromString(header.machine),
        resume_after=resume_after,
        grant=grant,
        placeholder=header.placeholder,
        compared=header.compared,
    )
    frame.instant.CopyFrom(timestamp(header.instant))
    return pb.FrameHeader(begin=frame)


def cycle_of(frame: pb.Begin, vm_id: str) -> CycleHeader:
    """The cycle a begin frame announces for the VM its grant names. Raises BadMessage."""
    if frame.kind not in _KIND_OF:
        raise BadMessage(f"cycle kind {frame.kind}")
    if len(frame.id) != ID_BYTES:
        raise BadMessage(f"a cycle id of {len(frame.id)} bytes")
    if len(frame.parent_id) != (ID_BYTES if frame.parent else 0):
        raise BadMessage(f"a parent's id of {len(frame.parent_id)} bytes")
    if frame.consistency not in {"none", "crash", "application"}:
        raise BadMessage(f"consistency {frame.consistency[:20]!r}")
    if frame.placeholder and frame.kind != pb.CYCLE_KIND_INITIAL:
        raise BadMessage("a placeholder that is no initial copy")
    if frame.cycle < 1 or frame.parent >= frame.cycle:
        raise BadMessage(f"cycle {frame.cycle} on cycle {frame.parent}")
    return CycleHeader(
        vm_id=vm_id,
        id=frame.id,
        number=frame.cycle,
        parent=frame.parent,
        term=frame.term,
        kind=_KIND_OF[frame.kind],
        instant=frame.instant.seconds + frame.instant.nanos / 1e9,
        consistency=frame.consistency,
        disks=tuple(DiskGeometry(disk.id, disk.size_bytes, disk.name) for disk in frame.disks),
        machine=frame.machine.SerializeToString(deterministic=True),
        parent_id=frame.parent_id,
        placeholder=frame.placeholder,
        compared=frame.compared,
    )


def timestamp(instant: float) -> Timestamp:
    """Of seconds since 1970; exact to the nanosecond, which seconds times 10⁹ as a float are not."""
    seconds = math.floor(instant)
    made = Timestamp()
    made.FromNanoseconds(seconds * 1_000_000_000 + round((instant - seconds) * 1e9))
    return made


def alive() -> pb.FrameHeader:
    """Between any two frames: there is nothing to send yet."""
    return pb.FrameHeader(alive=pb.Alive())


def end(batches: int, digest: bytes) -> pb.FrameHeader:
    return pb.FrameHeader(end=pb.End(batches=batches, digest=digest))
