"""What is on disk: one layer per change, nothing that nobody names, and damage is named before anything is touched."""

import gc
import os
import shutil
import subprocess
import sys
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path

import pytest

from hyperv_host_agent.replication.cycle import Committed, Kind
from hyperv_host_agent.store import merge_plan, merging
from hyperv_host_agent.store.base import NoSpace, StoreDamaged, WriteFailed
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.formats.qcow2 import ChainReader, LayerDamaged
from tests.contracts.replica_store import VM, new_machine
from tests.fakes.chain_rig import ChainRig, flip
from tests.fakes.replicated_machine import Cycle, Machine, send, stage
from twinsite.extents import CLUSTER

OPEN = "from pathlib import Path; from hyperv_host_agent.store.chain import ChainStore as S; S(Path({!r}))"


@pytest.fixture
def rig(quick_path: Path) -> ChainRig:
    return ChainRig(quick_path / "store")


def filled(rig: ChainRig, count: int = 4) -> list[Cycle]:
    """A closed replica with some cycles."""
    machine, cycles = new_machine(), []
    replica = rig.store.create(VM, term=1)
    for number in range(count):
        machine.write("disk-a", number * CLUSTER, b"cycle %d" % number)
        machine.write("disk-b", 0, b"cycle %d" % number)
        cycles.append(machine.cycle())
        send(replica, cycles[-1])
    replica.close()
    return cycles


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_disk_without_a_change_gets_no_layer_unless_its_size_changed(rig: ChainRig):
    machine = new_machine()
    replica = rig.store.create(VM, term=1)
    send(replica, machine.cycle())
    machine.write("disk-a", 0, b"changed")
    send(replica, machine.cycle())
    machine.resize("disk-b", 9 * CLUSTER)
    send(replica, machine.cycle())
    send(replica, machine.cycle())
    assert names(rig.root / VM) == [
        *("disk-a/000001.fp", "disk-a/000001.qcow2", "disk-a/000002.fp", "disk-a/000002.qcow2"),
        *("disk-b/000001.fp", "disk-b/000001.qcow2", "disk-b/000003.fp", "disk-b/000003.qcow2"),
        *(f"points/00000{number}.json" for number in range(1, 5)),
        *("replica.json", "replica.json.copy"),
    ]


def test_the_store_can_be_moved(rig: ChainRig, quick_path: Path):
    cycles = filled(rig)
    shutil.move(rig.root, quick_path / "elsewhere")
    moved = ChainRig(quick_path / "elsewhere")
    assert moved.content(moved.store.open(VM), 4, "disk-a") == cycles[3].content["disk-a"]


def test_opening_removes_what_no_manifest_names_and_nothing_else(rig: ChainRig):
    filled(rig)
    before = names(rig.root)
    disk = rig.root / VM / "disk-a"
    for name in ("000005.qcow2", "000005.fp", "000006.qcow2.partial", "000002.qcow2.merged", "000002.fp.merged"):
        (disk / name).write_bytes(b"garbage")
    (disk / "a note").write_bytes(b"not ours")
    (rig.root / VM / "points" / "000005.json.tmp").write_bytes(b"garbage")
    (rig.root / VM / "receiving.journal").write_bytes(b"garbage")
    rig.store.open(VM).close()
    assert names(rig.root) == sorted([*before, f"{VM}/disk-a/a note"])


