"""Real guests, real agents: what tracking lost is compared and not copied, and disks change while they replicate."""

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperv_host_agent.hypervisors.embedded.creation import NewDisk, create_machine
from hyperv_host_agent.hypervisors.embedded.geometry import DiskChange
from tests.fakes.agent_pair import Pair, pair
from tests.fakes.guests import Guests, guests
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.wire_tap import WireTap, wire_tap
from twinsite.extents import CLUSTER
from twinsite.units import MiB

SIZE = 24 * MiB
FEW = 2 * MiB  # bytes on the wire: cycles, a few clusters, TLS and all; a copy would be SIZE and more


@dataclass
class Scene:
    site: Guests
    vm_id: str
    other: str  # a VM that is not protected, with disks of the same sizes
    two: Pair
    tap: WireTap
    backup: Path

    def path(self, number: int = 0, vm_id: str = "") -> Path:
        vm_id = vm_id or self.vm_id
        disk = self.site.hypervisor.machine(vm_id).spec.disks[number]
        return self.site.hypervisor.disk_path(vm_id, disk.id)

    @property
    def tracking(self) -> Path:
        return self.site.folder(self.vm_id) / "tracking"

    @property
    def state(self) -> Path:
        """What the source's agent keeps of the VM."""
        return next((self.backup.parent / "a1" / "state").rglob("sender.json")).parent

    def stop(self) -> None:
        self.site.hypervisor.stop(self.vm_id, timeout=20)

    async def equal(self) -> None:
        """The VM, which stops, and its newest point hold the same."""
        self.stop()
        await self.two.settled(self.vm_id)
        _, found = await newest(self.two.target, self.vm_id)
        spec = self.site.hypervisor.machine(self.vm_id).spec
        assert {disk: len(content) for disk, content in found.items()} == {disk.id: disk.size for disk in spec.disks}
        for disk in spec.disks:
            assert found[disk.id] == self.site.hypervisor.disk_path(self.vm_id, disk.id).read_bytes(), disk.name


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    with guests(tmp_path / "site") as site:
        async with contextlib.AsyncExitStack() as stack:
            disks = [NewDisk("vda", image=image), NewDisk("vdb", 4 * MiB)]
            vm_id, other = (
                create_machine(site.hypervisor, name, disks, interval_seconds=0.02, load_bytes_per_second=0)
                for name in ("web01", "db01")
            )
            site.hypervisor.start(vm_id)
            two = await stack.enter_async_context(pair(tmp_path, embedded=site.hypervisor))
            tap = await stack.enter_async_context(wire_tap(two.target.address))
            await two.protect(site.hypervisor.machine(vm_id).spec, address=tap.address)
            await two.settled(vm_id)
            yield Scene(site, vm_id, other, two, tap, tmp_path / "backup")


def edit(path: Path, cluster: int = 100) -> None:
    with path.open("r+b") as file:
        file.seek(cluster * CLUSTER)
        file.write(os.urandom(CLUSTER))


# While the source's agent is away.


def guest_killed(scene: Scene) -> None:
    scene.site.writes_more(scene.vm_id)
    scene.site.kill(scene.vm_id)


def host_crashed(scene: Scene) -> None:
    scene.site.kill(scene.vm_id)
    edit(scene.path())
    with (scene.tracking / "state").open("r+b") as file:
        file.seek(8)
        file.write(os.urandom(16))  # another boot


def image_edited(scene: Scene) -> None:
    scene.stop()
    edit(scene.path())


def image_replaced(scene: Scene) -> None:
    scene.stop()
    copy = scene.backup.with_suffix(".raw")
    shutil.copy2(scene.path(), copy)
    edit(copy)
    copy.rename(scene.path())


def image_swapped_with_another_vm(scene: Scene) -> None:
    scene.stop()
    between = scene.backup.with_suffix(".raw")
    mine, its = scene.path(), scene.path(vm_id=scene.other)
    shutil.copyfile(mine, between)
    edit(between)
    shutil.copyfile(between, its)
    mine.rename(between)
    its.rename(mine)
    between.rename(its)


