"""Two host agents with a VM that is protected offline, and a medium between them."""

import contextlib
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperv_host_agent.changes.memory import MemoryChangeSource
from hyperv_host_agent.hypervisors.base import MachineSpec
from hyperv_host_agent.seeds.parts import HEADER_BYTES, RECORD_BYTES
from hyperv_host_agent.seeds.paths import Media
from tests.fakes.agent_pair import FIRST, SIZE, Pair, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.surroundings import FakeSurroundings
from twinsite.api.types.v1 import commands_pb2

PART_BYTES = HEADER_BYTES + RECORD_BYTES  # every record a part of its own


@dataclass
class Seeded:
    two: Pair
    machine: MachineSpec
    guest: MemoryChangeSource
    medium: Path
    around: FakeSurroundings
    orders: int = 0

    @property
    def folder(self) -> Path:
        """Of the one seed on the medium."""
        (found,) = self.medium.glob("twinsite-seed-*")
        return found

    def parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*"))

    async def awaited(self) -> None:
        """Until the target waits for its seed and a cycle of changes is on top of the placeholder."""

        def ready() -> bool:
            status = self.two.at_target.statuses.get(self.machine.id)
            return bool(status and status.awaiting_seed and status.committed_cycle > 1)

        await eventually("the seed to be awaited", ready)

    async def export(self, path: Path | None = None, **changes: Any) -> commands_pb2.CommandResult:
        self.send_export(path, **changes)
        return await self.two.provider.result(self.two.source.host_id, f"export-{self.orders}@1")

    def send_export(self, path: Path | None = None, **changes: Any) -> None:
        """Order number `orders`; nothing is waited for."""
        self.orders += 1
        order = {
            "vm_id": self.machine.id,
            "path": str(path or self.medium),
            "target_certificate": self.two.provider.chains[self.two.target.host_id],
            "hypervisor_addresses": ["192.0.2.1"],
        }
        self.two.provider.send(
            self.two.source.host_id, f"export-{self.orders}@1", seed_export=commands_pb2.SeedExport(**order | changes)
        )

    async def import_(self, path: Path | None = None) -> commands_pb2.CommandResult:
        self.orders += 1
        return await self.two.provider.order(
            self.two.target.host_id,
            f"import-{self.orders}@1",
            seed_import=commands_pb2.SeedImport(vm_id=self.machine.id, path=str(path or self.medium)),
        )

    async def check_export(self, path: Path | None = None) -> commands_pb2.CommandResult:
        """What a dry run of the export asks."""
        self.orders += 1
        order = commands_pb2.SeedExport(
            vm_id=self.machine.id,
            path=str(path or self.medium),
            target_certificate=self.two.provider.chains[self.two.target.host_id],
        )
        host, command = self.two.source.host_id, f"check-export-{self.orders}@1"
        return await self.two.provider.order(host, command, check_seed_export=order)

    async def check_import(self, path: Path | None = None) -> commands_pb2.CommandResult:
        self.orders += 1
        order = commands_pb2.SeedImport(vm_id=self.machine.id, path=str(path or self.medium))
        host, command = self.two.target.host_id, f"check-import-{self.orders}@1"
        return await self.two.provider.order(host, command, check_seed_import=order)

    def carry(self, name: str) -> Path:
        """A copy of the medium."""
        copy = self.medium.with_name(name)
        shutil.copytree(self.medium, copy)
        self.around.media = (*self.around.media, copy)
        return copy


@contextlib.asynccontextmanager
async def seeded_pair(
    folder: Path,
    *,
    part_bytes: int = PART_BYTES,
    protect: bool = True,
    size: int = SIZE,
    noise: bool = False,
    **options: Any,
) -> AsyncIterator[Seeded]:
    medium = folder / "medium"
    medium.mkdir()
    around = FakeSurroundings((medium,))
    async with pair(folder, media=Media(around, part_bytes), **options) as two:
        machine = spec(size=size)
        data = contents(size)
        if noise:
            data[FIRST] = random.Random(1).randbytes(size)
        guest = two.add(machine, data)
        seeded = Seeded(two, machine, guest, medium, around)
        if protect:
            await two.protect(machine, offline=True)
            await seeded.awaited()
        yield seeded
