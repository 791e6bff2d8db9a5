"""What every replica store promises about marks, what it lacks, and damage; each adapter runs this suite."""

import pytest

from hyperv_host_agent.replication.cycle import Kind, Wanted
from hyperv_host_agent.store.base import BadLock, BadName, PointLocked, PointMissing, Replica
from tests.contracts.replica_store import VM, Rig, new_machine
from tests.fakes.replicated_machine import Cycle, send, stage
from twinsite.extents import CLUSTER, Run


def some_cycles(replica: Replica, count: int) -> list[Cycle]:
    machine, cycles = new_machine(), []
    for _ in range(count):
        cycles.append(machine.cycle(Kind.DELTA))
        send(replica, cycles[-1])
        machine.scribble()
    return cycles


class ReplicaUpkeepContract:
    """Subclass it with a `rig` fixture."""

    @pytest.fixture
    def replica(self, rig: Rig) -> Replica:
        return rig.store.create(VM, term=1)

    def reopened(self, rig: Rig) -> Replica:
        rig.power_loss()
        return rig.store.open(VM)

    # ---- marks

    def test_a_kept_point_stays_until_it_is_let_go(self, rig: Rig, replica: Replica):
        cycles = some_cycles(replica, 5)
        assert replica.mark(2, keep=True, name="before the update", lock_seconds=None).kept
        replica.mark(3, keep=None, name="only a name", lock_seconds=None)
        replica = self.reopened(rig)
        assert replica.maintain(keep=[4]).removed == [1, 3]
        shown = [(point.cycle, point.name, point.kept, point.locked_until) for point in replica.points()]
        assert shown == [(2, "before the update", True, None), (4, "", False, None), (5, "", False, None)]
        self.assert_is(rig, replica, cycles[1])
        assert replica.mark(2, keep=False, name="", lock_seconds=None) == replica.points()[0]
        assert replica.points()[0].name == ""
        assert self.reopened(rig).maintain(keep=[]).removed == [2, 4]

    def test_a_point_that_came_after_it_was_decided_what_to_keep_stays(self, rig: Rig, replica: Replica):
        cycles = some_cycles(replica, 5)
        assert replica.maintain(keep=[2], up_to=3).removed == [1, 3]
        replica = self.reopened(rig)
        assert [point.cycle for point in replica.points()] == [2, 4, 5]
        self.assert_is(rig, replica, cycles[3])

    def test_nobody_deletes_a_locked_point_before_its_time(self, rig: Rig, replica: Replica):
        cycles = some_cycles(replica, 3)
        point = replica.mark(2, keep=True, name=None, lock_seconds=7200)
        assert point.locked_until == pytest.approx(rig.clock.wall + 7200)
        replica.mark(2, keep=None, name="named", lock_seconds=3600)
        assert replica.points()[1].locked_until == point.locked_until  # never shortened
        for act in (
            lambda: rig.clock.set_wall(1e8),
            lambda: rig.clock.set_wall(-2e8),
            lambda: rig.clock.advance(3500),
            rig.clock.reboot,
        ):
            act()
            replica = self.reopened(rig)
            with pytest.raises(PointLocked, match="locked until 20"):
                replica.mark(2, keep=False, name=None, lock_seconds=None)
            assert 2 not in replica.maintain(keep=[]).removed
            replica.close()
            with pytest.raises(PointLocked):
                rig.store.remove(VM)
        self.assert_is(rig, self.reopened(rig), cycles[1])
        for _ in range(4):
            rig.clock.advance(1800)
            replica = self.reopened(rig)
            replica.points()
        assert not replica.mark(2, keep=False, name="", lock_seconds=None).kept
        assert replica.maintain(keep=[]).removed == [2]
        rig.store.remove(VM)

    def test_a_lock_alone_keeps_a_point_just_as_long(self, rig: Rig, replica: Replica):
        some_cycles(replica, 3)
        replica.mark(1, keep=None, name=None, lock_seconds=60)
        assert replica.maintain(keep=[]).removed == [2]
        rig.clock.advance(61)
        assert replica.points()[0].locked_until is None
        assert replica.maintain(keep=[]).removed == [1]

    def test_a_mark_that_cannot_be_is_refused(self, replica: Replica):
        some_cycles(replica, 1)
        for name in ("x" * 101, "two\nlines", " space"):
            with pytest.raises(BadName):
                replica.mark(1, keep=None, name=name, lock_seconds=None)
        for seconds in (-1, 1 << 60):
            with pytest.raises(BadLock):
                replica.mark(1, keep=None, name=None, lock_seconds=seconds)
        with pytest.raises(PointMissing):
            replica.mark(9, keep=True, name=None, lock_seconds=None)

    # ---- what is lacking

    def test_what_is_wanted_is_told_until_a_cycle_brought_it(self, rig: Rig, replica: Replica):
        machine = new_machine()
        send(replica, machine.cycle())
        replica.want([Wanted("disk-a", Run(2, 3)), Wanted("disk-b", Run(0, 1)), Wanted("disk-a", Run(4, 4))])
        asked = (Wanted("disk-a", Run(2, 6)), Wanted("disk-b", Run(0, 1)))
        replica = self.reopened(rig)
        assert replica.wanted() == replica.state().wanted == asked
        machine.write("disk-a", 3 * CLUSTER, b"something")
        machine.write("disk-a", 7 * CLUSTER, bytes(CLUSTER))
        cycle = machine.cycle()
        replica.begin(cycle.header, resume_after=0)
        stage(replica, cycle.batches)
        assert replica.wanted() == asked
        replica.commit()
        left = (Wanted("disk-a", Run(2, 1)), Wanted("disk-a", Run(4, 3)), Wanted("disk-b", Run(0, 1)))
        assert replica.wanted() == self.reopened(rig).wanted() == left
        replica = rig.store.open(VM)
        machine.remove("disk-b")
        machine.resize("disk-a", 5 * CLUSTER)
        send(replica, machine.cycle())
        assert self.reopened(rig).wanted() == (Wanted("disk-a", Run(2, 1)), Wanted("disk-a", Run(4, 1)))

    def test_not_more_is_asked_for_at_once_than_an_answer_holds(self, rig: Rig, replica: Replica):
        send(replica, new_machine().cycle())
        replica.want(Wanted("disk-a", Run(2 * number, 1)) for number in range(5000))
        assert len(self.reopened(rig).state().wanted) == 4096

    # ---- damage

    def test_verify_names_the_cluster_that_is_damaged(self, rig: Rig, replica: Replica):
        machine = new_machine()
        machine.write("disk-a", 5 * CLUSTER, machine.random.randbytes(CLUSTER))
        send(replica, machine.cycle())
        machine.write("disk-b", 2 * CLUSTER, machine.random.randbytes(CLUSTER))
        send(replica, machine.cycle())
        rig.damage("disk-a", 5)
        rig.damage("disk-b", 2)
        found = [(finding.points, finding.disk, finding.cluster) for finding in replica.verify()]
        assert found == [((1, 2), "disk-a", 5), ((2,), "disk-b", 2)]
        assert [point.damaged for point in replica.points()] == [1, 2]

    def test_a_check_of_one_point_reads_what_that_stands_on(self, rig: Rig, replica: Replica):
        machine = new_machine()
        send(replica, machine.cycle())
        machine.write("disk-a", 5 * CLUSTER, machine.random.randbytes(CLUSTER))
        send(replica, machine.cycle())
        rig.damage("disk-a", 5)
        assert list(replica.verify(cycle=1)) == []
        assert [finding.cluster for finding in replica.verify(cycle=2)] == [5]
        steps = list(replica.check())
        assert steps[-1].done_bytes == steps[-1].total_bytes > 0
        assert sorted(step.done_bytes for step in steps) == [step.done_bytes for step in steps]
        with pytest.raises(PointMissing):
            replica.check(cycle=3)

    def test_what_the_newest_point_lost_is_wanted_and_right_again_when_it_came(self, rig: Rig, replica: Replica):
        machine = new_machine()
        machine.write("disk-a", 5 * CLUSTER, machine.random.randbytes(CLUSTER))
        send(replica, machine.cycle())
        rig.damage("disk-a", 5)
        state = replica.scrub(1 << 30, now=5.0)
        assert (state.damaged, state.completed) in {(1, None), (1, 5.0)}
        assert replica.state().wanted == (Wanted("disk-a", Run(5, 1)),)
        machine.dirty["disk-a"].add(5)
        cycle = machine.cycle()
        send(replica, cycle)
        assert replica.wanted() == ()
        self.assert_is(rig, replica, cycle)
        assert replica.points()[-1].damaged == 0

    def assert_is(self, rig: Rig, replica: Replica, cycle: Cycle) -> None:
        for disk, content in cycle.content.items():
            assert rig.content(replica, cycle.header.number, disk) == content
