"""What a target tells of its newest cycle's content: fingerprints, in pieces of bounded size, for `Fingerprints`."""

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from itertools import islice
from typing import Final

from hyperv_host_agent.replicas import Held
from hyperv_host_agent.replication import ownership
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry
from hyperv_host_agent.store.base import Replica
from twinsite.api.host.v1.replication_pb2 import FingerprintsChunk
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import Precondition
from twinsite.extents import clusters

CHUNK_CLUSTERS: Final = 4096  # 64 KiB of fingerprints
_GAP: Final = 16  # so many zero clusters are named rather than a new run begun
_STEP: Final = 16  # chunks made in one go: 1 MiB at most


class OtherCycle(Precondition):
    public = "the target's newest cycle is another than cycle {error.asked}"
    still_works = "nothing was changed; the source asks what is here and goes on from there by itself"

    def __init__(self, asked: int) -> None:
        self.asked = asked


class AwaitsSeed(Precondition):
    public = "the content of this replica is on its way on media: its fingerprints are not known yet"
    still_works = "changes go on arriving"
    next_step = "twinsite seed import"


class Feed:
    """One call's. Asks the store piece by piece, so that a cycle that arrives meanwhile is not kept waiting."""

    def __init__(self, held: Held, asked: Committed, term: int, *, at_once: int = _STEP) -> None:
        """`at_once`: chunks that are made in one go."""
        self._held, self._asked, self._term, self._at_once = held, asked, term, at_once

    async def chunks(self) -> AsyncGenerator[FingerprintsChunk, None]:
        """First one without fingerprints for every disk, then runs. Raises OtherCycle, AwaitsSeed, OlderTerm."""
        made = self._made(self._held.replica)
        try:
            while chunks := await self._held.run(self._step, made):
                for chunk in chunks:
                    yield chunk
        finally:
            await self._held.run(made.close)

    def _step(self, made: Iterator[FingerprintsChunk]) -> list[FingerprintsChunk]:
        state = self._held.replica.state()
        if state.term > self._term:
            raise ownership.OlderTerm(self._term, state.term)
        if state.committed != self._asked:
            raise OtherCycle(self._asked.number)
        if state.awaiting_seed:
            raise AwaitsSeed
        return list(islice(made, self._at_once))

    def _made(self, replica: Replica) -> Generator[FingerprintsChunk, None, None]:
        newest = replica.points()[-1]
        for disk in newest.disks:
            yield FingerprintsChunk(disk_id=disk.id, disk_bytes=disk.size)
        for disk in newest.disks:
            yield from _runs(disk, replica.fingerprints(disk.id, 0, clusters(disk.size)))


def _runs(disk: DiskGeometry, found: Iterable[tuple[int, bytes]]) -> Iterator[FingerprintsChunk]:
    start, gathered = 0, bytearray()
    for cluster, value in found:
        gap = cluster - start - len(gathered) // FINGERPRINT_BYTES
        if gathered and (gap > _GAP or cluster - start >= CHUNK_CLUSTERS):
            yield _chunk(disk, start, gathered)
            gathered.clear()
        if not gathered:
            start, gap = cluster, 0
        gathered += bytes(gap * FINGERPRINT_BYTES) + value
    if gathered:
        yield _chunk(disk, start, gathered)


def _chunk(disk: DiskGeometry, start: int, gathered: bytearray) -> FingerprintsChunk:
    return FingerprintsChunk(disk_id=disk.id, disk_bytes=disk.size, start=start, fingerprints=bytes(gathered))