def tracking_gone(scene: Scene) -> None:
    scene.stop()
    shutil.rmtree(scene.tracking)
    edit(scene.path())


def tracking_gone_under_the_running_guest(scene: Scene) -> None:
    shutil.rmtree(scene.tracking)
    scene.site.writes_more(scene.vm_id)


def tracking_unreadable(scene: Scene) -> None:
    scene.stop()
    (scene.tracking / "state").unlink()
    (scene.tracking / "state").mkdir()


def tracking_older(scene: Scene) -> None:
    """It was put back from a copy of before."""
    scene.stop()
    shutil.copytree(scene.tracking, scene.backup)
    scene.site.hypervisor.start(scene.vm_id)
    scene.site.writes_more(scene.vm_id)
    scene.stop()
    shutil.rmtree(scene.tracking)
    shutil.copytree(scene.backup, scene.tracking)


def agent_state_gone(scene: Scene) -> None:
    shutil.rmtree(scene.state)


WAYS = [
    guest_killed,
    host_crashed,
    image_edited,
    image_replaced,
    image_swapped_with_another_vm,
    tracking_gone,
    tracking_gone_under_the_running_guest,
    tracking_unreadable,
    tracking_older,
    agent_state_gone,
]


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_doubtful_is_read_and_only_what_differs_travels(
    scene: Scene, way: Callable[[Scene], None]
) -> None:
    points = len(scene.two.at_target.points[scene.vm_id])
    before = scene.tap.sent
    await scene.two.restart_source(meanwhile=lambda: way(scene))
    scene.site.hypervisor.start(scene.vm_id)
    await scene.two.settled(scene.vm_id)
    assert len(scene.two.at_target.points[scene.vm_id]) >= points
    await scene.equal()
    assert scene.tap.sent - before < FEW


async def test_an_agent_state_of_before_costs_a_comparison(scene: Scene) -> None:
    await scene.two.restart_source(meanwhile=lambda: shutil.copytree(scene.state, scene.backup))
    await scene.two.settled(scene.vm_id)
    before = scene.tap.sent

    def put_back() -> None:
        folder = scene.state
        shutil.rmtree(folder)
        shutil.copytree(scene.backup, folder)

    await scene.two.restart_source(meanwhile=put_back)
    await scene.two.settled(scene.vm_id)
    await scene.equal()
    assert scene.tap.sent - before < FEW


async def test_disks_grow_shrink_come_and_go_without_a_copy(scene: Scene) -> None:
    hypervisor, vm_id, two = scene.site.hypervisor, scene.vm_id, scene.two
    vda, vdb = (disk.id for disk in hypervisor.machine(vm_id).spec.disks)
    vdc = str(uuid.uuid4())
    before = scene.tap.sent
    for change in (
        DiskChange("resize", vda, 2 * SIZE),
        DiskChange("resize", vdb, 3 * MiB + 512),
        DiskChange("add", vdc, 2 * MiB, "vdc"),
        DiskChange("resize", vdb, 64 * MiB),
        DiskChange("remove", vdc),
    ):
        hypervisor.change_disks(vm_id, change)
        scene.site.writes_more(vm_id)
        renewed = two.grant(two.describe(vm_id))  # as the coordinator does when the inventory says so
        for host, view in ((two.target.host_id, two.at_target), (two.source.host_id, two.at_source)):
            assert view.assigned is not None
            held = view.assigned.assignments[0]
            held.grant.CopyFrom(renewed)
            two.provider.assign(host, held)
        await two.settled(vm_id)
        _, found = await newest(two.target, vm_id)
        sizes = {disk: len(content) for disk, content in found.items()}
        assert sizes == {disk.id: disk.size for disk in hypervisor.machine(vm_id).spec.disks}
    await scene.equal()
    assert scene.tap.sent - before < FEW
    assert await eventually("it to be well", lambda: not two.at_source.statuses[vm_id].reason.message)
