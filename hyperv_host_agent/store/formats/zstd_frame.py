"""zstd frames as clusters are stored in: one frame, one cluster, checksum on, no dictionary.

QEMU returns an I/O error for a frame that holds more or less than a cluster, so a bad frame stored today is a failed
failover later: structure is checked on arrival, which takes about a microsecond and no decompression.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Final

import xxhash
import zstandard

from twinsite.extents import CLUSTER

MAX_FRAME: Final = CLUSTER + 512  # the longest that can be needed is raw(): CLUSTER + 14
_MAGIC: Final = 0xFD2FB528
_SINGLE_SEGMENT: Final = 0x20
_CHECKSUM: Final = 0x04
_RESERVED: Final = 0x08
_DICTIONARY: Final = 0x03
_CHECKSUM_BYTES: Final = 4
_RAW, _RLE, _COMPRESSED = 0, 1, 2
# What the common encoders write for a cluster: checksum, single segment, content size in two bytes (less 256).
_USUAL: Final = struct.Struct("<IBHHB")  # magic, descriptor, content size - 256, first block header (24 bits)
_USUAL_DESCRIPTOR: Final = 0x64
_USUAL_SIZE: Final = CLUSTER - 256
_LAST_COMPRESSED: Final = 1 | _COMPRESSED << 1
_LAST_RAW: Final = 1 | CLUSTER << 3
_RAW_HEAD: Final = _USUAL.pack(_MAGIC, _USUAL_DESCRIPTOR, _USUAL_SIZE, _LAST_RAW & 0xFFFF, _LAST_RAW >> 16)
_local = threading.local()  # zstandard contexts must not be shared between threads


class BadFrame(ValueError):
    """A frame breaks the rules; `position` is its index in what was checked."""

    def __init__(self, problem: str, position: int = 0) -> None:
        super().__init__(f"frame {position}: {problem}")
        self.problem, self.position = problem, position


def raw(data: bytes | memoryview) -> bytes:
    """A frame that stores a cluster as it is (padded with zeros), made without the compressor: CLUSTER + 14 bytes."""
    return b"".join(raw_parts(data))


def raw_parts(data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    """The pieces of `raw`, for a caller that joins many frames: a whole cluster is not copied here."""
    if len(data) != CLUSTER:
        data = bytes(data).ljust(CLUSTER, b"\0")
    checksum = xxhash.xxh64_intdigest(data) & 0xFFFFFFFF
    return _RAW_HEAD, data, checksum.to_bytes(_CHECKSUM_BYTES, "little")


def check(payload: bytes | memoryview, lengths: Sequence[int]) -> None:
    """Check that `payload` is exactly frames of these lengths, one whole cluster each. Raises BadFrame."""
    unpack = _USUAL.unpack_from
    head = _USUAL.size
    if sum(lengths) != len(payload):
        raise BadFrame(f"lengths add up to {sum(lengths)}, there are {len(payload)} bytes")
    at = 0
    for position, size in enumerate(lengths):
        if not head + _CHECKSUM_BYTES <= size <= MAX_FRAME:
            raise BadFrame(f"length {size} is out of range", position)
        magic, descriptor, content, low, high = unpack(payload, at)
        block = low | high << 16
        usual = magic == _MAGIC and descriptor == _USUAL_DESCRIPTOR and content == _USUAL_SIZE
        # Nearly every frame is one block, compressed or the whole cluster raw; anything else takes the slow road.
        one = (block & 7 == _LAST_COMPRESSED and block >> 3 < CLUSTER) or block == _LAST_RAW
        if not (usual and one and head + (block >> 3) + _CHECKSUM_BYTES == size):
            try:
                walked = length(memoryview(payload)[at : at + size])
            except BadFrame as error:
                raise BadFrame(error.problem, position) from None
            if walked != size:
                raise BadFrame(f"ends after {walked} of its {size} bytes", position)
        at += size


def length(frame: bytes | memoryview) -> int:
    """Length of the frame at the start of `frame` (which may go on), by its block headers. Raises BadFrame."""
    if len(frame) < 6 or int.from_bytes(frame[:4], "little") != _MAGIC:
        raise BadFrame("no zstd frame")
    descriptor = frame[4]
    if not descriptor & _CHECKSUM:
        raise BadFrame("no checksum")
    if descriptor & _DICTIONARY:
        raise BadFrame("needs a dictionary")
    if descriptor & _RESERVED:
        raise BadFrame("reserved bit is set")
    single = bool(descriptor & _SINGLE_SEGMENT)
    at = 5 if single else 6
    size_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    if not size_bytes:
        raise BadFrame("no content size")
    content = int.from_bytes(frame[at : at + size_bytes], "little") + (256 if size_bytes == 2 else 0)
    if content != CLUSTER:
        raise BadFrame(f"holds {content} bytes, a cluster has {CLUSTER}")
    return _walk_blocks(frame, at + size_bytes) + _CHECKSUM_BYTES


def _walk_blocks(frame: bytes | memoryview, at: int) -> int:
    """Where the blocks end."""
    known, compressed = 0, False
    while True:
        if at + 3 > len(frame):
            raise BadFrame("is cut off")
        block = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        if kind not in {_RAW, _RLE, _COMPRESSED}:
            raise BadFrame("block of a reserved type")
        if size > CLUSTER:
            raise BadFrame(f"block of {size} bytes")
        at += 3 + (1 if kind == _RLE else size)
        if kind == _COMPRESSED:
            compressed = True
        else:
            known += size
        if at + (_CHECKSUM_BYTES if last else 0) > len(frame):
            raise BadFrame("is cut off")
        if last:
            break
    if known > CLUSTER or (known != CLUSTER and not compressed):
        raise BadFrame(f"its blocks hold {known} bytes, a cluster has {CLUSTER}")
    return at


def content(frame: bytes | memoryview) -> bytes:
    """The cluster in a frame; what follows the frame is ignored. Raises BadFrame when it is damaged. Thread-safe."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # What a frame says of its size is allocated, whatever limit is given.
        if zstandard.frame_content_size(frame) not in {CLUSTER, -1}:
            raise BadFrame("does not hold a cluster")
        data = decompressor.decompress(frame, max_output_size=CLUSTER)
    except zstandard.ZstdError as error:
        raise BadFrame(str(error)) from error
    if len(data) != CLUSTER:
        raise BadFrame(f"holds {len(data)} bytes, a cluster has {CLUSTER}")
    return data


def compress(data: bytes | memoryview) -> bytes:
    """A frame of one cluster (padded with zeros) for clusters the store itself makes. Thread-safe."""
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    frame = compressor.compress(bytes(data).ljust(CLUSTER, b"\0"))
    return frame if len(frame) <= CLUSTER else raw(data)
