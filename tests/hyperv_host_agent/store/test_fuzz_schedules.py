"""Writes, cycles, merges, resizes, retention and kill -9 in any order: QEMU and a reader of our own agree with every
point that is kept.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from hyperv_host_agent.replication.cycle import Kind
from tests.contracts.replica_store import VM
from tests.fakes.chain_rig import ChainRig
from tests.fakes.qcow2_reader import read_disk
from tests.fakes.replicated_machine import Cycle
from tests.fakes.store_workload import take
from tests.hyperv_host_agent.store.test_packs import Schedule, qemu_img

CALLS: Final = ("pwrite", "fsync", "fdatasync", "rename", "unlink", "ftruncate")
STEPS: Final = 130


def killed(work: Callable[[], None], at: int) -> bool:
    """Do the work in a process of its own that ends at its n-th call that changes a file; whether it did."""
    pid = os.fork()
    if not pid:
        numbers = count(1)

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(numbers) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, -signal.SIGKILL}
    return code != 0


class Crashing(Schedule):
    """A schedule in which every few steps one is cut short."""

    kills = 0

    def step(self) -> None:
        if self.cycles and not self.dice.randrange(4):
            self.replica.close()
            at = self.dice.randrange(1, self.dice.choice((8, 30, 90)))
            crash = self.dice.choice((self.crash_in_cycle, self.crash_in_maintenance, self.crash_in_use))
            crash(at)
        else:
            super().step()

    def crash_in_cycle(self, at: int) -> None:
        if self.dice.randrange(3):
            self.machine.scribble()
        else:
            self.machine.scribble_and_resize()
        cycle = self.machine.cycle(Kind.DELTA)
        self.kills += killed(lambda: take(self.rig.store.open(VM), cycle), at)
        self.opened()
        self.came(cycle)

    def crash_in_maintenance(self, at: int) -> None:
        keep = [cycle for cycle in self.cycles if self.dice.random() < self.dice.choice((0.6, 0.95))]
        self.kills += killed(lambda: self.rig.store.open(VM).maintain(keep=keep), at)
        self.opened()
        left = {point.cycle for point in self.replica.points()}
        assert left <= self.cycles.keys()
        assert left >= {*keep, max(self.cycles)} | {cycle for cycle, _ in self.attached.values()}
        self.cycles = {cycle: self.cycles[cycle] for cycle in self.cycles if cycle in left}

    def crash_in_use(self, at: int) -> None:
        cycle = self.dice.choice(list(self.cycles))

        def use() -> None:
            replica = self.rig.store.open(VM)
            replica.attach(cycle, "crashed")
            replica.detach("crashed")

        self.kills += killed(use, at)
        self.opened()
        self.replica.detach("crashed")

    def opened(self) -> None:
        self.rig.power_loss()
        self.replica = self.rig.store.open(VM)

    def came(self, cycle: Cycle) -> None:
        """The source sends what was not committed."""
        take(self.replica, cycle)
        self.cycles[cycle.header.number] = cycle
        assert [point.cycle for point in self.replica.points()] == list(self.cycles)


def schedule_of(root: Path, seed: int) -> Crashing:
    schedule = Crashing(ChainRig(root), seed)
    for _ in range(STEPS):
        schedule.step()
    schedule.settle()
    assert schedule.kills > 8
    return schedule


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(301, 305))
def test_every_point_is_what_it_was_however_often_the_agent_is_killed(quick_path: Path, seed: int):
    schedule = schedule_of(quick_path / "store", seed)
    for cycle, brought in schedule.cycles.items():
        for disk in schedule.replica.attach(cycle, "reader"):
            assert read_disk(disk.layers[-1]) == brought.content[disk.id], (cycle, disk.id)
        schedule.replica.detach("reader")
    assert list(schedule.replica.verify()) == []


@pytest.mark.qemu
@pytest.mark.timeout(300)
def test_qemu_agrees_about_every_point_however_often_the_agent_is_killed(quick_path: Path):
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is missing: apt-get install qemu-utils")
    schedule = schedule_of(quick_path / "store", 300)
    truth, checked = quick_path / "truth.raw", set[Path]()
    for cycle, brought in schedule.cycles.items():
        for disk in schedule.replica.attach(cycle, "qemu"):
            for layer in {*disk.layers} - checked:
                found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", layer))
                assert not any(found.get(problem) for problem in ("leaks", "corruptions", "check-errors"))
                checked.add(layer)
            truth.write_bytes(brought.content[disk.id])
            qemu_img("compare", "-f", "raw", "-F", "qcow2", truth, disk.layers[-1])
        schedule.replica.detach("qemu")
