"""The pieces between a source's disk and the network: packing, spool, pending fingerprints."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.changes.fingerprints import FingerprintIndex
from hyperv_host_agent.packing import Packed, Packer, holes
from hyperv_host_agent.pending import Pending
from hyperv_host_agent.replication.cycle import Committed, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.spool import Memory, Spool, SpoolFull
from hyperv_host_agent.store.formats import zstd_frame
from twinsite.digest import FINGERPRINT_BYTES, ZERO_FINGERPRINT, fingerprint
from twinsite.extents import CLUSTER, Run

NOISE, TEXT, ZEROS = os.urandom(CLUSTER), b"text" * (CLUSTER // 4), bytes(CLUSTER)


def packed(data: bytes, *, level: int = 3, known: bytes | None = None, start: int = 10) -> Packed:
    packer, made = Packer(), Packed(0)
    packer.level = level
    packer.pack(made, Run(start, -(-len(data) // CLUSTER)), data, known)
    return made


def contents(made: Packed) -> Iterator[bytes]:
    payload = b"".join(made.parts)
    zstd_frame.check(payload, made.lengths)
    at = 0
    for length in made.lengths:
        yield zstd_frame.content(payload[at : at + length])
        at += length


@pytest.mark.parametrize("level", [0, 1, 3])
def test_every_cluster_becomes_a_frame_of_just_its_content(level: int) -> None:
    made = packed(NOISE + ZEROS + TEXT + ZEROS + ZEROS + NOISE[:1000], level=level)
    assert made.clusters == [10, 12, 15]
    assert made.zeros == [Run(11, 1), Run(13, 2)]
    assert list(contents(made)) == [NOISE, TEXT, NOISE[:1000].ljust(CLUSTER, b"\0")]
    assert bytes(made.fingerprints) == b"".join(map(fingerprint, contents(made)))
    assert made.frame_bytes == sum(made.lengths)


def test_what_does_not_shrink_and_everything_without_compression_is_one_raw_block() -> None:
    assert packed(NOISE).lengths == packed(NOISE, level=0).lengths == packed(TEXT, level=0).lengths == [CLUSTER + 14]
    assert packed(TEXT).lengths[0] < CLUSTER // 10


def test_clusters_the_target_has_are_left_out() -> None:
    known = fingerprint(NOISE) + ZERO_FINGERPRINT + fingerprint(NOISE) + fingerprint(TEXT)
    made = packed(NOISE + ZEROS + TEXT + ZEROS, known=known)
    assert (made.clusters, made.zeros) == ([12], [Run(13, 1)])
    found = Packed(0)
    holes(found, Run(10, 4), known)
    assert found.zeros == [Run(10, 1), Run(12, 2)]


def test_a_spool_keeps_every_message_in_memory_or_in_a_nameless_file(tmp_path: Path) -> None:
    memory = Memory(2500)
    spool = Spool(tmp_path / "spool", memory)
    messages = {number: os.urandom(1000) for number in range(1, 7)}
    for number, message in messages.items():
        spool.append(number, message)
    assert [spool.get(number) for number in messages] == list(messages.values())
    assert not list((tmp_path / "spool").iterdir())
    spool.release(2)
    assert memory.take(2000)
    with pytest.raises(KeyError):
        spool.get(1)
    assert spool.get(6) == messages[6]
    spool.close()
    assert memory.take(500)


def test_a_spool_without_room_says_so_and_gives_its_memory_back(tmp_path: Path) -> None:
    memory = Memory(1000)
    spool = Spool(tmp_path / "spool", memory)
    spool.append(1, bytes(1000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(SpoolFull) as full:
            spool.append(2, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path) in str(full.value)
    spool.close()
    assert memory.take(1000)


DISK = DiskGeometry("d1", 1000 * CLUSTER, "vda")


def header(number: int, cycle_id: bytes, parent: Committed | None = None) -> CycleHeader:
    kind = Kind.DELTA if parent else Kind.INITIAL
    return CycleHeader(
        "vm",
        cycle_id,
        number,
        parent.number if parent else 0,
        1,
        kind,
        1.0,
        "none",
        (DISK,),
        b"",
        parent.id if parent else b"",
    )


def prints(*clusters: int) -> bytes:
    return b"".join(cluster.to_bytes(FINGERPRINT_BYTES, "big") for cluster in clusters)


def test_pending_fingerprints_reach_the_index_when_the_cycle_is_committed(tmp_path: Path) -> None:
    first, second = header(1, os.urandom(16)), os.urandom(16)
    pending, index = Pending(tmp_path), FingerprintIndex(tmp_path)
    pending.begin(first.id, 1)
    pending.add(1, 0, [5, 6], prints(5, 6), [Run(7, 3)])
    pending.add(2, 0, [20], prints(20), [])
    pending.store(first.id, 2)
    assert pending.apply(index, first, complete=True)
    assert index.base == Committed(1, first.id)
    assert index.get("d1", Run(5, 3)) == prints(5, 6) + ZERO_FINGERPRINT
    assert pending.apply(index, first, complete=True)  # as after a crash before the next step
    pending.drop()
    delta = header(2, second, Committed(1, first.id))
    pending.begin(second, 1)
    pending.add(1, 0, [6], prints(66), [Run(20, 1)])
    pending.store(second, 1)
    assert pending.apply(index, delta, complete=False)
    assert index.get("d1", Run(5, 2)) == prints(5, 66)
    assert index.get("d1", Run(20, 1)) == ZERO_FINGERPRINT
    index.close()


def test_pending_fingerprints_go_on_after_a_crash_where_they_were_durable(tmp_path: Path) -> None:
    first = header(1, os.urandom(16))
    pending = Pending(tmp_path)
    pending.begin(first.id, 1)
    for number in (1, 2, 3):
        pending.add(number, 0, [number], prints(number), [])
    pending.store(first.id, 3)
    pending.close()
    with (tmp_path / "pending").open("ab") as file:
        file.write(b"torn")
    again = Pending(tmp_path)
    again.begin(first.id, 3)  # the target had only two
    again.add(3, 0, [33], prints(33), [])
    again.store(first.id, 3)
    index = FingerprintIndex(tmp_path)
    assert again.apply(index, first, complete=True)
    assert index.get("d1", Run(1, 3)) == prints(1, 2) + ZERO_FINGERPRINT
    assert index.get("d1", Run(33, 1)) == prints(33)
    index.close()


def test_pending_fingerprints_of_another_cycle_never_reach_the_index(tmp_path: Path) -> None:
    pending, index = Pending(tmp_path), FingerprintIndex(tmp_path)
    pending.begin(os.urandom(16), 1)
    pending.add(1, 0, [1], prints(1), [])
    other = header(1, os.urandom(16))
    assert not pending.apply(index, other, complete=True)
    assert index.base is None
    index.close()


@pytest.mark.parametrize("lost", ["all", "the last byte", "the end", "a byte"])
def test_pending_fingerprints_of_which_some_are_lost_never_reach_the_index(tmp_path: Path, lost: str) -> None:
    first = header(1, os.urandom(16))
    pending, index = Pending(tmp_path), FingerprintIndex(tmp_path)
    pending.begin(first.id, 1)
    for number in (1, 2, 3):
        pending.add(number, 0, [number], prints(number), [])
        pending.store(first.id, number)
    pending.close()
    log = tmp_path / "pending"
    data = log.read_bytes()
    kept = {"all": b"", "the last byte": data[:-1], "the end": data[: len(data) * 3 // 4], "a byte": data}[lost]
    log.write_bytes(kept[:-70] + bytes([kept[-70] ^ 1]) + kept[-69:] if lost == "a byte" else kept)
    again = Pending(tmp_path)
    again.store(first.id, 3)  # as at the end of a copy that went on after a restart
    assert not again.apply(index, first, complete=True)
    again.drop()
    log.write_bytes(kept)
    again.begin(first.id, 4)  # and of one that has more to bring
    again.add(4, 0, [4], prints(4), [])
    again.store(first.id, 4)
    assert again.apply(index, first, complete=True) is (lost in {"the last byte", "a byte"})
    index.close()
