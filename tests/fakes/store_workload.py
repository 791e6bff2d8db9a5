"""A receiver that loses its power, its disk or its space: run as a program, with the fault injected from outside.

`store_workload.py receive|maintain|pack|mend ROOT [stay]`. It says on stdout what it has been told is durable. With
`stay` it goes on after an error without opening the replica anew.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyperv_host_agent.store.base import NoSpace, StoreDamaged, WriteFailed
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes.replicated_machine import Cycle, Machine, send
from twinsite.extents import CLUSTER

VM = "vm"
BEFORE = 7  # cycles that are there when the program starts
KEPT = 5  # layers up to it become one
MANY = 18  # cycles that are there when packs are to be made
T = TypeVar("T")


def history(count: int = BEFORE) -> list[Cycle]:
    """`count` cycles and the one that the program receives; the same in every process."""
    machine = Machine(VM, {"a": bytearray(9 * CLUSTER), "b": bytearray(3 * CLUSTER + 512)}, seed=11)
    cycles = []
    for number in range(count + 1):
        machine.write("a", number % 8 * CLUSTER, machine.random.randbytes(900))
        machine.write("b", 2 * CLUSTER, machine.random.randbytes(700))
        machine.resize("b", (3 + number % 2) * CLUSTER + 512)
        cycles.append(machine.cycle())
    return cycles


def prepare(root: Path, count: int = BEFORE) -> None:
    replica = ChainStore(root, reserve=0).create(VM, term=1)
    for cycle in history(count)[:count]:
        send(replica, cycle)
    replica.close()


def tell(*words: object) -> None:
    print(*words, flush=True)


def patiently(call: Callable[[], T]) -> T:
    """Space comes back by itself here."""
    for _ in range(3):
        try:
            return call()
        except NoSpace:
            tell("no-space")
    return call()


def opened(root: Path) -> ChainReplica:
    for _ in range(3):
        try:
            return patiently(lambda: ChainStore(root, reserve=0).open(VM))
        except (StoreDamaged, WriteFailed) as error:
            tell("not-opened", error)
    return ChainStore(root, reserve=0).open(VM)


def receive(replica: ChainReplica, cycle: Cycle) -> None:
    """Take a cycle to its commit from wherever it is."""
    state = replica.state()
    if state.committed and state.committed.number == cycle.header.number:
        return
    durable = state.unfinished.durable if state.unfinished else 0
    patiently(lambda: replica.begin(cycle.header, resume_after=durable))
    for batch, chain in cycle.batches[durable:]:
        patiently(lambda batch=batch, chain=chain: replica.put(batch, chain))  # type: ignore[misc]
        tell("synced", patiently(replica.sync))
    patiently(replica.commit)
    tell("committed", cycle.header.number)


def maintain(replica: ChainReplica, _cycle: Cycle) -> None:
    report = patiently(lambda: replica.maintain(keep=[KEPT]))
    tell("maintained", report.removed, report.merged, report.finished)


def pack(replica: ChainReplica, _cycle: Cycle) -> None:
    """Merge across points that are kept, use points inside the packs, then give up most of them."""
    patiently(lambda: replica.maintain(keep=range(MANY + 1)))
    for cycle in (2, 8):
        patiently(lambda cycle=cycle: replica.attach(cycle, "user"))  # type: ignore[misc]
        tell("attached", cycle)
    patiently(lambda: replica.detach("user"))
    tell("detached")
    report = patiently(lambda: replica.maintain(keep=[KEPT, KEPT + 5]))
    tell("maintained", report.removed, report.merged, report.finished)


def mend(replica: ChainReplica, _cycle: Cycle) -> None:
    for step in patiently(lambda: replica.check(repair=True)):
        for finding in step.findings:
            tell("mended" if finding.repaired else "found", finding.file)


def main() -> None:
    work = {"receive": receive, "maintain": maintain, "pack": pack, "mend": mend}[sys.argv[1]]
    root, stay = Path(sys.argv[2]), "stay" in sys.argv
    cycle = history()[BEFORE]
    replica = opened(root)
    for _ in range(3):
        try:
            work(replica, cycle)
        except WriteFailed as error:
            tell("write-failed", error)
            if not stay:
                replica.close()
                replica = opened(root)
        else:
            replica.close()
            tell("done")
            return
    raise SystemExit("never done")


if __name__ == "__main__":
    main()
