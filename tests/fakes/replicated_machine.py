"""A VM's disks as a source sees them: random changes, and the cycles that carry them to a target."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import zstandard

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store.base import PointInfo, Replica
from hyperv_host_agent.store.formats import zstd_frame
from twinsite import digest
from twinsite.extents import CLUSTER, clusters, runs

_COMPRESSOR = zstandard.ZstdCompressor(level=1, write_checksum=True)


def frame_of(data: bytes) -> bytes:
    """As a source makes it: padded, compressed, raw when that does not help."""
    frame = _COMPRESSOR.compress(data.ljust(CLUSTER, b"\0"))
    return frame if len(frame) < CLUSTER else zstd_frame.raw(data)


def batch_of(sequence: int, disk: int, content: bytes, data: Sequence[int], zeros: Sequence[int] = ()) -> Batch:
    """A batch of these clusters of a disk with this content."""
    cut = [content[index * CLUSTER : (index + 1) * CLUSTER] for index in data]
    frames = [frame_of(piece) for piece in cut]
    return Batch(
        sequence=sequence,
        disk=disk,
        clusters=list(data),
        lengths=list(map(len, frames)),
        fingerprints=b"".join(map(digest.fingerprint, cut)),
        zero_runs=tuple(runs(zeros)),
        payload=b"".join(frames),
    )


@dataclass
class Cycle:
    header: CycleHeader
    batches: list[tuple[Batch, bytes]]
    content: dict[str, bytes]  # the disks at the instant


@dataclass
class Machine:
    """Drive it with `write`, `resize`, `scribble`; take a `cycle` and `send` it."""

    vm_id: str
    disks: dict[str, bytearray]
    seed: int = 0
    number: int = 0
    parent_id: bytes = b""
    term: int = 1
    dirty: dict[str, set[int]] = field(default_factory=dict)
    compress_runs: int = 3  # clusters in a batch

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        for disk in self.disks:
            self.dirty[disk] = set(range(clusters(len(self.disks[disk]))))

    def write(self, disk: str, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.disks[disk])
        self.disks[disk][offset : offset + len(data)] = data
        self.dirty[disk].update(range(offset // CLUSTER, -(-(offset + len(data)) // CLUSTER)))

    def add(self, disk: str, size: int) -> None:
        self.disks[disk] = bytearray(size)
        self.dirty[disk] = set()

    def remove(self, disk: str) -> None:
        del self.disks[disk], self.dirty[disk]

    def resize(self, disk: str, size: int) -> None:
        """Growing reads zeros; what was cut off is gone. Neither marks anything dirty."""
        content = self.disks[disk]
        del content[size:]
        content.extend(bytes(size - len(content)))
        self.dirty[disk] = {index for index in self.dirty[disk] if index < clusters(size)}

    def scribble(self) -> None:
        """A few random writes: noise, text, zeros, a run of zeros, the tail."""
        for disk, content in self.disks.items():
            total = clusters(len(content))
            for _ in range(self.random.randrange(5)):
                index = self.random.choice((self.random.randrange(total), total - 1))
                room = min(CLUSTER, len(content) - index * CLUSTER)
                kind = self.random.randrange(4)
                if kind == 0:
                    self.write(disk, index * CLUSTER, self.random.randbytes(room))
                elif kind == 1:
                    self.write(disk, index * CLUSTER, (b"line %d\n" % self.random.randrange(99) * CLUSTER)[:room])
                elif kind == 2:
                    self.write(disk, index * CLUSTER, bytes(room))
                else:
                    end = min(index + self.random.randrange(1, 6), total)
                    self.write(disk, index * CLUSTER, bytes(min(end * CLUSTER, len(content)) - index * CLUSTER))

    def scribble_and_resize(self) -> None:
        """As `scribble`; now and then a disk shrinks or grows, to any sector."""
        self.scribble()
        for disk in list(self.disks):
            if self.random.randrange(4) == 0:
                self.resize(disk, self.random.randrange(1, 40 * CLUSTER // 512) * 512)
        if self.random.randrange(2):
            self.scribble()

    def cycle(self, kind: Kind | None = None, *, name: bytes | None = None) -> Cycle:
        """The next cycle: what is dirty, which is clean afterwards."""
        kind = kind or (Kind.DELTA if self.number else Kind.INITIAL)
        header = CycleHeader(
            vm_id=self.vm_id,
            id=name or self.random.randbytes(16),
            number=self.number + 1,
            parent=self.number,
            parent_id=self.parent_id,
            term=self.term,
            kind=kind,
            instant=1_800_000_000.0 + self.number,
            consistency="crash" if kind is Kind.DELTA else "none",
            disks=tuple(DiskGeometry(disk, len(content), f"name of {disk}") for disk, content in self.disks.items()),
            machine=b"machine %d" % self.number,
        )
        batches = self._batches()
        for dirty in self.dirty.values():
            dirty.clear()
        self.number, self.parent_id = header.number, header.id
        return Cycle(header, batches, {disk: bytes(content) for disk, content in self.disks.items()})

    def _batches(self) -> list[tuple[Batch, bytes]]:
        chain, batches = digest.CHAIN_START, []
        for position, (disk, content) in enumerate(self.disks.items()):
            dirty = sorted(self.dirty[disk])
            for start in range(0, len(dirty), self.compress_runs):
                part = dirty[start : start + self.compress_runs]
                zeros = [x for x in part if digest.is_zero(bytes(content[x * CLUSTER : (x + 1) * CLUSTER]))]
                batch = batch_of(len(batches) + 1, position, bytes(content), [x for x in part if x not in zeros], zeros)
                chain = digest.chain(chain, repr((batch.sequence, batch.disk)).encode(), batch.payload)
                batches.append((batch, chain))
        return batches


def stage(replica: Replica, batches: Iterable[tuple[Batch, bytes]]) -> None:
    for batch, chain in batches:
        replica.put(batch, chain)


def send(replica: Replica, cycle: Cycle) -> PointInfo:
    """One undisturbed cycle."""
    replica.begin(cycle.header, resume_after=0)
    stage(replica, cycle.batches)
    replica.sync()
    return replica.commit()


def fingerprints(content: bytes) -> dict[int, bytes]:
    """What a store must say of a disk with this content."""
    found = {}
    for index in range(clusters(len(content))):
        data = content[index * CLUSTER : (index + 1) * CLUSTER]
        if not digest.is_zero(data):
            found[index] = digest.fingerprint(data)
    return found
