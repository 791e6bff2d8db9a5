"""Everything a target does with a replica on disk, as a program that loses its power, its disk or its space.

`store_workload.py WORK ROOT [reopen] [short=N]` does it and says on stdout what it was told is durable; `WORKS` has
them all, and how the store is before each. After an error it goes on with the replica it has, or opens it anew with
`reopen`. With `short` the n-th write takes half of what it is given.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyperv_host_agent.replication.cycle import Kind, Wanted
from hyperv_host_agent.store.base import NoSpace, ReplicaMissing, StoreDamaged, WriteFailed
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.formats.side_file import SideFile, side_path
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import warm_program
from tests.fakes.replicated_machine import Cycle, Machine, fingerprints, send, stage
from twinsite.extents import CLUSTER, Run

VM: Final = "vm"
BEFORE: Final = 7  # cycles that are there when the program starts
KEPT: Final = 5  # layers up to it become one
MANY: Final = 18  # cycles that are there when packs are to be made
THIN: Final = (17,)  # of them that stay, with the newest
LOCK: Final = 3600
WANTED: Final = (Wanted("a", Run(1, 2)), Wanted("b", Run(0, 1)))
TERM: Final = 5
_TRIES: Final = 5


@cache
def history(count: int = BEFORE, *, disks: int = 2) -> tuple[Cycle, ...]:
    """`count` cycles and the one that the program receives; the same in every process."""
    content = {"a": bytearray(9 * CLUSTER), "b": bytearray(3 * CLUSTER + 512)}
    machine = Machine(VM, dict(list(content.items())[:disks]), seed=11)
    cycles = []
    for number in range(count + 1):
        machine.write("a", number % 8 * CLUSTER, machine.random.randbytes(900))
        if disks > 1:
            machine.write("b", 2 * CLUSTER, machine.random.randbytes(700))
            machine.resize("b", (3 + number % 2) * CLUSTER + 512)
        cycles.append(machine.cycle())
    return tuple(cycles)


@cache
def packed_history() -> tuple[Cycle, ...]:
    """Cycles of one disk, whose layers make packs."""
    return history(MANY, disks=1)


@cache
def damaged_history() -> tuple[Cycle, ...]:
    """Cycles of one disk, in which a cluster of the second comes back in the third, and one of the first does not."""
    machine = Machine(VM, {"a": bytearray(9 * CLUSTER)}, seed=12)
    noise = [machine.random.randbytes(2000) for _ in range(3)]
    machine.write("a", 0, noise[0])
    cycles = [machine.cycle()]
    machine.write("a", 3 * CLUSTER, noise[1])
    cycles.append(machine.cycle())
    machine.write("a", 5 * CLUSTER, noise[1])
    machine.write("a", 6 * CLUSTER, noise[2])
    cycles.append(machine.cycle())
    machine.dirty["a"].add(0)  # what the damage of the first makes wanted
    cycles.append(machine.cycle())
    return tuple(cycles)


class Session:
    """A store and its replica, as the program has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._replica: ChainReplica | None = None

    @property
    def store(self) -> ChainStore:
        return ChainStore(self.root, reserve=0)

    @property
    def replica(self) -> ChainReplica:
        if self._replica is None:
            self._replica = self.store.open(VM)
        return self._replica

    def close(self) -> None:
        if self._replica:
            self._replica.close()
        self._replica = None


def prepare(root: Path) -> None:
    """BEFORE cycles, nothing else."""
    filled(root, history()[:BEFORE])


def filled(root: Path, cycles: tuple[Cycle, ...]) -> None:
    replica = ChainStore(root, reserve=0).create(VM, term=1)
    for cycle in cycles:
        send(replica, cycle)
    replica.close()


def receive(session: Session) -> None:
    take(session.replica, history()[BEFORE])


def take(replica: ChainReplica, cycle: Cycle) -> None:
    """Take a cycle to its commit from wherever it is."""
    state = replica.state()
    if state.committed and state.committed.number >= cycle.header.number:
        return
    unfinished = state.unfinished if state.unfinished and state.unfinished.id == cycle.header.id else None
    durable = unfinished.durable if unfinished else 0
    replica.begin(cycle.header, resume_after=durable)
    for batch, chain in cycle.batches[durable:]:
        replica.put(batch, chain)
        tell("synced", replica.sync())
    replica.commit()
    tell("committed", cycle.header.number)