@pytest.mark.parametrize("name", ["replica.json", "merge.json"])
def test_a_document_damaged_in_both_copies_that_all_else_hangs_on_is_named_and_nothing_is_removed(
    rig: ChainRig, name: str
):
    filled(rig, 20)
    replica = rig.store.open(VM)
    replica.maintain(keep=[2])
    replica.attach(2, "somebody")
    replica.close()
    garbage = rig.root / VM / "disk-a" / "000099.qcow2"
    path = rig.root / VM / name
    if name == "merge.json":
        path.write_bytes(
            merging.Intent("disk-a", ("000001.qcow2",), replica._catalog.chains.disks["disk-a"][0]).encode()
        )
    document = path.read_bytes()
    for offset in range(0, len(document), max(1, len(document) // 40)):
        for one in (path, copy_path(path)):
            if name != "merge.json" or one == path:
                one.write_bytes(document)
                flip(one, offset)
        garbage.write_bytes(b"unnamed")
        with pytest.raises(StoreDamaged, match=path.name):
            rig.store.open(VM)
        assert garbage.exists()
        assert path.exists()


@pytest.mark.parametrize("name", ["replica.json", "pins/somebody", "chains.json", "points/000002.json"])
def test_a_document_damaged_in_one_copy_is_read_from_the_other(rig: ChainRig, name: str):
    filled(rig, 20)
    replica = rig.store.open(VM)
    replica.maintain(keep=[2])
    replica.attach(2, "somebody")
    replica.close()
    path = rig.root / VM / name
    document = path.read_bytes()
    assert copy_path(path).read_bytes() == document
    for damaged in (path, copy_path(path)):
        flip(damaged, len(document) // 2)
        replica = rig.store.open(VM)
        assert [(point.cycle, point.pinned_by) for point in replica.points()] == [(2, ("somebody",)), (20, ())]
        replica.scrub(1 << 30, 0.0)
        replica.close()
        assert damaged.read_bytes() == document


def test_a_lost_manifest_stops_no_other_point(rig: ChainRig):
    cycles = filled(rig)
    path = rig.root / VM / "points" / "000002.json"
    flip(path, 200)
    replica = rig.store.open(VM)
    assert replica.state().committed == Committed(4, cycles[3].header.id)
    assert path.with_name("000002.json.damaged").exists()
    for number in (1, 3, 4):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]
    for repair in (False, True, False, True):
        findings = [finding for step in replica.check(repair=repair) for finding in step.findings]
        assert [(finding.file, finding.points) for finding in findings] == [("points/000002.json.damaged", (2,))]
    assert list(replica.maintain(keep=[1, 3], up_to=1).removed) == []
    replica.close()
    replica = rig.store.open(VM)
    (lost,) = replica.lost()
    assert (lost.cycle, lost.lost, lost.recoverable, lost.damaged) == (2, True, False, 1)
    assert cycles[0].header.instant < lost.instant < cycles[2].header.instant
    assert list(replica.maintain(keep=[1, 2, 3]).removed) == []
    assert [point.cycle for point in replica.lost()] == [2]
    assert list(replica.maintain(keep=[1, 3]).removed) == []
    assert replica.lost() == []
    assert list(replica.verify()) == []
    for number in (1, 3, 4):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]


def test_without_the_newest_manifest_an_older_state_is_told_and_cycles_go_on_from_there(rig: ChainRig):
    machine, cycles = new_machine(), []
    replica = rig.store.create(VM, term=1)
    for number in range(4):
        cycles.append(machine.cycle())
        send(replica, cycles[-1])
        machine.write("disk-a", number * CLUSTER, b"cycle %d" % number)
    replica.close()
    flip(rig.root / VM / "points" / "000004.json", 200)
    replica = rig.store.open(VM)
    assert replica.state().committed == Committed(3, cycles[2].header.id)
    machine.number, machine.parent_id = 3, cycles[2].header.id
    machine.dirty["disk-a"].update(range(20))
    again = machine.cycle()
    send(replica, again)
    replica.close()
    replica = rig.store.open(VM)
    assert rig.content(replica, 4, "disk-a") == again.content["disk-a"]
    assert rig.content(replica, 3, "disk-a") == cycles[2].content["disk-a"]


def test_a_flipped_bit_in_a_side_file_is_named_when_it_is_used_and_stops_no_failover(rig: ChainRig):
    cycles = filled(rig)
    flip(rig.root / VM / "disk-a" / "000002.fp", 12)
    replica = rig.store.open(VM)
    assert rig.content(replica, 4, "disk-a") == cycles[3].content["disk-a"]
    with pytest.raises(StoreDamaged, match=r"000002\.fp"):
        list(replica.fingerprints("disk-a", 0, 20))
    findings = list(replica.verify())
    assert findings[0].cluster is None
    assert "000002.fp" in findings[0].problem
    assert {finding.cluster for finding in findings[1:]} <= {1}


def test_a_layer_that_is_gone_or_another_is_named_and_stops_neither_opening_nor_receiving(rig: ChainRig):
    filled(rig)
    layers = rig.layers("disk-a")
    kept = layers[1].read_bytes()

    def told() -> str:
        replica = rig.store.open(VM)
        assert [point.damaged for point in replica.points()] == [0, 1, 1, 1]
        assert replica.scrubbed().damaged == 1
        replica.close()
        return replica._record.damages[0].problem

    layers[1].unlink()
    assert "000002.qcow2: cannot be opened" in told()
    layers[1].write_bytes(layers[2].read_bytes())
    assert "stands on 000002" in told()
    layers[1].write_bytes(b"QFI?" + kept[4:])
    assert "not a qcow2 file" in told()
    layers[1].write_bytes(kept[:30])
    assert "30 bytes" in told()
    layers[1].write_bytes(kept)
    layers[1].with_suffix(".fp").unlink()
    assert "000002.fp is missing" in told()
    replica = rig.store.open(VM)
    replica.scrub(1 << 30, 0.0)
    assert list(replica.verify()) == []
    assert [point.damaged for point in replica.points()] == [0, 0, 0, 0]


def test_a_replica_without_its_term_is_damaged_not_new(rig: ChainRig):
    filled(rig)
    for name in ("replica.json", "replica.json.copy"):
        (rig.root / VM / name).unlink()
    for call in (lambda: rig.store.open(VM), lambda: rig.store.create(VM, term=1)):
        with pytest.raises(StoreDamaged, match=r"replica\.json is missing"):
            call()


def test_any_flipped_bit_of_a_layer_is_an_error_or_does_not_matter(rig: ChainRig):
    """A frame carries its checksum; a pointer that is wrong leads to no frame."""
    cycles = filled(rig, 2)
    path = rig.layers("disk-b")[1]
    kept = path.read_bytes()
    step = len(kept) // 397
    for offset in range(0, len(kept), step):
        path.write_bytes(kept)
        flip(path, offset)
        try:
            with ChainReader(rig.layers("disk-b")) as reader:
                content = reader.read(0, reader.size) if reader.size == len(cycles[1].content["disk-b"]) else b""
        except LayerDamaged as error:
            assert "000002.qcow2" in str(error)
        else:
            assert content in {cycles[1].content["disk-b"], cycles[0].content["disk-b"], b""}


def test_the_part_of_a_cycle_that_vanished_is_not_taken_for_received(rig: ChainRig):
    machine = new_machine()
    machine.write("disk-a", 0, b"data")
    cycle = machine.cycle()
    replica = rig.store.create(VM, term=1)
    replica.begin(cycle.header, resume_after=0)
    stage(replica, cycle.batches[:3])
    replica.sync()
    replica.close()
    partial = rig.root / VM / "disk-a" / "000001.qcow2.partial"
    os.truncate(partial, partial.stat().st_size - 4096)  # a block: what is behind the data is padding
    replica = rig.store.open(VM)
    with pytest.raises(WriteFailed):
        replica.begin(cycle.header, resume_after=3)
    assert replica.state().unfinished is None
    send(replica, cycle)
    assert rig.content(replica, 1, "disk-a") == cycle.content["disk-a"]


def test_a_full_disk_stops_maintenance_and_hurts_nobody(rig: ChainRig):
    cycles = filled(rig, 8)
    replica = rig.store.open(VM)
    rig.set_free(0)
    report = replica.maintain(keep=[])
    assert (report.finished, report.merged) == (False, [])
    following = replace(cycles[-1].header, id=b"the ninth cycle!", number=9, parent=8, parent_id=cycles[-1].header.id)
    with pytest.raises(NoSpace) as caught:
        replica.begin(following, resume_after=0)
    assert (caught.value.free, caught.value.needed) == (0, 1)
    assert rig.content(replica, 8, "disk-a") == cycles[7].content["disk-a"]
    rig.set_free(1 << 30)
    assert replica.maintain(keep=[]).finished
    assert rig.content(replica, 8, "disk-a") == cycles[7].content["disk-a"]


def test_layers_a_pinned_point_stands_on_stay_as_they_are(rig: ChainRig):
    cycles = filled(rig, 12)
    replica = rig.store.open(VM)
    attached = replica.attach(9, "test")
    before = {path: (path.stat().st_ino, path.read_bytes()) for disk in attached for path in disk.layers}
    replica.maintain(keep=[])
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in before} == before
    with ChainReader(attached[0].layers) as reader:
        assert reader.read(0, reader.size) == cycles[8].content["disk-a"]
    replica.detach("test")
    replica.maintain(keep=[])
    assert len(rig.layers("disk-a")) == 1


