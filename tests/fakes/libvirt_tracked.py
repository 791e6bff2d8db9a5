"""A domain without a guest system whose changes are tracked; the test writes to its disks in the guest's place."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import run
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.describe import describe, disk_id
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.tracking.job import Job
from hyperv_host_agent.hypervisors.libvirt.tracking.places import Places, VmPlaces
from hyperv_host_agent.hypervisors.libvirt.tracking.point import LibvirtPoint
from hyperv_host_agent.hypervisors.libvirt.tracking.source import LibvirtChangeSource, _Held
from tests.fakes.libvirt_host import IdleGuest
from twinsite.extents import CLUSTER, Run, clusters


class NoGuard:
    """Of a freeze nobody tests here."""

    def frozen(self) -> None:
        pass

    def disarm(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class NarrowPlaces(Places):
    """Whose scratch folder has as much room as the test says."""

    room: list[int] = field(default_factory=lambda: [1 << 40])  # bytes

    def of(self, vm_id: str) -> VmPlaces:
        return NarrowVmPlaces(self, Places.of(self, vm_id).name)


@dataclass(frozen=True, slots=True)
class NarrowVmPlaces(VmPlaces):
    def free(self) -> int:
        assert isinstance(self.all, NarrowPlaces)
        return self.all.room[0]


class TrackedDomain:
    def __init__(
        self,
        host: LibvirtHost,
        name: str = "web01",
        *,
        disks: Mapping[str, int] | None = None,
        disk_format: str = "qcow2",
        options: Sequence[str] = (),
        extra: str = "",
        guest: IdleGuest | None = None,
    ) -> None:
        """`guest`: one that is there already."""
        self.host = host
        self.guest = guest or IdleGuest.define(
            host, name, disks=disks, disk_format=disk_format, options=options, extra=extra
        )
        self.connection = Connection(host.uri)
        self.places = NarrowPlaces(host.root / "state", host.root / "sock", host.root / "scratch")
        self.source = self.new_source()

    def domain(self) -> Domain:
        return self.connection.domain(self.guest.uuid)

    def new_source(self, wait_seconds: float = 2.0) -> LibvirtChangeSource:
        return LibvirtChangeSource(
            self.guest.uuid,
            self.domain,
            self.places,
            machine=self.guest.uuid.encode,
            guard=lambda _: NoGuard(),
            wait_seconds=wait_seconds,
        )

    def id(self, target: str) -> str:
        return disk_id(self.guest.uuid, target)

    def targets(self) -> dict[str, str]:
        return {disk.id: disk.target for disk in describe(self.domain().xml()).replicated()}

    def content(self, target: str) -> bytes:
        """What a guest would read now: from a second export of the running QEMU, or from the image."""
        if not self.domain().is_active():
            raw = self.host.root / f"content-{target}"
            try:
                run("qemu-img", "convert", "-O", "raw", str(self.guest.disks[target]), str(raw))
                return raw.read_bytes()
            finally:
                raw.unlink(missing_ok=True)
        paused = self.host.state(self.guest.name) == "paused"
        if not paused:
            self.domain().suspend()
        try:
            return self.guest.content(target)
        finally:
            if not paused:
                self.domain().resume()

    def begin(self, cycle: int = 1) -> dict[str, bytearray]:
        """A replica of everything as of a first cycle that arrived."""
        self.source.start()
        replica: dict[str, bytearray] = {}
        self.cycle(cycle, replica)
        return replica

    def cycle(self, number: int, replica: dict[str, bytearray], *, consistency: str = "crash") -> set[str]:
        """One cycle into the replica, by disk id. What the point does not name is not read. The disks it named all."""
        identifier = os.urandom(16)
        whole = set()
        point = self.source.open_point(number, identifier, consistency=consistency)
        with contextlib.closing(point):
            for gone in set(replica) - {disk.id for disk in point.disks}:
                del replica[gone]
            for disk in point.disks:
                held = replica.setdefault(disk.id, bytearray())
                if len(held) > disk.size:
                    del held[disk.size :]
                held.extend(bytes(disk.size - len(held)))
                holes = {at for run in point.holes(disk.id) for at in range(run.start, run.end)}
                dirty = [at for run in point.dirty(disk.id) for at in range(run.start, run.end)]
                if len(dirty) == clusters(disk.size):
                    whole.add(disk.id)
                for at in dirty:
                    content = point.read(disk.id, Run(at, 1))
                    if at in holes:
                        assert not any(content)
                    held[at * CLUSTER : at * CLUSTER + len(content)] = content
        self.source.ack(number, identifier)
        return whole

    def same(self, replica: Mapping[str, bytearray]) -> bool:
        return {disk: bytes(content) for disk, content in replica.items()} == {
            disk: self.content(target) for disk, target in self.targets().items()
        }

    def leftovers(self) -> list[str]:
        """Of points: jobs, sockets, scratch files, servers; and of checkpoints and bitmaps more than the anchor's."""
        domain = self.domain()
        found = [f"job {domain.job()}"] if domain.is_active() and domain.job() else []
        for folder in (self.places.run, self.places.scratch):
            found += [str(path) for path in folder.glob("*")]
        names = [name for name in domain.checkpoints() if name.startswith("twinsite-")]
        found += names[1:]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes()
                if b"qemu-nbd" in line and str(self.places.run).encode() in line:
                    found.append(f"process {process.name}")
        return found

    def close(self) -> None:
        self.source.rest()
        self.connection.close()


def abandon(point: LibvirtPoint) -> None:
    """As a kill of the agent leaves it: the kernel closes its sockets and frees its lock, the job goes on."""
    session = point.session
    session._open, point.closed = False, True
    for connections in session._disks.values():
        connections.close()
    held = session._served
    assert isinstance(held, _Held)
    if isinstance(held._served, Job):
        held._served._over.set()
    held._held.close()
