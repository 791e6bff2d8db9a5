"""What a source may learn of the target's newest cycle, and what becomes of its index with it."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from hyperv_host_agent import fingerprint_feed, index_fetch
from hyperv_host_agent.changes.fingerprints import FingerprintIndex
from hyperv_host_agent.changes.memory import MemoryChangeSource
from hyperv_host_agent.pending import Pending
from hyperv_host_agent.reading import Compressors, Reader
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry, Kind, Wanted
from hyperv_host_agent.store.memory import MemoryStore
from hyperv_host_agent.wire import BadMessage
from tests.fakes.hand_source import MACHINE, Source, data, target, zeros
from twinsite.api.host.v1.replication_pb2 import FingerprintsChunk
from twinsite.api.types.v1 import types_pb2
from twinsite.digest import FINGERPRINT_BYTES, ZERO_FINGERPRINT, fingerprint
from twinsite.errors import Denied, Precondition, Unreachable
from twinsite.extents import CLUSTER, Run

BIG = types_pb2.Machine(
    id="vm-2",
    name="db01",
    cpus=1,
    memory_bytes=1 << 30,
    disks=[
        types_pb2.Disk(id="disk-1", name="vda", size_bytes=64 << 30),
        types_pb2.Disk(id="disk-2", name="vdb", size_bytes=CLUSTER + 512),
    ],
)


async def told(source: Source, cycle: Committed, /, **changes: Any) -> list[FingerprintsChunk]:
    async with aclosing(source.peer.fingerprints(cycle, source.grant(**changes))) as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize("store", [None, MemoryStore()], ids=["files", "memory"])
async def test_the_newest_cycle_is_told_cluster_by_cluster(tmp_path: Path, store: MemoryStore | None) -> None:
    async with target(tmp_path, machine=BIG, store=store) as source:
        content = [os.urandom(CLUSTER) for _ in range(4)]
        first = source.header()
        places = [5, 6, 9, 900_000]
        await source.copy(first, source.grant(), data(places, content), data([1], [b"tail"], sequence=2, disk=1))
        second = source.header(number=2, parent=1, parent_id=first.id, kind=Kind.DELTA, consistency="crash")
        acked = await source.copy(second, source.grant(), zeros(start=6, count=1), data([7], [b"new"], sequence=2))

        chunks = await told(source, acked.committed)
        assert [(chunk.disk_id, chunk.disk_bytes) for chunk in chunks[:2]] == [
            ("disk-1", 64 << 30),
            ("disk-2", CLUSTER + 512),
        ]
        found = {
            (chunk.disk_id, chunk.start + place): chunk.fingerprints[at : at + FINGERPRINT_BYTES]
            for chunk in chunks
            for place, at in enumerate(range(0, len(chunk.fingerprints), FINGERPRINT_BYTES))
        }
        assert {key: value for key, value in found.items() if value != ZERO_FINGERPRINT} == {
            ("disk-1", 5): fingerprint(content[0]),
            ("disk-1", 7): fingerprint(b"new"),
            ("disk-1", 9): fingerprint(content[2]),
            ("disk-1", 900_000): fingerprint(content[3]),
            ("disk-2", 1): fingerprint(b"tail"),
        }
        assert sum(len(chunk.fingerprints) for chunk in chunks) <= 32 * FINGERPRINT_BYTES


async def test_another_cycle_than_the_newest_is_refused(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        with pytest.raises(Precondition) as none:
            await told(source, Committed(1, bytes(16)))
        assert none.value.code == "OTHER_CYCLE"
        acked = await source.copy(source.header(), source.grant(), zeros())
        with pytest.raises(Precondition) as other:
            await told(source, Committed(1, bytes(16)))
        assert other.value.code == "OTHER_CYCLE"
        assert await told(source, acked.committed)


async def test_only_the_host_its_grant_names_is_told_and_none_of_an_older_term(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        acked = await source.copy(source.header(term=3), source.grant(term=3), zeros())
        with pytest.raises(Denied) as foreign:
            await told(source, acked.committed, term=3, source="h-000000000000")
        assert foreign.value.code == "GRANT_REFUSED"
        with pytest.raises(Precondition) as older:
            await told(source, acked.committed, term=2)
        assert older.value.code == "OLDER_TERM"
        with pytest.raises(Precondition) as unknown:
            await told(source, acked.committed, term=3, vm_id="vm-9")
        assert unknown.value.code == "NOT_TARGET"


async def test_a_cycle_that_arrives_meanwhile_ends_the_telling(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        first = source.header()
        acked = await source.copy(first, source.grant(), data([0, 15], [b"a", b"b"]))
        held = await _held(source)
        chunks = fingerprint_feed.Feed(held, acked.committed, 1, at_once=1).chunks()
        assert (await anext(chunks)).disk_id == "disk-1"
        second = source.header(number=2, parent=1, parent_id=first.id, kind=Kind.DELTA, consistency="crash")
        await source.copy(second, source.grant(), zeros())
        with pytest.raises(Precondition):
            await anext(chunks)


async def _held(source: Source) -> Any:
    return await source.agent.targets.receptions._replicas.get(source.machine.id)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    folder = tmp_path / "index"
    compressors = Compressors(1)
    return Reader(
        MemoryChangeSource("vm-1", ()), FingerprintIndex(folder), Pending(folder), compressors, compression=False
    )


async def given(*chunks: FingerprintsChunk, error: Exception | None = None) -> AsyncGenerator[FingerprintsChunk, None]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


DISKS = [FingerprintsChunk(disk_id=disk.id, disk_bytes=disk.size_bytes) for disk in BIG.disks]
PRESENT = [DiskGeometry(disk.id, disk.size_bytes) for disk in BIG.disks]
NEWEST = Committed(7, b"seven" + bytes(11))


def run(disk: int, start: int, count: int) -> FingerprintsChunk:
    return FingerprintsChunk(disk_id=f"disk-{disk}", start=start, fingerprints=os.urandom(count * FINGERPRINT_BYTES))


async def test_an_index_made_from_what_the_target_tells_is_whole(reader: Reader) -> None:
    pieces = [run(1, 0, 3), run(1, 4000, 4096), run(2, 1, 1)]
    await index_fetch.fetch(given(*DISKS, *pieces), NEWEST, reader, PRESENT)
    assert reader.index.base == NEWEST
    for piece in pieces:
        count = len(piece.fingerprints) // FINGERPRINT_BYTES
        assert reader.index.get(piece.disk_id, Run(piece.start, count)) == piece.fingerprints
    assert reader.index.get("disk-1", Run(3, 1)) == ZERO_FINGERPRINT
    await index_fetch.fetch(given(*DISKS), Committed(8, bytes(16)), reader, PRESENT)
    assert reader.index.get("disk-1", Run(0, 1)) == ZERO_FINGERPRINT
    await reader.close()


async def test_a_cut_leaves_the_index_as_it_was(reader: Reader) -> None:
    for error in (Unreachable(), OSError("No space left on device")):
        with pytest.raises(type(error)):
            await index_fetch.fetch(given(*DISKS, run(1, 0, 4096), error=error), NEWEST, reader, PRESENT)
        assert reader.index.base is None
        assert reader.index.staged is None
    await index_fetch.fetch(given(*DISKS, run(1, 0, 1)), NEWEST, reader, PRESENT)
    before = reader.index.get("disk-1", Run(0, 1))
    with pytest.raises(Unreachable):
        await index_fetch.fetch(
            given(*DISKS, run(1, 0, 10), error=Unreachable()), Committed(8, bytes(16)), reader, PRESENT
        )
    assert reader.index.base == NEWEST
    assert reader.index.get("disk-1", Run(0, 1)) == before
    await reader.close()


BAD = {
    "nothing": [],
    "an unknown disk": [*DISKS, run(3, 0, 1)],
    "beyond the disk": [*DISKS, run(2, 1, 2)],
    "out of order": [*DISKS, run(1, 10, 5), run(1, 14, 1)],
    "a disk again": [*DISKS, run(2, 0, 1), run(1, 0, 1)],
    "too much at once": [*DISKS, run(1, 0, 4097)],
    "half a fingerprint": [*DISKS, FingerprintsChunk(disk_id="disk-1", fingerprints=b"half")],
    "a disk without a size": [FingerprintsChunk(disk_id="disk-1")],
    "a disk of a size nobody has": [FingerprintsChunk(disk_id="disk-1", disk_bytes=1 << 60)],
    "a disk twice": [DISKS[0], DISKS[0]],
    "no end of disks": [FingerprintsChunk(disk_id=str(number), disk_bytes=512) for number in range(65)],
    "a disk afterwards": [*DISKS, run(2, 0, 1), FingerprintsChunk(disk_id="disk-9", disk_bytes=512)],
}


@pytest.mark.parametrize("chunks", BAD.values(), ids=BAD.keys())
async def test_fingerprints_that_make_no_sense_make_no_index(reader: Reader, chunks: list[FingerprintsChunk]) -> None:
    with pytest.raises(BadMessage):
        await index_fetch.fetch(given(*chunks), NEWEST, reader, PRESENT)
    assert reader.index.base is None
    assert reader.index.staged is None
    await reader.close()


async def test_a_target_cannot_fill_the_source_with_fingerprints_of_disks_that_nobody_has(reader: Reader) -> None:
    far = 64 << 40
    lies = [*DISKS, FingerprintsChunk(disk_id="disk-9", disk_bytes=far)]
    many = FingerprintsChunk(disk_id="disk-9", start=far // CLUSTER - 1, fingerprints=os.urandom(FINGERPRINT_BYTES))
    disks = await index_fetch.fetch(given(*lies, run(1, 0, 3), many), NEWEST, reader, PRESENT)
    assert [disk.id for disk in disks] == [disk.id for disk in PRESENT]  # what is left out is sent whole
    assert reader.index.get("disk-9", Run(far // CLUSTER - 1, 1)) == ZERO_FINGERPRINT
    with pytest.raises(BadMessage, match="far more than the VM has"):
        await index_fetch.fetch(given(*lies[-1:], many), NEWEST, reader, PRESENT)
    halved = [DiskGeometry(disk.id, disk.size // 2) for disk in PRESENT]
    disks = await index_fetch.fetch(given(*DISKS, run(1, 0, 3)), Committed(8, bytes(16)), reader, halved)
    assert [disk.id for disk in disks] == [disk.id for disk in PRESENT]
    await reader.close()


async def test_the_target_says_what_it_lacks(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        await source.copy(source.header(), source.grant(), data([3, 4, 9], [b"a", b"b", b"c"]))
        state = await source.peer.ask(source.grant(), MACHINE)
        assert (state.wanted, state.awaiting_seed) == ((), False)
        held = await _held(source)
        lacking = (Wanted("disk-1", Run(3, 2)), Wanted("disk-1", Run(9, 1)))
        await held.run(held.replica.want, lacking)
        assert (await source.peer.ask(source.grant(), MACHINE)).wanted == lacking