def test_a_reader_that_is_open_does_not_notice_a_merge(rig: ChainRig):
    cycles = filled(rig, 12)
    replica = rig.store.open(VM)
    with ChainReader(rig.layers("disk-a")) as reader:
        fingerprints = replica.fingerprints("disk-a", 0, 20)
        first = next(fingerprints)
        assert replica.maintain(keep=[]).merged
        assert reader.read(0, reader.size) == cycles[-1].content["disk-a"]
        assert [first, *fingerprints] == list(replica.fingerprints("disk-a", 0, 20))


def test_a_week_of_cycles_stays_shallow_and_copies_each_byte_seldom_however_many_points_are_kept():
    """Sizes only: 30-second cycles, all of the last hour kept, then hourly ones."""
    chain: list[tuple[int, int]] = [(1, 1 << 30)]  # newest cycle, bytes
    copied = written = 0
    for number in range(2, 12_000):
        chain.append((number, 1 << 20))
        written += 1 << 20
        kept = [*range(120, number - 120, 120), *range(max(1, number - 120), number + 1)]
        plan = [
            merge_plan.Candidate(
                f"{cycle:06}.qcow2",
                size,
                needed=above is None or bisect_left(kept, cycle) < bisect_left(kept, above),
            )
            for (cycle, size), above in zip(chain, [*(cycle for cycle, _ in chain[1:]), None], strict=True)
        ]
        for group in merge_plan.groups(plan):
            start = next(at for at, layer in enumerate(plan) if layer.file == group[0])
            joined = [(int(file[:6]), next(x.stored_bytes for x in plan if x.file == file)) for file in group]
            inside = sum(start and chain[0][0] < point <= joined[-1][0] for point in kept)
            total = min(sum(size for _, size in joined), (1 << 30) * (1 + inside))
            copied += total
            first = next(at for at, (cycle, _) in enumerate(chain) if cycle == joined[0][0])
            chain[first : first + len(group)] = [(joined[-1][0], total)]
        assert len(chain) <= merge_plan.MOST
    assert copied < 12 * written


