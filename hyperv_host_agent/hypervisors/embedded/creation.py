"""A new VM of the embedded hypervisor, from images or blank disks."""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.durable import descriptor
from hyperv_host_agent.hypervisors.base import MachineSpec, Purpose
from hyperv_host_agent.hypervisors.embedded.hypervisor import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.machine_folder import DiskFile
from hyperv_host_agent.hypervisors.embedded.records import encode_label, label_place, new_labels
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.errors import InvalidInput
from twinsite.extents import CLUSTER
from twinsite.units import GiB, MiB

_SMALLEST: Final = 1 * MiB


class BadDisk(InvalidInput):
    public = "disk {error.name} cannot be used: {error.problem}"
    still_works = "no VM was created"
    next_step = "{error.advice}"

    def __init__(self, name: str, problem: str, advice: str) -> None:
        self.name, self.problem, self.advice = name, problem, advice


@dataclass(frozen=True, slots=True)
class NewDisk:
    """Blank with `size` bytes, or a copy of a raw `image`; the records lie behind the image's end."""

    name: str
    size: int = 0
    image: Path | None = None

    def full_size(self) -> int:
        """Bytes of the disk, records included. Raises BadDisk."""
        if self.image is None:
            if self.size < _SMALLEST:
                raise BadDisk(self.name, f"it has {self.size} bytes", "give it at least 1 MiB")
            return self.size
        try:
            with self.image.open("rb") as file:
                magic = file.read(4)
                length = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise BadDisk(self.name, f"{self.image}: {error.strerror}", "name a raw disk image") from None
        if magic == b"QFI\xfb":
            raise BadDisk(self.name, f"{self.image} is a qcow2 image", f"qemu-img convert -O raw {self.image} disk.raw")
        return -(-length // CLUSTER) * CLUSTER + 1 * MiB


def create_machine(
    hypervisor: EmbeddedHypervisor,
    name: str,
    disks: Sequence[NewDisk],
    *,
    interval_seconds: float,
    load_bytes_per_second: int,
) -> str:
    """The id of the new VM, which does not run yet. Raises BadDisk, MachineExists, MachineFailed."""
    sizes = [disk.full_size() for disk in disks]
    labels = new_labels(
        sizes,
        loadable=[disk.image is None for disk in disks],
        interval_seconds=interval_seconds,
        load_bytes_per_second=load_bytes_per_second,
    )
    files = tuple(
        DiskFile(str(uuid.uuid4()), disk.name, size, f"disk{number}.raw")
        for number, (disk, size) in enumerate(zip(disks, sizes, strict=True))
    )

    def fill(folder: Path) -> None:
        for disk, file, label in zip(disks, files, labels, strict=True):
            with descriptor(folder / file.file, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
                os.ftruncate(target, file.size)
                if disk.image is not None:
                    with descriptor(disk.image, os.O_RDONLY) as source:
                        _copy(source, target)
                os.pwrite(target, encode_label(label), label_place(file.size))
                os.fsync(target)

    spec = MachineSpec(
        id=str(uuid.uuid4()),
        name=name,
        cpus=1,
        memory_bytes=1 * GiB,
        disks=tuple(DiskGeometry(file.id, file.size, file.name) for file in files),
    )
    hypervisor.define_with(spec, files, fill, purpose=Purpose.ORDINARY, autostart=True)
    return spec.id


def _copy(source: int, target: int) -> None:
    """Data only; holes stay holes."""
    end = os.fstat(source).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        stop = os.lseek(source, at, os.SEEK_HOLE)
        while at < stop:
            at += os.copy_file_range(source, target, min(stop - at, 1 * GiB), at, at)
