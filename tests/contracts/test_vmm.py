"""What every adapter of the Vmm port promises."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from provider_agent.vmm.base import Cloud, Fabric, HostGroup, Network, StorageClassification, Vmm
from provider_agent.vmm.fabric_file import FabricFile
from provider_agent.vmm.memory import MemoryVmm
from twinsite.settings import SettingsError

SMALL = Fabric(clouds=(Cloud(name="gold"),))
LARGE = Fabric(
    clouds=(
        Cloud(
            name="gold",
            host_groups=(HostGroup(name="rack", hosts=("hv1", "hv2")),),
            networks=("prod",),
            storage_classifications=("fast",),
        ),
        Cloud(name="silver"),
    ),
    networks=(Network(name="prod", logical_network="dc", subnets=("10.0.0.0/24", "fd00::/64")),),
    storage_classifications=(StorageClassification(name="fast", description="mirrored"),),
)


@dataclass
class Managed:
    """An adapter, and what happens behind it."""

    vmm: Vmm
    put: Callable[[Fabric], None]
    break_it: Callable[[], None]


def as_toml(fabric: Fabric) -> str:
    lines: list[str] = []
    for cloud in fabric.clouds:
        lines += ["[[clouds]]", f'name = "{cloud.name}"', f"networks = {list(cloud.networks)}"]
        lines.append(f"storage_classifications = {list(cloud.storage_classifications)}")
        for group in cloud.host_groups:
            lines += ["[[clouds.host_groups]]", f'name = "{group.name}"', f"hosts = {list(group.hosts)}"]
    for network in fabric.networks:
        lines += ["[[networks]]", f'name = "{network.name}"', f'logical_network = "{network.logical_network}"']
        lines.append(f"subnets = {list(network.subnets)}")
    for one in fabric.storage_classifications:
        lines += ["[[storage_classifications]]", f'name = "{one.name}"', f'description = "{one.description}"']
    return "\n".join(lines)


def in_memory(_: Path) -> Managed:
    vmm = MemoryVmm(SMALL)
    return Managed(vmm, vmm.put, lambda: vmm.fail(SettingsError("memory", "broken", "mend it")))


def in_a_file(folder: Path) -> Managed:
    path = folder / "fabric.toml"
    path.write_text(as_toml(SMALL))

    def break_it() -> None:
        path.write_text("[[clouds]\n")

    return Managed(
        FabricFile(path, folder / "kept.toml"), lambda fabric: path.write_text(as_toml(fabric)) and None, break_it
    )


@pytest.fixture(params=[in_memory, in_a_file])
def managed(request: pytest.FixtureRequest, tmp_path: Path) -> Managed:
    return request.param(tmp_path)


async def test_what_is_there_is_read(managed: Managed):
    assert (await managed.vmm.read()).fabric == SMALL
    assert (await managed.vmm.read()).problem is None


async def test_a_change_is_seen_at_the_next_reading(managed: Managed):
    await managed.vmm.read()
    managed.put(LARGE)
    assert (await managed.vmm.read()).fabric == LARGE


async def test_what_did_not_change_is_the_same_object(managed: Managed):
    assert await managed.vmm.read() is await managed.vmm.read()


async def test_what_cannot_be_used_leaves_the_last_good_in_force_and_is_said(managed: Managed):
    managed.put(LARGE)
    await managed.vmm.read()
    managed.break_it()
    reading = await managed.vmm.read()
    assert reading.fabric == LARGE
    assert reading.problem is not None
    assert reading.problem.text("next_step")


async def test_it_is_mended_by_the_next_good_content(managed: Managed):
    await managed.vmm.read()
    managed.break_it()
    await managed.vmm.read()
    managed.put(LARGE)
    reading = await managed.vmm.read()
    assert (reading.fabric, reading.problem) == (LARGE, None)
