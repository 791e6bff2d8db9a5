"""Every hypervisor keeps the contract."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.creation import NewDisk, create_machine
from hyperv_host_agent.hypervisors.memory import MemoryHypervisor
from tests.contracts.hypervisor import HypervisorContract, Rig, new_spec
from tests.fakes.layers import chain
from twinsite.units import MiB


class MemoryRig(Rig):
    def __init__(self) -> None:
        self.hypervisor = self.memory = MemoryHypervisor()

    def add_ordinary(self, name: str) -> str:
        spec = new_spec(name)
        self.memory.add(spec)
        self.memory.stop(spec.id, timeout=0)
        return spec.id

    def layers(self, size: int) -> tuple[Path, ...]:
        return (Path(f"/memory/{size}"),)


class EmbeddedRig(Rig):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hypervisor = self.embedded = EmbeddedHypervisor(folder / "vms", folder / "run")

    def add_ordinary(self, name: str) -> str:
        return create_machine(
            self.embedded, name, [NewDisk("vda", 2 * MiB)], interval_seconds=0.01, load_bytes_per_second=0
        )

    def layers(self, size: int) -> tuple[Path, ...]:
        return chain(Path(tempfile.mkdtemp(dir=self.folder)), [bytes(size)])

    def close(self) -> None:
        for state in self.hypervisor.machines():
            self.hypervisor.stop(state.spec.id, timeout=0)


class TestMemory(HypervisorContract):
    @pytest.fixture
    def rig(self) -> Rig:
        return MemoryRig()


class TestEmbedded(HypervisorContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        rig = EmbeddedRig(tmp_path)
        yield rig
        rig.close()