def half_received(root: Path) -> None:
    """The first batch of another cycle is there, and that will not come any more."""
    filled(root, history()[:BEFORE])
    replica = ChainStore(root, reserve=0).open(VM)
    cycle = other_cycle()
    replica.begin(cycle.header, resume_after=0)
    stage(replica, cycle.batches[:1])
    replica.sync()
    replica.close()


@cache
def other_cycle() -> Cycle:
    """It follows the same one as what the program receives."""
    machine = Machine(VM, {"a": bytearray(9 * CLUSTER)}, seed=13)
    machine.number, machine.parent_id = BEFORE, history()[BEFORE - 1].header.id
    return machine.cycle(Kind.DELTA)


def maintain(session: Session) -> None:
    done = session.replica.maintain(keep=[KEPT])
    tell("maintained", done.finished)


def pack(session: Session) -> None:
    """Merge across points that are all kept."""
    done = session.replica.maintain(keep=range(MANY + 1))
    tell("maintained", done.finished)


def packed(root: Path) -> None:
    filled(root, packed_history()[:MANY])
    replica = ChainStore(root, reserve=0).open(VM)
    while not replica.maintain(keep=range(MANY + 1)).finished:
        pass
    replica.close()


def use(session: Session) -> None:
    """Use points inside a pack and let go of them."""
    replica = session.replica
    replica.attach(2, "one")
    tell("attached", "one", 2)
    replica.attach(3, "two")
    tell("attached", "two", 3)
    replica.detach("one")
    tell("detached", "one")
    replica.detach("two")
    tell("detached", "two")


def thin(session: Session) -> None:
    """Give up most points of the packs, which are written anew without them."""
    done = session.replica.maintain(keep=THIN)
    tell("maintained", done.finished)


def damaged(root: Path) -> None:
    """One frame that another layer has as well, one that only the source has, and a side file with a copy."""
    filled(root, damaged_history()[:3])
    replica = ChainStore(root, reserve=0).open(VM)
    replica.maintain(keep=range(9))  # gives second copies to what was committed
    replica.close()
    for layer, cluster in (("000002.qcow2", 3), ("000001.qcow2", 0)):
        spoil(root / VM / "a" / layer, cluster)
    with (root / VM / "a" / "000003.fp").open("r+b") as file:
        file.write(b"spoilt")


