"""What every replica store promises; each adapter runs this suite."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Final

import pytest

from hyperv_host_agent.replication.cycle import Batch, Kind, TargetState, Unfinished
from hyperv_host_agent.store.base import (
    BadBatch,
    BadName,
    NoSpace,
    PointMissing,
    PointPinned,
    Replica,
    ReplicaMissing,
    ReplicaStore,
)
from hyperv_host_agent.store.formats import zstd_frame
from tests.fakes.boot_clock import BootClock
from tests.fakes.replicated_machine import Cycle, Machine, batch_of, fingerprints, frame_of, send, stage
from twinsite.digest import CHAIN_START, fingerprint
from twinsite.extents import CLUSTER, Run

VM: Final = "5f2c7a10-0000-4000-8000-000000000001"
GiB: Final = 1 << 30


class Rig(ABC):
    """A target host whose power the test holds."""

    store: ReplicaStore
    clock: BootClock

    @abstractmethod
    def power_loss(self) -> None:
        """Replicas that were open are dead; `store` is what the next start finds."""

    @abstractmethod
    def set_free(self, count: int) -> None:
        """Let the store have this many free bytes."""

    @abstractmethod
    def content(self, replica: Replica, cycle: int, disk: str) -> bytes:
        """The disk at the point, read the way a hypervisor would."""

    @abstractmethod
    def damage(self, disk: str, cluster: int) -> None:
        """Flip a bit in the newest frame of the cluster."""


def new_machine(seed: int = 0) -> Machine:
    machine = Machine(VM, {"disk-a": bytearray(20 * CLUSTER), "disk-b": bytearray(6 * CLUSTER + 1536)}, seed=seed)
    for _ in range(4):
        machine.scribble()
    return machine


class ReplicaStoreContract:
    """Subclass it with a `rig` fixture."""

    @pytest.fixture
    def replica(self, rig: Rig) -> Replica:
        return rig.store.create(VM, term=1)

    def reopened(self, rig: Rig) -> Replica:
        rig.power_loss()
        return rig.store.open(VM)

    # ---- existence, term

    def test_a_new_replica_is_empty_and_survives_a_power_loss(self, rig: Rig, replica: Replica):
        assert replica.state() == TargetState(1, None, None)
        assert self.reopened(rig).state() == TargetState(1, None, None)
        assert rig.store.replicas() == [VM]

    def test_creating_again_finds_what_is_there(self, rig: Rig, replica: Replica):
        send(replica, new_machine().cycle())
        replica.close()
        again = rig.store.create(VM, term=9)
        assert again.state().term == 1
        assert len(again.points()) == 1

    def test_a_replica_that_is_not_there_cannot_be_opened(self, rig: Rig):
        with pytest.raises(ReplicaMissing):
            rig.store.open("not-here")
        rig.store.remove("not-here")

    @pytest.mark.parametrize("name", ["", "..", "../x", "a/b", ".", "a\0b", "ü", "x" * 65])
    def test_a_name_that_is_no_id_never_becomes_a_path(self, rig: Rig, replica: Replica, name: str):
        for call in (rig.store.open, rig.store.remove, lambda x: rig.store.create(x, term=1)):
            with pytest.raises(BadName):
                call(name)
        send(replica, new_machine().cycle())
        with pytest.raises(BadName):
            replica.attach(1, name if len(name) != 65 else name * 2)
        machine = Machine(VM, {name: bytearray(CLUSTER)}, number=1)
        with pytest.raises(BadName):
            replica.begin(replace(machine.cycle().header), resume_after=0)

    def test_the_term_only_rises_and_is_durable(self, rig: Rig, replica: Replica):
        replica.set_term(7)
        with pytest.raises(ValueError, match="below"):
            replica.set_term(6)
        assert self.reopened(rig).state().term == 7

    def test_a_cycle_of_an_older_term_is_not_begun(self, replica: Replica):
        replica.set_term(2)
        with pytest.raises(ValueError, match="term"):
            replica.begin(new_machine().cycle().header, resume_after=0)

    # ---- cycles

    @pytest.mark.parametrize("seed", range(6))
    def test_every_point_is_the_source_at_its_instant_whatever_came_later(self, rig: Rig, replica: Replica, seed: int):
        machine = new_machine(seed)
        cycles: list[Cycle] = []
        for _ in range(12):
            cycles.append(machine.cycle())
            send(replica, cycles[-1])
            machine.scribble_and_resize()
        for reader in (lambda: replica, lambda: self.reopened(rig)):
            found = reader()
            assert [point.cycle for point in found.points()] == list(range(1, 13))
            for cycle in cycles:
                self.assert_is(rig, found, cycle)
            for disk, content in cycles[-1].content.items():
                assert dict(found.fingerprints(disk, 0, 1 << 40)) == fingerprints(content)
            assert list(found.verify()) == []

    def test_a_point_says_what_it_is(self, replica: Replica):
        machine = new_machine()
        first = machine.cycle()
        send(replica, first)
        machine.write("disk-b", 3 * CLUSTER, b"changed")
        second = machine.cycle()
        info = send(replica, second)
        assert replica.points()[-1] == info
        assert (info.cycle, info.parent, info.id) == (2, 1, second.header.id)
        assert (info.machine, info.disks, info.term) == (b"machine 1", second.header.disks, 1)
        assert (info.clusters, info.stored_bytes) == (1, len(second.batches[0][0].payload))
        assert [point.recoverable for point in replica.points()] == [False, True]

    def test_disks_come_and_go(self, rig: Rig, replica: Replica):
        machine = new_machine()
        kept = [machine.cycle()]
        send(replica, kept[0])
        machine.add("disk-c", 3 * CLUSTER)
        machine.write("disk-c", CLUSTER + 5, b"new disk")
        machine.remove("disk-a")
        kept.append(machine.cycle())
        send(replica, kept[1])
        machine.add("disk-a", 2 * CLUSTER)
        machine.add("disk-d", 512)
        kept.append(machine.cycle())
        send(replica, kept[2])
        for cycle in kept:
            attached = replica.attach(cycle.header.number, "test")
            assert [(disk.id, disk.size, disk.name) for disk in attached] == [
                (disk.id, disk.size, disk.name) for disk in cycle.header.disks
            ]
            for disk, content in cycle.content.items():
                assert rig.content(replica, cycle.header.number, disk) == content

    def test_cycles_come_one_after_the_other(self, replica: Replica):
        machine = new_machine()
        send(replica, machine.cycle())
        header = machine.cycle().header
        for wrong in (
            replace(header, number=3),
            replace(header, number=1),
            replace(header, parent=0),
            replace(header, parent_id=b"x" * 16),
            replace(header, vm_id="another"),
            replace(header, id=b"short"),
            replace(header, disks=header.disks[:1] * 2),
        ):
            with pytest.raises(ValueError, match="does not fit"):
                replica.begin(wrong, resume_after=0)

    # ---- crashes, resuming

    def test_what_was_synced_survives_a_power_loss_and_the_cycle_goes_on(self, rig: Rig, replica: Replica):
        cycle = new_machine().cycle()
        replica.begin(cycle.header, resume_after=0)
        assert replica.state().unfinished == Unfinished(1, cycle.header.id, 0, CHAIN_START)
        stage(replica, cycle.batches[:4])
        assert replica.sync() == 4
        stage(replica, cycle.batches[4:6])
        replica = self.reopened(rig)
        unfinished = replica.state().unfinished
        assert unfinished is not None
        assert (unfinished.number, unfinished.id) == (1, cycle.header.id)
        assert (unfinished.durable, unfinished.digest) == (4, cycle.batches[3][1])
        replica.begin(cycle.header, resume_after=4)
        stage(replica, cycle.batches[4:])
        replica.commit()
        self.assert_is(rig, replica, cycle)

    @pytest.mark.parametrize("back_to", [0, 1, 3])
    @pytest.mark.parametrize("crash", [True, False])
    def test_a_cycle_can_be_cut_back(self, rig: Rig, replica: Replica, back_to: int, crash: bool):
        cycle = new_machine().cycle()
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches[:4])
        replica.sync()
        stage(replica, cycle.batches[4:6])
        replica = self.reopened(rig) if crash else replica
        with pytest.raises(ValueError, match="not durable"):
            replica.begin(cycle.header, resume_after=5)
        replica.begin(cycle.header, resume_after=back_to)
        chain = cycle.batches[back_to - 1][1] if back_to else CHAIN_START
        assert replica.state().unfinished == Unfinished(1, cycle.header.id, back_to, chain)
        with pytest.raises(BadBatch):
            replica.put(*cycle.batches[back_to + 1])
        stage(replica, cycle.batches[back_to:])
        replica.sync()
        replica = self.reopened(rig)
        replica.begin(cycle.header, resume_after=len(cycle.batches))
        replica.commit()
        self.assert_is(rig, replica, cycle)

    def test_a_resumed_cycle_is_of_the_term_it_was_finished_in(self, rig: Rig, replica: Replica):
        cycle = new_machine().cycle()
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches[:2])
        replica.sync()
        replica = self.reopened(rig)
        replica.set_term(cycle.header.term + 1)
        replica.begin(replace(cycle.header, term=cycle.header.term + 1), resume_after=2)
        stage(replica, cycle.batches[2:])
        assert replica.commit().term == cycle.header.term + 1
        self.assert_is(rig, replica, cycle)

    def test_another_attempt_at_the_number_drops_the_unfinished_one(self, rig: Rig, replica: Replica):
        machine = new_machine()
        first = machine.cycle()
        replica.begin(first.header, resume_after=0)
        stage(replica, first.batches)
        replica.sync()
        machine = new_machine(seed=5)
        second = machine.cycle(name=b"another attempt!")
        with pytest.raises(ValueError, match="not durable"):
            replica.begin(second.header, resume_after=1)
        send(replica, second)
        self.assert_is(rig, self.reopened(rig), second)

    def test_an_abandoned_cycle_is_gone(self, rig: Rig, replica: Replica):
        cycle = new_machine().cycle()
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches)
        replica.sync()
        replica.abandon()
        replica.abandon()
        assert replica.state().unfinished is None
        assert self.reopened(rig).state() == TargetState(1, None, None)

    def test_a_committed_cycle_survives_a_power_loss(self, rig: Rig, replica: Replica):
        machine = new_machine()
        cycle = machine.cycle()
        send(replica, cycle)
        state = replica.state()
        replica = self.reopened(rig)
        assert replica.state() == state
        assert state.unfinished is None
        self.assert_is(rig, replica, cycle)

    # ---- hostile batches

    def test_a_batch_that_breaks_a_rule_is_refused_and_nothing_of_it_is_kept(self, rig: Rig, replica: Replica):
        machine = new_machine()
        machine.write("disk-a", 0, b"first" * CLUSTER)
        cycle = machine.cycle()
        good = batch_of(2, 0, cycle.content["disk-a"], [1, 2, 4], [6, 7])
        assert cycle.batches[0][0].clusters[0] == 0
        replica.begin(cycle.header, resume_after=0)
        replica.put(*cycle.batches[0])
        cycle_start = cycle.batches[0][0]
        for bad in self.hostile(good, cycle_start):
            with pytest.raises(BadBatch):
                replica.put(bad, b"d" * 16)
        stage(replica, cycle.batches[1:])
        replica.commit()
        self.assert_is(rig, replica, cycle)

    def hostile(self, good: Batch, came: Batch) -> list[Batch]:
        frame = frame_of(b"x" * CLUSTER)
        one = replace(good, clusters=[5], lengths=[len(frame)], fingerprints=bytes(16), zero_runs=(), payload=frame)

        def framed(data: bytes) -> Batch:
            return replace(one, payload=data, lengths=[len(data)])

        no_checksum = bytearray(frame)
        no_checksum[4] &= ~4
        dictionary = bytearray(frame)
        dictionary[4] |= 1
        longer = bytearray(frame)
        longer[5] ^= 1
        reserved = bytearray(frame)
        reserved[7] |= 6
        return [
            replace(good, sequence=1),
            replace(good, sequence=3),
            replace(good, disk=2),
            replace(good, disk=-1),
            replace(good, clusters=[1, 2, 20]),
            replace(good, clusters=[2, 1, 4]),
            replace(good, clusters=[1, 1, 4]),
            replace(good, clusters=[-1, 2, 4]),
            replace(good, clusters=[1, 2]),
            replace(good, lengths=[good.lengths[0] + 1, good.lengths[1] - 1, good.lengths[2]]),
            replace(good, lengths=[0, sum(good.lengths[:2]), good.lengths[2]]),
            replace(good, lengths=[1 << 40, 5, 5]),
            replace(good, lengths=[-5, *good.lengths[1:]]),
            replace(good, payload=bytes(good.payload) + b"x"),
            replace(good, payload=bytes(good.payload)[:-1]),
            replace(good, fingerprints=good.fingerprints[:-1]),
            replace(good, zero_runs=(Run(4, 2),)),
            replace(good, zero_runs=(Run(19, 2),)),
            replace(good, zero_runs=(Run(6, 0),)),
            replace(good, zero_runs=(Run(8, 2), Run(6, 2))),
            replace(good, zero_runs=(Run(6, 3), Run(7, 3))),
            replace(good, zero_runs=(Run(6, 1 << 50),)),
            replace(one, clusters=[came.clusters[0]]),
            replace(good, clusters=[], lengths=[], fingerprints=b"", payload=b"", zero_runs=(Run(0, 1),)),
            framed(bytes(no_checksum)),
            framed(bytes(dictionary)),
            framed(bytes(longer)),
            framed(bytes(reserved)),
            framed(frame + b"\0"),
            framed(frame[:-1]),
            framed(b"no frame at all, but long enough"),
            framed(zstd_frame.raw(bytes(CLUSTER))[:-1]),
        ]

    def test_nothing_can_be_put_outside_a_cycle(self, replica: Replica):
        for call in (lambda: replica.put(*new_machine().cycle().batches[0]), replica.sync, replica.commit):
            with pytest.raises(ValueError, match="no cycle"):
                call()

    # ---- space

    def test_without_room_the_cycle_waits_and_then_goes_on(self, rig: Rig, replica: Replica):
        cycle = new_machine().cycle()
        rig.set_free(0)
        with pytest.raises(NoSpace):
            replica.begin(cycle.header, resume_after=0)
        rig.set_free(GiB)
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches[:3])
        rig.set_free(0)
        with pytest.raises(NoSpace):
            replica.put(*cycle.batches[3])
        rig.set_free(GiB)
        stage(replica, cycle.batches[3:])
        replica.commit()
        self.assert_is(rig, replica, cycle)

    def test_there_is_no_replica_without_room(self, rig: Rig):
        rig.set_free(0)
        with pytest.raises(NoSpace):
            rig.store.create("another", term=1)
        assert rig.store.replicas() == []
        assert rig.store.free_bytes() == 0

    # ---- points, pins, maintenance

    def test_maintenance_keeps_the_content_of_every_point_that_is_kept(self, rig: Rig, replica: Replica):
        machine = new_machine(seed=3)
        kept: dict[int, Cycle] = {}
        for number in range(1, 40):
            cycle = machine.cycle(Kind.DELTA)
            send(replica, cycle)
            machine.scribble_and_resize()
            if number % 7 == 0:
                kept[number] = cycle
            replica.maintain(keep=list(kept))
            kept.pop(number - 20, None)
            assert {point.cycle for point in replica.points()} >= {*kept, number}
            self.assert_is(rig, replica, cycle)
        replica = self.reopened(rig)
        for cycle in kept.values():
            self.assert_is(rig, replica, cycle)
        assert replica.maintain(keep=[]).removed == [*kept]
        assert [point.cycle for point in replica.points()] == [39]
        assert list(replica.verify()) == []

    def test_a_point_in_use_stays_until_its_user_lets_go(self, rig: Rig, replica: Replica):
        machine = new_machine()
        cycles = []
        for _ in range(4):
            cycles.append(machine.cycle())
            send(replica, cycles[-1])
            machine.scribble()
        assert replica.attach(2, "test-1") == replica.attach(2, "test-1")
        replica.attach(3, "test-1")
        replica.attach(2, "test-2")
        replica = self.reopened(rig)
        assert [point.pinned_by for point in replica.points()] == [(), ("test-1", "test-2"), ("test-1",), ()]
        assert replica.maintain(keep=[]).removed == [1]
        for cycle in cycles[1:]:
            self.assert_is(rig, replica, cycle)
        with pytest.raises(PointPinned):
            rig.store.remove(VM)
        replica.detach("test-1")
        replica.detach("test-1")
        replica = self.reopened(rig)
        assert replica.maintain(keep=[]).removed == [3]
        replica.detach("test-2")
        assert replica.maintain(keep=[]).removed == [2]
        with pytest.raises(PointMissing):
            replica.attach(2, "test-3")
        self.assert_is(rig, replica, cycles[-1])

    def test_maintenance_leaves_the_cycle_that_arrives_alone(self, rig: Rig, replica: Replica):
        machine = new_machine()
        for _ in range(20):
            send(replica, machine.cycle())
            machine.scribble()
        machine.write("disk-a", 0, b"arriving" * CLUSTER)
        cycle = machine.cycle()
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches[:1])
        replica.sync()
        replica.maintain(keep=[])
        stage(replica, cycle.batches[1:])
        replica.maintain(keep=[])
        replica.commit()
        self.assert_is(rig, self.reopened(rig), cycle)

    def test_a_removed_replica_is_gone(self, rig: Rig, replica: Replica):
        send(replica, new_machine().cycle())
        replica.close()
        rig.store.remove(VM)
        rig.store.remove(VM)
        assert rig.store.replicas() == []
        with pytest.raises(ReplicaMissing):
            rig.store.open(VM)

    # ---- what is held

    def test_fingerprints_are_told_in_any_window(self, replica: Replica):
        machine = new_machine(seed=1)
        for _ in range(5):
            cycle = machine.cycle()
            send(replica, cycle)
            machine.scribble()
        expected = fingerprints(cycle.content["disk-a"])
        for start, count in ((0, 20), (3, 5), (19, 1), (19, 100), (20, 5), (7, 0)):
            found = list(replica.fingerprints("disk-a", start, count))
            assert found == [(x, expected[x]) for x in sorted(expected) if start <= x < start + count]
        assert list(replica.fingerprints("no-disk", 0, 10)) == []

    def test_verify_finds_content_that_is_not_what_the_source_sent(self, replica: Replica):
        machine = new_machine()
        machine.write("disk-a", 5 * CLUSTER, b"right")
        cycle = machine.cycle()
        wrong = [
            (replace(batch, fingerprints=fingerprint(b"wrong") * len(batch.clusters)), chain)
            if batch.disk == 0 and 5 in batch.clusters
            else (batch, chain)
            for batch, chain in cycle.batches
        ]
        send(replica, replace(cycle, batches=wrong))
        assert 5 in [finding.cluster for finding in replica.verify()]

    def test_a_cluster_cut_by_shrinking_reads_zeros_when_the_disk_grows_again(self, rig: Rig, replica: Replica):
        machine = new_machine()
        machine.write("disk-a", 0, b"\xaa" * 20 * CLUSTER)
        cycles = [machine.cycle()]
        send(replica, cycles[0])
        for size in (7 * CLUSTER + 512, 15 * CLUSTER, 3 * CLUSTER, 30 * CLUSTER + 1024):
            machine.resize("disk-a", size)
            cycles.append(machine.cycle())
            send(replica, cycles[-1])
        for cycle in cycles:
            self.assert_is(rig, replica, cycle)
        assert dict(replica.fingerprints("disk-a", 0, 99)) == fingerprints(cycles[-1].content["disk-a"])
        assert list(replica.verify()) == []

    def assert_is(self, rig: Rig, replica: Replica, cycle: Cycle) -> None:
        for disk, content in cycle.content.items():
            assert rig.content(replica, cycle.header.number, disk) == content
