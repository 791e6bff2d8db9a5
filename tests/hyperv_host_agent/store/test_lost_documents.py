"""Both copies of a small document are damaged: what can be made anew is, and the rest has a next step that works."""

from pathlib import Path

import pytest

from hyperv_host_agent.replication.cycle import Kind, Wanted
from hyperv_host_agent.store.base import PointPinned, ReplicaMissing, ReplicaUnreadable, TermLost
from hyperv_host_agent.store.chains import CHAINS
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.replica import TERM
from hyperv_host_agent.store.seeding import SEED
from tests.contracts.replica_store import VM, new_machine
from tests.fakes.chain_rig import ChainRig, flip
from tests.fakes.replicated_machine import send
from tests.fakes.seeded_machine import placeholder, read_in, seed
from tests.hyperv_host_agent.store.test_chain_files import filled
from tests.hyperv_host_agent.store.test_packs import Schedule
from twinsite.extents import Run, clusters


@pytest.fixture
def rig(quick_path: Path) -> ChainRig:
    return ChainRig(quick_path / "store")


def lose(path: Path) -> None:
    """Damage both copies."""
    for one in (path, copy_path(path)):
        if one.exists():
            flip(one, one.stat().st_size // 2)


class Forgetting(Schedule):
    """A schedule in which the document of the chains is lost again and again."""

    lost = 0

    def reopen(self) -> None:
        catalog = self.replica._catalog
        before = catalog.chains.trimmed(catalog.manifests.values())
        self.replica.close()
        path = self.rig.root / VM / CHAINS
        if path.exists():
            self.lost += 1
            if self.dice.randrange(2):
                lose(path)
            else:
                path.unlink()
                copy_path(path).unlink(missing_ok=True)
        self.replica = self.rig.store.open(VM)
        assert [point.cycle for point in self.replica.points()] == list(self.cycles)
        after = self.replica._catalog.chains
        for disk, layers in after.disks.items():
            held = before.disks[disk]
            assert [(layer.file, layer.backing, layer.digest) for layer in layers] == [
                (layer.file, layer.backing, layer.digest) for layer in held
            ]
            for layer, was in zip(layers, held, strict=True):
                assert (layer.size, layer.stored_bytes) == (was.size, was.stored_bytes)
                assert {*layer.points} <= {*was.points}
        self.look(self.dice.choice(list(self.cycles)))


@pytest.mark.parametrize("seed_number", range(6))
@pytest.mark.timeout(120)
def test_chains_that_are_lost_are_made_anew_whatever_happened_before(rig: ChainRig, seed_number: int):
    schedule = Forgetting(rig, seed_number)
    for number in range(150):
        schedule.step()
        if number % 10 == 9 and schedule.cycles:
            schedule.reopen()
    assert schedule.lost > 5
    assert schedule.merged > 3
    for cycle in schedule.cycles:
        schedule.look(cycle)
    assert list(schedule.replica.verify()) == []


def test_chains_are_not_guessed_when_a_layer_is_gone_as_well(rig: ChainRig):
    filled(rig, 20)
    replica = rig.store.open(VM)
    replica.maintain(keep=[2])
    replica.close()
    lose(rig.root / VM / CHAINS)
    before = rig.layers("disk-a")
    before[0].rename(before[0].with_suffix(".elsewhere"))
    with pytest.raises(ReplicaUnreadable, match=r"chains\.json is not.*cannot be made anew.*qcow2"):
        rig.store.open(VM)
    before[0].with_suffix(".elsewhere").rename(before[0])
    replica = rig.store.open(VM)
    assert list(replica.verify()) == []
    assert rig.layers("disk-a") == before


def test_a_term_that_is_lost_is_not_guessed_and_a_new_protection_gives_it_a_newer_one(rig: ChainRig):
    cycles = filled(rig)
    lose(rig.root / VM / TERM)
    for call in (lambda: rig.store.open(VM), lambda: rig.store.create(VM, term=1)):
        with pytest.raises(TermLost, match=r"replica\.json"):
            call()
    rig.store.give_term(VM, 7)
    replica = rig.store.create(VM, term=7)
    assert replica.state().term == 7
    assert rig.content(replica, 4, "disk-a") == cycles[3].content["disk-a"]
    rig.store.give_term(VM, 9)
    assert rig.store.open(VM).state().term == 7


def test_who_is_not_known_to_use_which_point_uses_all_of_them_until_the_use_ends(rig: ChainRig):
    filled(rig, 12)
    replica = rig.store.open(VM)
    replica.attach(3, "test")
    replica.close()
    lose(rig.root / VM / "pins" / "test")
    with pytest.raises(PointPinned):
        rig.store.remove(VM)
    replica = rig.store.open(VM)
    assert {point.pinned_by for point in replica.points()} == {("test",)}
    assert replica.maintain(keep=[]).removed == []
    for _ in range(2):
        assert "pins/test" in [finding.file for finding in replica.verify()]
    replica.attach(3, "test")
    assert list(replica.verify()) == []
    replica.detach("test")
    assert replica.maintain(keep=[]).removed == [*range(1, 12)]
    replica.close()
    rig.store.remove(VM)
    with pytest.raises(ReplicaMissing):
        rig.store.open(VM)


def test_what_came_of_a_seed_is_not_guessed_and_comes_anew_over_the_network(rig: ChainRig):
    machine = new_machine()
    replica = rig.store.create(VM, term=1)
    send(replica, first := placeholder(machine))
    content = {disk: bytes(held) for disk, held in machine.disks.items()}
    read_in(replica, seed(content, first.header.disks), after=1)
    machine.scribble()
    assert send(replica, machine.cycle()).recoverable
    replica.close()
    lose(rig.root / VM / SEED)
    replica = rig.store.open(VM)
    assert not any(point.recoverable for point in replica.points())
    assert not replica.state().awaiting_seed
    everything = tuple(
        Wanted(disk, Run(0, clusters(len(held)))) for disk, held in sorted(machine.disks.items()) if held
    )
    assert replica.wanted() == everything
    for want in everything:
        machine.dirty[want.disk].update(range(want.run.start, want.run.end))
    cycle = machine.cycle(Kind.DELTA)
    assert send(replica, cycle).recoverable
    replica.close()
    replica = rig.store.open(VM)
    assert [point.recoverable for point in replica.points()][-1]
    for disk in machine.disks:
        assert rig.content(replica, cycle.header.number, disk) == cycle.content[disk]
