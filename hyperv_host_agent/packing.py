"""Clusters into zstd frames: what the source does to content before it travels.

Every data cluster becomes exactly one frame of CLUSTER bytes with a checksum, which the target stores as it came and
QEMU reads. Content that does not shrink, and all of it when compression is off, is a frame of one raw block: the
content itself is then only referred to, never copied here.
"""

import time
from dataclasses import dataclass, field
from typing import Final

import zstandard

from hyperv_host_agent.store.formats import zstd_frame
from twinsite.digest import FINGERPRINT_BYTES, ZERO_FINGERPRINT, fingerprint, is_zero
from twinsite.extents import CLUSTER, Run

# A frame that saves less than this is not worth the reader's decompression.
_WORTH: Final = CLUSTER * 97 // 100
_SAMPLE_BYTES: Final = 1024
_SAMPLES: Final = tuple(slice(at, at + _SAMPLE_BYTES) for at in range(CLUSTER // 8, CLUSTER, CLUSTER // 4))
_PROBE: Final = 16  # of clusters whose sample does not shrink, one in so many is tried whole
_ZEROS: Final = bytes(32 * CLUSTER)  # as much as is read at once

Part = bytes | memoryview


@dataclass(slots=True)
class Packed:
    """What clusters of one disk came to, ascending. `parts` are the frames' pieces; several may be one frame."""

    disk: int
    clusters: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    fingerprints: bytearray = field(default_factory=bytearray)
    zeros: list[Run] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    frame_bytes: int = 0
    message: bytes = b""  # once it is made
    link: bytes = b""  # of the message, for the chain digest
    shrunk: int = 0  # clusters that became less
    shrunk_seconds: float = 0.0  # in which they did
    pack_seconds: float = 0.0  # of one thread in all this
    read_seconds: float = 0.0  # and in reading before it

    @property
    def changed_clusters(self) -> int:
        return len(self.clusters) + sum(run.count for run in self.zeros)

    def add_zeros(self, run: Run) -> None:
        if self.zeros and self.zeros[-1].end == run.start:
            run = Run(self.zeros[-1].start, self.zeros[-1].count + run.count)
            self.zeros.pop()
        self.zeros.append(run)

    def extend(self, other: "Packed") -> None:
        self.clusters += other.clusters
        self.lengths += other.lengths
        self.fingerprints += other.fingerprints
        self.parts += other.parts
        self.frame_bytes += other.frame_bytes
        for run in other.zeros:
            self.add_zeros(run)


class Packer:
    """One thread's compressor. `level` 0 runs none; it may be changed between two calls.

    After a cluster that did not shrink, a sample of the next one decides whether the compressor sees it: for noise
    that is a third of the time at level 1 and a sixth at level 9 (measured), and other content is never sampled.
    """

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self._sampler = zstandard.ZstdCompressor(level=1)
        self._noise = 0  # clusters in a row that did not shrink
        self.level = 0

    def pack(self, packed: Packed, run: Run, data: bytes, known: bytes | None) -> None:
        """Add the run's clusters; `data` ends early at the disk's end only.

        `known` are the fingerprints the target has: clusters that equal theirs are left out. None: nothing is known.
        """
        if known is None and data == _ZEROS[: len(data)]:
            packed.add_zeros(run)
            return
        view = memoryview(data)
        for place in range(run.count):
            content: Part = view[place * CLUSTER : (place + 1) * CLUSTER]
            zero = is_zero(content)
            if len(content) < CLUSTER and not zero:  # QEMU wants a whole cluster from every frame
                content = bytes(content).ljust(CLUSTER, b"\0")
            found = ZERO_FINGERPRINT if zero else fingerprint(content)
            if known is not None and known[place * FINGERPRINT_BYTES : (place + 1) * FINGERPRINT_BYTES] == found:
                continue
            if zero:
                packed.add_zeros(Run(run.start + place, 1))
                continue
            started = time.perf_counter()
            length = self._frame(content, packed.parts)
            if length < _WORTH:
                packed.shrunk += 1
                packed.shrunk_seconds += time.perf_counter() - started
            packed.clusters.append(run.start + place)
            packed.lengths.append(length)
            packed.fingerprints += found
            packed.frame_bytes += length

    def _frame(self, content: Part, parts: list[Part]) -> int:
        if self.level and self._promising(content):
            frame = self._compressor().compress(content)
            if len(frame) < _WORTH:
                self._noise = 0
                parts.append(frame)
                return len(frame)
            self._noise += 1
        pieces = zstd_frame.raw_parts(content)
        parts += pieces
        return sum(map(len, pieces))

    def _promising(self, content: Part) -> bool:
        if not self._noise:
            return True
        sample = b"".join([content[piece] for piece in _SAMPLES])
        if len(self._sampler.compress(sample)) < len(sample):
            return True
        self._noise += 1
        return self._noise % _PROBE == 0

    def _compressor(self) -> zstandard.ZstdCompressor:
        if self.level not in self._compressors:
            self._compressors[self.level] = zstandard.ZstdCompressor(
                level=self.level, write_checksum=True, write_content_size=True
            )
        return self._compressors[self.level]


def holes(packed: Packed, run: Run, known: bytes | None) -> None:
    """Add clusters that are zero without having been read."""
    if known is None:
        packed.add_zeros(run)
        return
    if known == _ZEROS[: len(known)]:
        return  # as memory compares: a sparse disk has millions of these
    for place in range(run.count):
        if known[place * FINGERPRINT_BYTES : (place + 1) * FINGERPRINT_BYTES] != ZERO_FINGERPRINT:
            packed.add_zeros(Run(run.start + place, 1))
