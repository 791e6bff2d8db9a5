"""Everything the store does under kill -9, at every system call that changes a file."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from hyperv_host_agent.store.base import PointLocked, ReplicaMissing, StoreDamaged
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import store_workload, warm_program
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import Cycle, fingerprints
from tests.fakes.store_workload import BEFORE, KEPT, MANY, TERM, THIN, VM, WANTED, WORKS, Session, damaged_history, take
from tests.fakes.warm_program import Warm

pytestmark = pytest.mark.system  # a thousand processes

LEFTOVERS: Final = {".partial", ".merged", ".mended", ".tmp", ".journal", ".seed"}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with store_workload.started() as program:
        yield program


@dataclass
class Crashed:
    """A store that a killed program left, and what that program had been told."""

    name: str
    root: Path
    said: list[str]

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        return WORKS[self.name].cycles()

    def told(self, *words: object) -> bool:
        return " ".join(map(str, words)) in self.said

    def highest(self, word: str) -> int:
        return max((int(line.split()[1]) for line in self.said if line.split()[0] == word), default=0)


def assert_points(rig: ChainRig, replica: ChainReplica, cycles: tuple[Cycle, ...], attach: int) -> None:
    """Every point is the source at its instant: one of them as a hypervisor sees it, all as the store vouches.

    Where there was damage, it is an error and never other content.
    """
    damage = cycles is damaged_history()
    points = replica.points()
    for point in points:
        cycle = cycles[point.cycle - 1]
        assert cycle.header.id == point.id
        for disk, content in cycle.content.items():
            with suppress(*[StoreDamaged] if damage else []):
                assert dict(replica.fingerprints(disk, 0, 1 << 30, cycle=point.cycle)) == fingerprints(content)
    if points:
        number = points[attach % len(points)].cycle
        for disk, content in cycles[number - 1].content.items():
            with suppress(*[LayerDamaged, StoreDamaged] if damage else []):
                assert rig.content(replica, number, disk) == content
        replica.detach("reader")


def assert_tidy(root: Path) -> None:
    """No crash left anything behind."""
    ChainStore(root).open(VM).close()
    assert [path.name for path in root.rglob("*") if path.suffix in LEFTOVERS or ".view." in path.name] == []


def numbers(replica: ChainReplica) -> list[int]:
    return [point.cycle for point in replica.points()]


def received(left: Crashed, replica: ChainReplica) -> None:
    state = replica.state()
    assert state.committed is not None
    assert state.committed.number >= max(BEFORE, left.highest("committed"))
    if state.committed.number == BEFORE and left.highest("synced"):
        assert state.unfinished is not None
        assert state.unfinished.durable >= left.highest("synced")
    assert numbers(replica) == list(range(1, state.committed.number + 1))


def maintained(left: Crashed, replica: ChainReplica) -> None:
    assert set(numbers(replica)) >= {KEPT, BEFORE}
    if left.said:
        assert left.told("maintained", True)
        assert numbers(replica) == [KEPT, BEFORE]


def all_kept(_left: Crashed, replica: ChainReplica) -> None:
    assert numbers(replica) == list(range(1, MANY + 1))


def in_use(left: Crashed, replica: ChainReplica) -> None:
    all_kept(left, replica)
    pins = {point.cycle: point.pinned_by for point in replica.points()}
    for owner, cycle in (("one", 2), ("two", 3)):
        if left.told("attached", owner, cycle) and not (owner == "one" and left.told("attached", "two", 3)):
            assert owner in pins[cycle] or left.told("detached", owner) or left.told("attached", "two", 3)
        if left.told("detached", owner):
            assert owner not in pins[cycle]


def thinned(left: Crashed, replica: ChainReplica) -> None:
    assert set(numbers(replica)) >= {*THIN, MANY}
    if left.said:
        assert left.told("maintained", True)
        assert numbers(replica) == [*THIN, MANY]


def repaired(left: Crashed, replica: ChainReplica) -> None:
    mended = left.told("repaired", 3) or left.highest("scrubbed")
    assert not mended or 3 not in {finding.cluster for finding in replica.verify()}
    newest = numbers(replica)[-1]
    assert newest >= left.highest("committed")
    if left.told("wanted", "a:0") and newest == len(left.cycles) - 1:
        assert [want.run.start for want in replica.state().wanted] == [0]


def marked(left: Crashed, replica: ChainReplica) -> None:
    two, three = (replica.points()[at] for at in (1, 2))
    if left.told("freed", 2):
        assert (two.kept, two.name) == (False, "")
    elif left.told("kept", 2) and not left.told("locked", 3):
        assert (two.kept, two.name) == (True, "two")
    if left.told("locked", 3):
        assert three.locked_until is not None
        with pytest.raises(PointLocked):
            ChainStore(left.root).remove(VM)
    else:
        assert not left.told("freed", 2)


def wanted(left: Crashed, replica: ChainReplica) -> None:
    state = replica.state()
    assert state.wanted in {(), WANTED}
    assert state.wanted == WANTED or not left.told("wanted")
    assert state.term in {1, TERM}
    assert state.term == TERM or not left.told("term", TERM)


def created(left: Crashed, replica: ChainReplica) -> None:
    assert numbers(replica) in ([], [1])
    assert not left.highest("committed") or numbers(replica) == [1]


@dataclass(frozen=True)
class Promise:
    least: int  # calls at which it is killed
    holds: Callable[[Crashed, ChainReplica], None]
    left: list[int]  # points there are once the work was done


PROMISES: Final = {
    "receive": Promise(35, received, [*range(1, BEFORE + 2)]),
    "receive-instead": Promise(35, received, [*range(1, BEFORE + 2)]),
    "maintain": Promise(80, maintained, [KEPT, BEFORE]),
    "pack": Promise(70, all_kept, [*range(1, MANY + 1)]),
    "use": Promise(30, in_use, [*range(1, MANY + 1)]),
    "thin": Promise(40, thinned, [*THIN, MANY]),
    "repair": Promise(60, repaired, [1, 2, 3, 4]),
    "scrub": Promise(40, repaired, [1, 2, 3]),
    "mend": Promise(50, received, [*range(1, BEFORE + 1)]),
    "mark": Promise(18, marked, [1, 2, 3]),
    "want": Promise(10, wanted, [1, 2, 3]),
    "create": Promise(50, created, []),
}


def test_these_are_enough_points():
    assert PROMISES.keys() == WORKS.keys()
    assert sum(promise.least for promise in PROMISES.values()) >= 300


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.timeout(300)
def test_a_kill_at_any_call_breaks_no_promise(warm: Warm, quick_path: Path, name: str):
    work, promise = WORKS[name], PROMISES[name]
    root, prepared = quick_path / "store", quick_path / "prepared"
    work.prepare(prepared)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)

    count = 0
    for call, done in warm_program.kills(warm, [name, str(root)], root, fresh):
        count += 1
        left = Crashed(name, root, done.stdout.splitlines())
        rig = ChainRig(root)
        try:
            replica = rig.store.open(VM)
        except ReplicaMissing:
            assert name == "create", call
            assert not left.told("created") or left.highest("committed"), call
        else:
            promise.holds(left, replica)
            assert_points(rig, replica, left.cycles, count)
            replica.close()
            if name != "use":
                assert_tidy_but_journal(root)
        finish(left, promise, count)
    assert count >= promise.least


def assert_tidy_but_journal(root: Path) -> None:
    rest = [path for path in root.rglob("*") if path.suffix in LEFTOVERS - {".journal", ".partial"}]
    assert rest == []


def finish(left: Crashed, promise: Promise, attach: int) -> None:
    """The work can be done again, and replication goes on."""
    session = Session(left.root)
    WORKS[left.name].run(session)
    if not promise.left:
        with pytest.raises(ReplicaMissing):
            session.replica  # noqa: B018  # opens it
        assert [path.name for path in left.root.iterdir() if path.is_dir()] == []
        return
    assert numbers(session.replica) == promise.left
    newest = promise.left[-1]
    if newest < len(left.cycles):
        following = left.cycles[newest]
        term = session.replica.state().term
        take(session.replica, replace(following, header=replace(following.header, term=term)))
    session.close()
    rig = ChainRig(left.root)
    replica = rig.store.open(VM)
    assert_points(rig, replica, left.cycles, attach)
    newest = numbers(replica)[-1]
    assert [finding for finding in replica.verify(cycle=newest) if newest in finding.points] == []
    replica.close()
    assert_tidy(left.root)
