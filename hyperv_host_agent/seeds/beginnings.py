"""A replica that begins with images at the target: they become its cycle 1, which the source then compares with."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent import blocking
from hyperv_host_agent.commands import Call
from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.replicas import Held
from hyperv_host_agent.replication.cycle import ID_BYTES, Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.seeds import images
from hyperv_host_agent.seeds.images import SCRATCH, Image
from hyperv_host_agent.store.base import Replica
from twinsite import units
from twinsite.clock import Clock
from twinsite.digest import CHAIN_START
from twinsite.errors import InvalidInput
from twinsite.extents import CLUSTER, Run, clusters

_LEVEL: Final = 1  # of zstd


class NoSuchDisk(InvalidInput):
    public = "the VM has no disk {error.disk}"
    still_works = "nothing was changed"
    next_step = "name the VM's disks as twinsite vm show does"

    def __init__(self, disk: str) -> None:
        self.disk = disk[:80]


@dataclass(frozen=True, slots=True)
class Beginnings:
    """`scratch` is where an image is converted to, on the file system of the replica store."""

    scratch: Path
    clock: Clock

    def tidy(self) -> None:
        """Remove what a conversion left that was killed. Blocking."""
        if self.scratch.is_dir():
            for path in self.scratch.glob(f"{SCRATCH}*"):
                shutil.rmtree(path, ignore_errors=True)

    async def begin(
        self, call: Call, held: Held, disks: tuple[DiskGeometry, ...], machine: bytes, existing: Mapping[str, str]
    ) -> str:
        """Read the images into an empty replica; what was read, as a sentence. Repeatable.

        Raises NoSuchDisk, and what opening and reading images and the store raise; then the replica is as it was.
        """
        for disk in existing:
            if disk not in {geometry.id for geometry in disks}:
                raise NoSuchDisk(disk)
        state = await held.run(held.replica.state)
        if state.committed is not None:
            return "the replica holds a point already: the source compares with that"
        opened: dict[str, Image] = {}
        await blocking.finish(self.scratch.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix=SCRATCH) as folder:
            try:
                for disk, name in existing.items():
                    path = Path(name)
                    found = await blocking.finish(images.look, path)
                    opened[disk] = found or await images.converted(path, Path(folder) / f"{disk}.raw")
                header = CycleHeader(
                    vm_id=held.vm_id,
                    id=os.urandom(ID_BYTES),
                    number=1,
                    parent=0,
                    term=state.term,
                    kind=Kind.INITIAL,
                    instant=self.clock.now(),
                    consistency="none",
                    disks=disks,
                    machine=machine,
                )
                return await self._read_in(call, held, header, opened)
            finally:
                for image in opened.values():
                    await blocking.finish(image.close)

    async def _read_in(self, call: Call, held: Held, header: CycleHeader, opened: Mapping[str, Image]) -> str:
        replica, packer = held.replica, Packer()
        packer.level = _LEVEL
        await held.run(replica.begin, header, resume_after=0)
        total = sum(min(opened[disk.id].size, disk.size) for disk in header.disks if disk.id in opened)
        before = sequence = 0
        told = -1
        try:
            for place, disk in enumerate(header.disks):
                image = opened.get(disk.id)
                held_runs = iter(image.held()) if image else iter(())
                while image and (run := await blocking.finish(next, held_runs, None)) is not None:
                    batch = await blocking.finish(_batch, image, place, disk, run, sequence + 1, packer)
                    if batch is not None:
                        sequence += 1
                        await held.run(replica.put, batch, CHAIN_START)
                    percent = (before + min(run.end * CLUSTER, disk.size)) * 100 // max(1, total)
                    if percent != told:
                        told = percent
                        call.progress(min(99, percent), f"{disk.name or disk.id}: its image is read in")
                before += min(image.size, disk.size) if image else 0
            await held.run(_finish, replica)
        finally:
            # Nothing to drop once it is committed.
            await held.run(replica.abandon)
        return f"{units.size(total)} of images were read in; only what differs travels"


def _finish(replica: Replica) -> None:
    replica.sync()
    replica.commit()


def _batch(image: Image, place: int, disk: DiskGeometry, run: Run, sequence: int, packer: Packer) -> Batch | None:
    """A run of an image as a batch, cut to the disk; None: nothing of it is data."""
    run = Run(run.start, min(run.end, clusters(disk.size)) - run.start)
    if run.count <= 0:
        return None
    packed = Packed(place)
    content = image.read(run)[: disk.size - run.start * CLUSTER]
    if len(content) < run.count * CLUSTER:  # the image ends inside the disk, or the disk in its last cluster
        content = content.ljust(min(run.count * CLUSTER, disk.size - run.start * CLUSTER), b"\0")
    packer.pack(packed, run, content, None)
    if not packed.clusters:
        return None
    return Batch(
        sequence=sequence,
        disk=place,
        clusters=packed.clusters,
        lengths=packed.lengths,
        fingerprints=bytes(packed.fingerprints),
        zero_runs=(),
        payload=b"".join(packed.parts),
    )
