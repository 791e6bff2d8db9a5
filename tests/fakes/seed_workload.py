"""A target that reads its seed in and loses its power, its disk or its space: run as a program.

`seed_workload.py import ROOT`. It says on stdout what it has been told is durable.
"""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hyperv_host_agent.replication.cycle import Batch, Wanted
from hyperv_host_agent.store.base import NoSpace, StoreDamaged, WriteFailed
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import warm_program
from tests.fakes.replicated_machine import Cycle, Machine, send
from tests.fakes.seeded_machine import placeholder, seed
from twinsite.extents import CLUSTER, Run

VM = "vm"
BEFORE = 4  # cycles that are there when the program starts; the export ended with the second
AFTER = 2
LACKING = (Wanted("b", Run(3, 1)),)  # of the seed; the last cycle brings it
T = TypeVar("T")


@cache
def history() -> tuple[list[Cycle], list[Batch]]:
    """BEFORE cycles and one more, and the seed; the same in every process."""
    machine = Machine(VM, {"a": bytearray(9 * CLUSTER), "b": bytearray(5 * CLUSTER + 512)}, seed=23)
    machine.write("a", 0, machine.random.randbytes(8 * CLUSTER))
    machine.write("b", 0, machine.random.randbytes(5 * CLUSTER))
    cycles, content = [placeholder(machine)], {}
    for number in range(1, BEFORE + 1):
        machine.write("a", number * CLUSTER, machine.random.randbytes(900))
        machine.write("b", (number % 3) * CLUSTER, machine.random.randbytes(700))
        if number == BEFORE:
            machine.dirty["b"].add(3)
        cycles.append(machine.cycle())
        if number == AFTER - 1:
            content = {disk: bytes(data) for disk, data in machine.disks.items()}
    content["b"] = content["b"][: 3 * CLUSTER] + bytes(CLUSTER) + content["b"][4 * CLUSTER :]
    return cycles, seed(content, cycles[0].header.disks)


def prepare(root: Path) -> None:
    replica = ChainStore(root, reserve=0).create(VM, term=1)
    for cycle in history()[0][:BEFORE]:
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


def read_in(replica: ChainReplica, batches: list[Batch]) -> None:
    """From the beginning, unless it is done."""
    awaited = replica.awaited()
    if awaited is None:
        return
    patiently(lambda: replica.seed_begin(awaited.id))
    for batch in batches:
        patiently(lambda batch=batch: replica.seed_put(batch))  # type: ignore[misc]
    patiently(lambda: replica.seed_commit(after_cycle=AFTER, lacking=LACKING))
    tell("imported")


def main(arguments: list[str]) -> None:
    root, (_, batches) = Path(arguments[1]), history()
    for _ in range(4):
        replica = opened(root)
        try:
            read_in(replica, batches)
        except WriteFailed as error:
            tell("write-failed", error)
            replica.close()
        else:
            replica.close()
            tell("done")
            return
    raise SystemExit("never done")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        history()
        warm_program.serve(main)
    else:
        main(sys.argv[1:])