def test_no_group_touches_a_layer_in_use():
    chain = [merge_plan.Candidate(f"{n:06}.qcow2", 100, pinned=n in {7, 20}) for n in range(1, 41)]
    planned = merge_plan.groups(chain)
    assert planned
    for group in planned:
        numbers = [int(file[:6]) for file in group]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        assert not {7, 20} & {*numbers}


def test_layers_that_nobody_needs_apart_become_one_and_a_pack_with_much_that_is_dead_is_rewritten():
    chain = [merge_plan.Candidate(f"{n:06}.qcow2", 100, needed=n > 6) for n in range(1, 9)]
    assert merge_plan.groups(chain) == [tuple(f"{n:06}.qcow2" for n in range(1, 8))]
    chain = [merge_plan.Candidate(f"{n:06}.qcow2", 100, dead_bytes=10 * n) for n in range(1, 5)]
    assert merge_plan.groups(chain) == [("000004.qcow2",), ("000003.qcow2",)]


def test_closing_stops_a_merge(rig: ChainRig):
    filled(rig, 8)
    replica = rig.store.open(VM)
    replica._closed.set()
    report = replica.maintain(keep=[])
    assert (report.finished, report.merged) == (False, [])
    assert not list(rig.root.rglob("*.merged"))


def test_batches_that_do_not_come_in_order_are_all_kept(rig: ChainRig):
    machine = Machine(VM, {"disk": bytearray(90 * CLUSTER)})
    for cluster in range(90):
        machine.write("disk", cluster * CLUSTER, b"%d" % cluster)
    cycle = machine.cycle(Kind.INITIAL)
    order = cycle.batches[1::2] + cycle.batches[::2]
    renumbered = [(replace(batch, sequence=at), bytes(16)) for at, (batch, _) in enumerate(order, 1)]
    replica = rig.store.create(VM, term=1)
    send(replica, replace(cycle, batches=renumbered))
    assert [cluster for cluster, _ in replica.fingerprints("disk", 0, 90)] == list(range(90))
    assert list(replica.verify()) == []


