"""From a source's clusters to messages ready to send: reading, comparing, compressing, batching.

The index and the pending fingerprints of a VM are changed by one thread of its own; the threads that read, hash and
compress are the host's. Units of a copy are read and packed ahead of being asked for, a bounded number, so that disk,
processors and network work at the same time.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, ParamSpec, TypeVar

from hyperv_host_agent import packing, reading_plan, wire
from hyperv_host_agent.changes.base import ChangeSource, SourcePoint
from hyperv_host_agent.changes.fingerprints import FingerprintIndex
from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.pending import Pending
from hyperv_host_agent.reading_plan import Unit
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.replication.sending import ReadPoint, ReadSlice, Ready
from hyperv_host_agent.replication.state import Position
from hyperv_host_agent.spool import Spool
from twinsite.digest import CHAIN_START, chained
from twinsite.extents import CLUSTER, Run, clusters
from twinsite.units import MiB

UNIT_CLUSTERS: Final = 32  # read at once: 2 MiB
BATCH_BYTES: Final = 2 * MiB  # of content in a batch; a message costs both agents the same Python whatever its size
BATCH_CLUSTERS: Final = 512  # looked at before the sender is told how far it is
AHEAD: Final = 4  # units on their way at one time
PLANNED: Final = 1024  # units known ahead of being read
COPY_PLANNED: Final = 64  # of a copy, whose units may get smaller while it runs
ZERO_RUNS: Final = 2048  # gathered in one batch; with those of one more unit it is still one that is taken
NOTES: Final = 256  # batches whose fingerprints wait in memory to be written down

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Compressors:
    """The threads of this host that hash and compress, for all its VMs."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads, "compress")
        self._local = threading.local()

    def packer(self, level: int) -> Packer:
        packer: Packer | None = getattr(self._local, "packer", None)
        if packer is None:
            packer = self._local.packer = Packer()
        packer.level = level
        return packer

    def close(self) -> None:
        self.pool.shutdown()


@dataclass(slots=True)
class Work:
    """What reading and packing came to; seconds are sums over the threads."""

    read_seconds: float = 0.0
    pack_seconds: float = 0.0
    shrunk_seconds: float = 0.0  # of pack_seconds: in which content became less
    shrunk_bytes: int = 0  # of content_bytes: that did
    content_bytes: int = 0  # that frames were made of
    frame_bytes: int = 0

    def add(self, packed: Packed) -> None:
        self.read_seconds += packed.read_seconds
        self.pack_seconds += packed.pack_seconds
        self.shrunk_seconds += packed.shrunk_seconds
        self.shrunk_bytes += packed.shrunk * CLUSTER
        self.content_bytes += len(packed.clusters) * CLUSTER
        self.frame_bytes += packed.frame_bytes

    def merge(self, other: "Work") -> None:
        self.read_seconds += other.read_seconds
        self.pack_seconds += other.pack_seconds
        self.shrunk_seconds += other.shrunk_seconds
        self.shrunk_bytes += other.shrunk_bytes
        self.content_bytes += other.content_bytes
        self.frame_bytes += other.frame_bytes


@dataclass(frozen=True, slots=True)
class Built:
    """A message, and what the sender is told of it."""

    message: bytes
    ready: Ready


@dataclass(slots=True)
class _Way:
    """Units on their way through the threads, in order."""

    units: Iterator[Unit]
    planned: deque[Unit] = field(default_factory=deque)
    ended: bool = False  # all units are planned
    window: int = PLANNED
    flying: deque[tuple[Unit, Future[Packed]]] = field(default_factory=deque)