def spoil(layer: Path, cluster: int) -> None:
    """Damage a layer's newest frame of a cluster."""
    side = SideFile(side_path(layer))
    entry = next(entry for entry in side.entries(cluster, cluster + 1) if entry.mapped)
    side.close()
    with layer.open("r+b") as file:
        file.seek(entry.offset + entry.length // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def repair(session: Session) -> None:
    """Mend what can be mended here, want the rest, and take the cycle that brings it."""
    replica = session.replica
    for step in replica.check(repair=True):
        for finding in step.findings:
            if finding.repaired:
                tell("repaired", finding.cluster)
    tell("wanted", *(f"{want.disk}:{want.run.start}" for want in replica.state().wanted))
    take(replica, damaged_history()[3])


def scrub(session: Session) -> None:
    """The same in the background, in pieces."""
    replica = session.replica
    while replica.scrub(1, 1.0).completed is None:
        pass
    tell("scrubbed", replica.scrubbed().repaired)


def mend(session: Session) -> None:
    """Whatever is damaged."""
    for step in session.replica.check(repair=True):
        for finding in step.findings:
            tell("mended" if finding.repaired else "found", finding.file)


def mark(session: Session) -> None:
    """Name, keep and lock points; let go of one."""
    replica = session.replica
    replica.mark(2, keep=True, name="two", lock_seconds=None)
    tell("kept", 2)
    replica.mark(3, keep=None, name=None, lock_seconds=LOCK)
    tell("locked", 3)
    replica.mark(2, keep=False, name="", lock_seconds=None)
    tell("freed", 2)


def want(session: Session) -> None:
    replica = session.replica
    replica.want(WANTED)
    tell("wanted")
    replica.set_term(TERM)
    tell("term", TERM)


def create(session: Session) -> None:
    """A replica that comes and goes, and comes again."""
    session.store.create(VM, term=1).close()
    tell("created")
    session.close()
    take(session.replica, history()[0])
    session.close()
    session.store.remove(VM)
    tell("removed")


def empty(root: Path) -> None:
    root.mkdir()


@dataclass(frozen=True)
class Work:
    prepare: Callable[[Path], None]
    run: Callable[[Session], None]
    cycles: Callable[[], tuple[Cycle, ...]]  # the truth


def _copied(cycles: Callable[[], tuple[Cycle, ...]]) -> Callable[[Path], None]:
    """All but two of the cycles before the last one have the second copies of what they brought."""

    def prepare(root: Path) -> None:
        filled(root, cycles()[:-3])
        session = Session(root)
        session.replica.maintain(keep=range(MANY))
        for cycle in cycles()[-3:-1]:
            send(session.replica, cycle)
        session.close()

    return prepare


def _some(root: Path) -> None:
    filled(root, history()[:3])


WORKS: Final = {
    "receive": Work(prepare, receive, history),
    "receive-instead": Work(half_received, receive, history),
    "maintain": Work(_copied(history), maintain, history),
    "pack": Work(_copied(packed_history), pack, packed_history),
    "use": Work(packed, use, packed_history),
    "thin": Work(packed, thin, packed_history),
    "repair": Work(damaged, repair, damaged_history),
    "scrub": Work(damaged, scrub, damaged_history),
    "mend": Work(prepare, mend, history),
    "mark": Work(_some, mark, history),
    "want": Work(_some, want, history),
    "create": Work(empty, create, history),
}


def tell(*words: object) -> None:
    print(*words, flush=True)


def look(session: Session, cycles: tuple[Cycle, ...]) -> None:
    """After an error: every point is the source at its instant still."""
    try:
        replica = session.replica
    except ReplicaMissing:
        tell("left", 0)
        return
    except (NoSpace, WriteFailed):
        return  # the fault lasts: it opens once that has ended
    committed = replica.state().committed
    tell("left", committed.number if committed else 0)
    for point in replica.points():
        for disk, content in cycles[point.cycle - 1].content.items():
            with suppress(StoreDamaged):  # damage is what some of it is about
                held = dict(replica.fingerprints(disk, 0, 1 << 30, cycle=point.cycle))
                assert held == fingerprints(content), (point.cycle, disk)


def assert_nothing_stays_open(root: Path) -> None:
    """Every file of the replica was closed, also on the way of an error."""
    held = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # of the listing itself
            held.append(fd.readlink())
    assert [path for path in held if path.is_relative_to(root / VM)] == []


def shorten(number: int) -> None:
    """strace cannot do it: it only lies about how much was written."""
    real, calls = os.pwrite, iter(range(1, sys.maxsize))

    def pwrite(fd: int, data: bytes | memoryview, offset: int) -> int:
        with memoryview(data) as view:
            return real(fd, view[: len(view) // 2] if next(calls) == number else view, offset)

    os.pwrite = pwrite


def main(arguments: list[str]) -> None:
    for argument in arguments:
        if argument.startswith("short="):
            shorten(int(argument.removeprefix("short=")))
    work, session = WORKS[arguments[0]], Session(Path(arguments[1]))
    for _ in range(_TRIES):
        try:
            work.run(session)
        except (NoSpace, WriteFailed, StoreDamaged) as error:
            tell("failed", type(error).__name__, error)
            if "reopen" in arguments:
                session.close()
            look(session, work.cycles())
        else:
            session.close()
            assert_nothing_stays_open(session.root)
            tell("done")
            return
    raise SystemExit("never done")


@contextmanager
def started() -> Iterator[warm_program.Warm]:
    """The program, warm."""
    with warm_program.Warm.started(Path(__file__)) as warm:
        yield warm


if __name__ == "__main__":
    for _work in WORKS.values():
        _work.cycles()
    if sys.argv[1:] == ["serve"]:
        warm_program.serve(main)
    else:
        main(sys.argv[1:])