def test_leftovers_of_a_removal_are_cleared_at_the_next_start(rig: ChainRig):
    filled(rig)
    (rig.root / VM).rename(rig.root / f".removed-{VM}")
    assert ChainStore(rig.root).replicas() == []
    assert names(rig.root) == []


def test_a_second_process_is_refused_and_told_who_has_the_store(rig: ChainRig):
    filled(rig)
    command = [sys.executable, "-c", OPEN.format(str(rig.root))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "StoreInUse" in done.stderr
    assert f"{rig.root} is in use by process {os.getpid()}" in done.stderr
    ChainStore(rig.root).open(VM).close()  # this process may


def test_a_store_is_free_again_once_nobody_in_the_process_uses_it(quick_path: Path):
    store = ChainStore(quick_path / "store")
    command = [sys.executable, "-c", OPEN.format(str(store.root))]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
    del store
    gc.collect()
    subprocess.run(command, check=True, timeout=60)


def test_one_damaged_copy_of_the_chains_costs_nothing_and_two_are_made_anew(rig: ChainRig):
    cycles = filled(rig, 12)
    replica = rig.store.open(VM)
    replica.maintain(keep=[3])
    replica.close()
    paths = [rig.root / VM / name for name in ("chains.json", "chains.json.copy")]
    for path in paths:
        kept = path.read_bytes()
        flip(path, len(kept) // 2)
        replica = rig.store.open(VM)
        assert rig.content(replica, 3, "disk-a") == cycles[2].content["disk-a"]
        replica.close()
        assert path.read_bytes() == kept  # from the other one
    for path in paths:
        flip(path, 100)
    before = names(rig.root)
    replica = rig.store.open(VM)
    assert rig.content(replica, 3, "disk-a") == cycles[2].content["disk-a"]
    assert names(rig.root) == before


def test_a_missing_newest_manifest_is_damage_and_a_removal_cut_short_is_finished(rig: ChainRig):
    filled(rig, 12)
    replica = rig.store.open(VM)
    gone = {path: path.read_bytes() for path in (rig.root / VM / "points").iterdir()}
    assert replica.maintain(keep=[3]).merged
    replica.close()
    for number in (5, 8):  # as a power loss may bring them back
        path = rig.root / VM / "points" / f"{number:06}.json"
        path.write_bytes(gone[path])
    replica = rig.store.open(VM)
    assert [point.cycle for point in replica.points()] == [3, 12]
    replica.close()
    newest = rig.root / VM / "points" / "000012.json"
    newest.unlink()
    replica = rig.store.open(VM)
    assert [point.cycle for point in replica.points()] == [3, 12]
    replica.close()
    newest.unlink()
    copy_path(newest).unlink()
    with pytest.raises(StoreDamaged, match="manifest of cycle 12 is missing"):
        rig.store.open(VM)