class Reader:
    """One VM's. Coroutines and `run` are called on the event loop, one slice or point at a time."""

    def __init__(
        self,
        source: ChangeSource,
        index: FingerprintIndex,
        pending: Pending,
        compressors: Compressors,
        *,
        compression: bool,
    ) -> None:
        self.source = source
        self.index = index
        self.pending = pending
        self.compression = compression
        self.level = 1  # of zstd, if there is compression; 0: none after all
        self.batch_bytes = BATCH_BYTES  # less under a rate cap, so that messages flow evenly
        self._compressors = compressors
        self._thread = ThreadPoolExecutor(1, "source")
        self._copy: tuple[bytes, int, Position, _Way] | None = None  # cycle, stream, where it goes on, what flies
        self._copied: dict[str, int] = {}  # bytes of the disks as their copy announced them
        self._there: dict[str, int] = {}  # and what the source has of them now

    @property
    def threads(self) -> int:
        """That pack at a time, for all VMs of the host."""
        return self._compressors.threads

    async def run(self, call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """`call` in the thread that owns source, index and pending fingerprints."""
        return await asyncio.wrap_future(self._thread.submit(call, *args, **kwargs))

    async def slice(self, order: ReadSlice) -> tuple[Built | None, Position, Work]:
        """The next batch of a copy, None when nothing had to go; where the copy goes on, and what it took."""
        disks, work = order.header.disks, Work()
        self._copied = {disk.id: disk.size for disk in disks}
        way = await self._continued(order)
        self._copy = (order.header.id, order.stream, order.position, way)  # to be stopped, whatever comes
        packed, last = await self._next(way, disks, work)
        more = await self._ahead(way, disks)
        position = _after(disks, last) if more and last is not None else Position(len(disks), 0)
        self._copy = (order.header.id, order.stream, position, way)
        if packed is None:
            # What an older stream noted from here on must go, also when nothing more has to be sent.
            await self.run(self.pending.begin, order.header.id, order.sequence)
            return None, position, work
        if self._note(order, packed) > NOTES:
            await self.run(self.pending.write)
        return _built(packed, order.sequence, order.digest, disks), position, work

    async def point(self, point: SourcePoint, order: ReadPoint, spool: Spool, told: Callable[[Ready], None]) -> Work:
        """All of a point's changes into the spool, `told` of each batch there; what it took."""
        work = Work()
        disks = order.header.disks
        await self.stop()
        await self.run(self.pending.begin, order.header.id, 1)
        way = _Way(reading_plan.changes(point, order, self._unit()))
        sequence, digest = 0, CHAIN_START
        try:
            while await self._ahead(way, disks):
                packed, _ = await self._next(way, disks, work)
                if packed is not None:
                    built = _built(packed, sequence + 1, digest, disks)
                    await self.run(self._keep, built, packed, spool)
                    sequence, digest = built.ready.sequence, built.ready.digest
                    told(built.ready)
        finally:
            await asyncio.shield(_landed(way))
        return work

    async def _next(self, way: _Way, disks: tuple[DiskGeometry, ...], work: Work) -> tuple[Packed | None, Unit | None]:
        """The next batch, None when so much was looked at in vain; and the last unit that is dealt with."""
        zeros: Packed | None = None
        last: Unit | None = None
        looked = 0
        while looked < BATCH_CLUSTERS and await self._ahead(way, disks):
            unit, flying = way.flying[0]
            packed = await asyncio.wrap_future(flying)
            if zeros is not None and (packed.clusters or packed.disk != zeros.disk or len(zeros.zeros) > ZERO_RUNS):
                break  # that is a batch of its own
            way.flying.popleft()
            last = unit
            work.add(packed)
            looked += min(unit.count, UNIT_CLUSTERS)
            if packed.clusters:
                return packed, last
            if packed.zeros and zeros is not None:
                zeros.extend(packed)
            elif packed.zeros:
                zeros = packed
        if zeros is not None:
            _finish(zeros)
        return zeros, last

    async def stop(self) -> None:
        """Nothing more is read ahead, and nothing is being read when it returns."""
        if self._copy is not None:
            _, _, _, way = self._copy
            self._copy = None
            await asyncio.shield(_landed(way))

    async def close(self) -> None:
        """Raises what the last of it raises; nothing is open then either."""
        await self.stop()
        try:
            await self.run(self.source.rest)
            await self.run(self.pending.close)
        finally:
            await self.run(self.index.close)
            self._thread.shutdown(wait=False)

    def _keep(self, built: Built, packed: Packed, spool: Spool) -> None:
        sequence = built.ready.sequence
        spool.append(sequence, built.message)
        self.pending.add(sequence, packed.disk, packed.clusters, bytes(packed.fingerprints), packed.zeros)

    def _note(self, order: ReadSlice, packed: Packed) -> int:
        return self.pending.note(
            order.header.id,
            order.sequence,
            packed.disk,
            clusters=packed.clusters,
            fingerprints=bytes(packed.fingerprints),
            zeros=packed.zeros,
        )

    async def _continued(self, order: ReadSlice) -> _Way:
        if self._copy is not None:
            cycle, stream, position, way = self._copy
            if (cycle, stream, position) == (order.header.id, order.stream, order.position):
                return way
            await self.stop()
        return _Way(reading_plan.everything(order, self._read_then, self._unit, self._holes_then), window=COPY_PLANNED)

    async def _ahead(self, way: _Way, disks: tuple[DiskGeometry, ...]) -> bool:
        """Units are on their way, as many as may be; False: there are none left."""
        if len(way.planned) < AHEAD and not way.ended:
            planned = await self.run(self._plan, way)
            way.planned.extend(planned)
            way.ended = len(planned) < way.window
        while way.planned and len(way.flying) < AHEAD:
            unit = way.planned.popleft()
            way.flying.append((unit, self._compressors.pool.submit(self._pack, unit, disks[unit.disk].id)))
        return bool(way.flying)

    def _plan(self, way: _Way) -> list[Unit]:
        """The source is asked in its thread, for a bounded number of units."""
        self._there = {disk.id: min(disk.size, self._copied.get(disk.id, 0)) for disk in self.source.disks()}
        return list(islice(way.units, way.window))

    def _pack(self, unit: Unit, disk: str) -> Packed:
        started = time.monotonic()
        contents = self._read(unit, disk)
        read = time.monotonic()
        packed = Packed(unit.disk)
        packer = self._compressors.packer(self.level if self.compression else 0)
        for run, (content, known) in zip(unit.runs, contents, strict=True):
            if content is None:
                packing.holes(packed, run, known)
            else:
                packer.pack(packed, run, content, known)
        if packed.clusters:
            _finish(packed)
        packed.read_seconds = read - started
        packed.pack_seconds = time.monotonic() - read
        return packed

    def _read(self, unit: Unit, disk: str) -> list[tuple[bytes | None, bytes | None]]:
        """Content and the fingerprints to compare with, run by run."""
        return [(unit.read(disk, run), self.index.get(disk, run) if unit.compare else None) for run in unit.runs]

    def _unit(self) -> int:
        """Clusters that are read at once."""
        return max(1, min(UNIT_CLUSTERS, self.batch_bytes // CLUSTER))

    def _read_then(self, disk: str, run: Run) -> bytes | None:
        """What a copy takes of the run now: zeros where a disk shrank or went since the copy began, and nothing of
        what a disk that grew has behind its old end: a layer of the old size would not show it.
        """
        there = self._there.get(disk, 0)
        part = Run(run.start, min(run.end, clusters(there)) - run.start)
        if part.count <= 0:
            return None
        content = self.source.read_now(disk, part)
        room = there - run.start * CLUSTER
        if len(content) > room:
            content = bytes(content[:room])
        return content if part == run else bytes(content).ljust(run.count * CLUSTER, b"\0")

    def _holes_then(self, disk: str, run: Run) -> Iterator[Run]:
        """Holes of a disk that is being copied; where it has no clusters any more is one."""
        there = max(run.start, min(run.end, clusters(self._there.get(disk, 0))))
        if there > run.start:
            yield from self.source.holes_now(disk, Run(run.start, there - run.start))
        if there < run.end:
            yield Run(there, run.end - there)


async def _landed(way: _Way) -> None:
    """What flies is given up or over: who closes the disk or the index next closes it under nobody."""
    flying = [asyncio.wrap_future(one) for _, one in way.flying if not one.cancel()]
    way.flying.clear()
    await asyncio.gather(*flying, return_exceptions=True)


def _finish(packed: Packed) -> None:
    """Make the message, in whatever thread that is: all of it but its place among the others."""
    header = wire.batch_header(
        0,
        packed.disk,
        clusters=packed.clusters,
        lengths=packed.lengths,
        prints=bytes(packed.fingerprints),
        zeros=packed.zeros,
    )
    packed.message = wire.encode(header, packed.parts)
    packed.link = wire.link(packed.message)
    packed.parts.clear()


def _built(packed: Packed, sequence: int, before: bytes, disks: tuple[DiskGeometry, ...]) -> Built:
    changed = min(packed.changed_clusters * CLUSTER, disks[packed.disk].size)
    content = min(len(packed.clusters) * CLUSTER, changed)
    digest = chained(before, packed.link)
    return Built(packed.message, Ready(sequence, len(packed.message), digest, changed, content, disk=packed.disk))


def _after(disks: tuple[DiskGeometry, ...], unit: Unit) -> Position:
    if unit.end >= clusters(disks[unit.disk].size):
        return Position(unit.disk + 1, 0)
    return Position(unit.disk, unit.end)
