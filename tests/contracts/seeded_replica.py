"""What every replica store promises about a base that comes on media; each adapter runs this suite."""

from dataclasses import replace

import pytest

from hyperv_host_agent.replication.cycle import Kind, Wanted
from hyperv_host_agent.store.base import BadBatch, NoSpace, Replica, SeedNotAwaited, SeedStopped
from tests.contracts.replica_store import VM, GiB, Rig, new_machine
from tests.fakes.replicated_machine import Cycle, Machine, batch_of, fingerprints, send
from tests.fakes.seeded_machine import placeholder, read_in, seed
from twinsite.extents import CLUSTER, Run, clusters


def torn(machine: Machine) -> dict[str, bytes]:
    """The disks as an export reads them: while the guest writes."""
    before = {disk: bytes(content) for disk, content in machine.disks.items()}
    machine.scribble()
    return {
        disk: b"".join(
            (before if index % 2 else machine.disks)[disk][at : at + CLUSTER]
            for index, at in enumerate(range(0, len(content), CLUSTER))
        )
        for disk, content in before.items()
    }


class SeededReplicaContract:
    """Subclass it with a `rig` fixture."""

    @pytest.fixture
    def replica(self, rig: Rig) -> Replica:
        return rig.store.create(VM, term=1)

    def reopened(self, rig: Rig) -> Replica:
        rig.power_loss()
        return rig.store.open(VM)

    def assert_is(self, rig: Rig, replica: Replica, cycle: Cycle) -> None:
        for disk, content in cycle.content.items():
            assert rig.content(replica, cycle.header.number, disk) == content

    def test_an_empty_base_awaits_its_seed_and_nothing_on_it_is_recoverable(self, rig: Rig, replica: Replica):
        assert replica.awaited() is None
        machine = new_machine()
        first = placeholder(machine)
        send(replica, first)
        for _ in range(2):
            machine.scribble()
            assert not send(replica, machine.cycle()).recoverable
            awaited = replica.awaited()
            assert awaited is not None
            assert (awaited.id, awaited.cycle, awaited.disks) == (first.header.id, 1, first.header.disks)
            assert replica.state().awaiting_seed
            assert [point.recoverable for point in replica.points()] == [False] * len(replica.points())
            replica.maintain(keep=[])
            replica = self.reopened(rig)

    @pytest.mark.parametrize("seed_number", range(8))
    def test_points_after_the_export_are_the_source_whatever_happened_meanwhile(
        self, rig: Rig, replica: Replica, seed_number: int
    ):
        machine = new_machine(seed_number)
        send(replica, first := placeholder(machine))
        cycles: list[Cycle] = []

        def go_on(count: int) -> None:
            for _ in range(count):
                machine.scribble_and_resize()
                cycles.append(machine.cycle())
                send(replica, cycles[-1])

        go_on(seed_number % 3)
        content = torn(machine)
        after = machine.number
        go_on(6)
        replica.maintain(keep=[point.cycle for point in replica.points() if seed_number % 2])
        awaited = replica.awaited()
        assert awaited is not None
        replica.seed_begin(awaited.id)
        for batch in seed(content, first.header.disks):
            replica.seed_put(batch)
            if batch.sequence == 2:
                go_on(1)
        replica.seed_commit(after_cycle=after, lacking=())
        go_on(3)
        for reader in (lambda: replica, lambda: self.reopened(rig)):
            found = reader()
            assert found.awaited() is None
            assert found.state().awaiting_seed is False
            points = found.points()
            assert [point.recoverable for point in points] == [point.cycle > after for point in points]
            for cycle in cycles:
                if cycle.header.number in {point.cycle for point in points if point.recoverable}:
                    self.assert_is(rig, found, cycle)
            for disk, now in cycles[-1].content.items():
                assert dict(found.fingerprints(disk, 0, 1 << 40)) == fingerprints(now)
            assert list(found.verify()) == []
            found.maintain(keep=[cycles[-3].header.number])
            self.assert_is(rig, found, cycles[-3])
            self.assert_is(rig, found, cycles[-1])

    def test_disks_come_and_go_while_the_seed_is_on_its_way(self, rig: Rig, replica: Replica):
        machine = new_machine()
        machine.add("disk-c", 3 * CLUSTER)
        machine.write("disk-c", CLUSTER, b"first life")
        send(replica, first := placeholder(machine))
        content = {disk: bytes(data) for disk, data in machine.disks.items()}
        machine.remove("disk-c")
        machine.remove("disk-b")
        send(replica, machine.cycle())
        machine.add("disk-c", 4 * CLUSTER)
        machine.dirty["disk-c"] = set(range(4))
        machine.write("disk-c", 3 * CLUSTER, b"second life")
        last = machine.cycle()
        send(replica, last)
        read_in(replica, seed(content, first.header.disks), after=1)
        self.assert_is(rig, replica, last)
        assert list(replica.verify()) == []

    def test_what_the_seed_lacks_is_wanted_and_points_wait_for_it(self, rig: Rig, replica: Replica):
        machine = new_machine(seed=3)
        send(replica, first := placeholder(machine))
        batches = seed({disk: bytes(data) for disk, data in machine.disks.items()}, first.header.disks)
        awaited = replica.awaited()
        assert awaited is not None
        replica.seed_begin(awaited.id)
        gaps = (Wanted("disk-a", Run(0, 8)), Wanted("disk-b", Run(2, 3)))
        for batch in batches:
            kept = [x for x in batch.clusters if not any(g.run.start <= x < g.run.end for g in gaps[batch.disk :][:1])]
            replica.seed_put(
                batch_of(batch.sequence, batch.disk, bytes(list(machine.disks.values())[batch.disk]), kept)
            )
        replica.seed_commit(after_cycle=1, lacking=gaps)
        assert replica.state().wanted == gaps
        for want, left in (
            (Run(0, 5), (Wanted("disk-a", Run(5, 3)), gaps[1])),
            (Run(4, 4), (gaps[1],)),
        ):
            machine.dirty["disk-a"].update(range(want.start, want.end))
            assert not send(replica, machine.cycle()).recoverable
            assert replica.state().wanted == left
            replica = self.reopened(rig)
            assert replica.state().wanted == left
        machine.dirty["disk-b"].update(range(2, 5))
        last = machine.cycle()
        assert send(replica, last).recoverable
        assert replica.state().wanted == ()
        assert [point.recoverable for point in replica.points()] == [False, False, False, True]
        self.assert_is(rig, replica, last)

    def test_what_is_wanted_of_a_disk_that_went_is_wanted_no_more(self, replica: Replica):
        machine = new_machine()
        send(replica, placeholder(machine))
        awaited = replica.awaited()
        assert awaited is not None
        replica.seed_begin(awaited.id)
        replica.seed_commit(after_cycle=1, lacking=[Wanted("disk-a", Run(6, 14)), Wanted("disk-b", Run(0, 7))])
        machine.remove("disk-b")
        machine.resize("disk-a", 9 * CLUSTER)
        send(replica, machine.cycle())
        assert replica.state().wanted == (Wanted("disk-a", Run(6, 3)),)

    def test_a_power_loss_while_it_is_read_in_leaves_it_awaited(self, rig: Rig, replica: Replica):
        machine = new_machine()
        send(replica, first := placeholder(machine))
        batches = seed({disk: bytes(data) for disk, data in machine.disks.items()}, first.header.disks)
        replica.seed_begin(first.header.id)
        for batch in batches[:-1]:
            replica.seed_put(batch)
        replica = self.reopened(rig)
        assert replica.state().awaiting_seed
        with pytest.raises(SeedStopped):
            replica.seed_put(batches[-1])
        last = machine.cycle()
        send(replica, last)
        read_in(replica, batches, after=1)
        self.assert_is(rig, replica, last)

    def test_an_attempt_can_be_dropped_and_made_again(self, rig: Rig, replica: Replica):
        machine = new_machine()
        send(replica, first := placeholder(machine))
        batches = seed({disk: bytes(data) for disk, data in machine.disks.items()}, first.header.disks)
        replica.seed_begin(first.header.id)
        replica.seed_put(batches[0])
        replica.seed_abandon()
        replica.seed_abandon()
        for call in (lambda: replica.seed_put(batches[0]), lambda: replica.seed_commit(after_cycle=1, lacking=())):
            with pytest.raises(SeedStopped):
                call()
        replica.seed_begin(first.header.id)
        replica.seed_put(batches[-1])
        read_in(replica, batches, after=1)
        last = machine.cycle()
        send(replica, last)
        self.assert_is(rig, replica, last)

    def test_a_whole_copy_over_the_network_takes_the_place_of_a_seed_that_was_called_off(
        self, rig: Rig, replica: Replica
    ):
        machine = new_machine()
        send(replica, placeholder(machine))
        machine.scribble()
        send(replica, machine.cycle())
        for disk, content in machine.disks.items():
            machine.dirty[disk] = set(range(clusters(len(content))))
        send(replica, machine.cycle(Kind.RESYNC))
        assert replica.awaited() is None
        replica = self.reopened(rig)
        assert not replica.state().awaiting_seed
        machine.scribble()
        cycle = machine.cycle()
        assert send(replica, cycle).recoverable
        assert [point.recoverable for point in replica.points()] == [False, False, False, True]
        self.assert_is(rig, replica, cycle)
        with pytest.raises(SeedNotAwaited):
            replica.seed_begin(b"s" * 16)

    def test_a_seed_nobody_awaits_is_refused(self, replica: Replica):
        with pytest.raises(SeedNotAwaited):
            replica.seed_begin(b"x" * 16)
        machine = new_machine()
        send(replica, first := placeholder(machine))
        with pytest.raises(SeedNotAwaited):
            replica.seed_begin(b"x" * 16)
        read_in(replica, [], after=1)
        with pytest.raises(SeedNotAwaited):
            replica.seed_begin(first.header.id)

    def test_a_batch_of_a_seed_that_breaks_a_rule_is_refused_and_nothing_of_it_is_kept(
        self, rig: Rig, replica: Replica
    ):
        machine = new_machine()
        machine.write("disk-a", 5 * CLUSTER, machine.random.randbytes(3 * CLUSTER))
        send(replica, first := placeholder(machine))
        content = bytes(machine.disks["disk-a"])
        good = batch_of(1, 0, content, [5, 6, 7])
        replica.seed_begin(first.header.id)
        replica.seed_put(good)
        for bad in (
            good,
            replace(good, disk=2),
            replace(good, clusters=[9, 8, 10]),
            replace(good, clusters=[8, 9], lengths=good.lengths),
            replace(good, clusters=[8, 9, 10], payload=good.payload[:-1]),
            replace(good, clusters=[8, 9, 10], lengths=[good.lengths[0] + 1, good.lengths[1] - 1, good.lengths[2]]),
            replace(good, clusters=[8, 9, 10], fingerprints=b""),
        ):
            with pytest.raises(BadBatch):
                replica.seed_put(bad)
        replica.seed_commit(after_cycle=1, lacking=())
        assert set(dict(replica.fingerprints("disk-a", 0, 99))) == {5, 6, 7}
        assert list(replica.verify()) == []

    def test_without_room_reading_in_waits_and_then_goes_on(self, rig: Rig, replica: Replica):
        machine = new_machine()
        send(replica, first := placeholder(machine))
        batches = seed({disk: bytes(data) for disk, data in machine.disks.items()}, first.header.disks)
        last = machine.cycle()
        send(replica, last)
        replica.seed_begin(first.header.id)
        replica.seed_put(batches[0])
        rig.set_free(0)
        with pytest.raises(NoSpace):
            replica.seed_put(batches[1])
        rig.set_free(GiB)
        for batch in batches[1:]:
            replica.seed_put(batch)
        replica.seed_commit(after_cycle=1, lacking=())
        self.assert_is(rig, replica, last)

    def test_a_placeholder_has_no_content_and_comes_first(self, replica: Replica):
        machine = new_machine()
        cycle = machine.cycle()
        replica.begin(replace(cycle.header, placeholder=True), resume_after=0)
        with pytest.raises(BadBatch):
            replica.put(*cycle.batches[0])
        send(replica, cycle)
        with pytest.raises(ValueError, match="comes first"):
            replica.begin(replace(machine.cycle().header, placeholder=True), resume_after=0)
