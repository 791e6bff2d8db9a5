"""Every change source keeps the contract."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.changes.memory import MemoryChangeSource
from hyperv_host_agent.replication.cycle import DiskGeometry
from tests.contracts.change_source import DISKS, A, ChangeSourceContract, Rig
from tests.fakes.tracked_machine import TrackedMachine


class MemoryRig(Rig):
    def __init__(self) -> None:
        self.source = self.memory = MemoryChangeSource("vm", DISKS)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        self.memory.write(disk, offset, data)

    def content(self, disk: str) -> bytes:
        return self.memory.content(disk)

    def reshape(self, *disks: DiskGeometry) -> None:
        before = {disk.id: disk for disk in self.memory.disks()}
        for disk in disks:
            if disk.id not in before:
                self.memory.add_disk(disk)
            elif before[disk.id] != disk:
                self.memory.resize(disk.id, disk.size)
        for gone in set(before) - {disk.id for disk in disks}:
            self.memory.remove_disk(gone)

    def lose_tracking(self) -> None:
        self.memory.lose_tracking()

    def restart_agent(self) -> None:
        self.memory.restart()


class TrackedRig(Rig):
    def __init__(self, folder: Path, *, running: bool) -> None:
        self.machine = TrackedMachine(folder, DISKS)
        self.running = running
        if running:
            self.machine.start()
        self.source = self.machine.source

    def write(self, disk: str, offset: int, data: bytes) -> None:
        self.machine.write(disk, offset, data)

    def content(self, disk: str) -> bytes:
        return self.machine.content(disk)

    def reshape(self, *disks: DiskGeometry) -> None:
        self.machine.reshape(*disks)

    def lose_tracking(self) -> None:
        self.machine.stop()
        self.machine.edit_behind_its_back(A.id)
        if self.running:
            self.machine.start()

    def restart_agent(self) -> None:
        self.machine.abandon_points()
        self.source = self.machine.source = self.machine.new_source()


class TestMemory(ChangeSourceContract):
    @pytest.fixture
    def rig(self) -> Rig:
        return MemoryRig()


class TestTrackedFile(ChangeSourceContract):
    @pytest.fixture(params=["running", "stopped"])
    def rig(self, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
        rig = TrackedRig(tmp_path, running=request.param == "running")
        yield rig
        rig.machine.close()
