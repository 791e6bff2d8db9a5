"""What the coordinator is told of a site."""

import pytest

from tests.fakes.coordinator import FakeCoordinator
from tests.provider_agent.conftest import FABRIC, Lab, Until
from twinsite.api.coordinator.v1 import link_pb2


async def test_the_fabric_is_told_whole(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.inventory)
    told = coordinator.inventory
    assert [cloud.name for cloud in told.clouds] == ["gold", "silver"]
    assert list(told.clouds[0].host_groups[0].hosts) == ["hv1", "hv2"]
    assert [(one.name, one.logical_network, list(one.subnets)) for one in told.networks] == [
        ("prod", "dc", ["10.0.0.0/24"]),
        ("dev", "", []),
    ]
    assert [one.name for one in told.storage_classifications] == ["fast"]


@pytest.mark.parametrize(
    ("selection", "clouds", "networks"),
    [("all", ["gold", "silver"], ["prod", "dev"]), ("none", [], []), ("silver", ["silver"], ["dev"])],
)
async def test_only_chosen_clouds_are_synchronized_and_hosts_always(
    lab: Lab, coordinator: FakeCoordinator, until: Until, selection: str, clouds: list[str], networks: list[str]
):
    await lab.register(selection=selection)
    async with lab.serving():
        await until(lambda: coordinator.links)
        await lab.invite("hv1").join()
        await until(lambda: coordinator.inventory)
        assert [cloud.name for cloud in coordinator.inventory.clouds] == clouds
        assert [one.name for one in coordinator.inventory.networks] == networks
    async with lab.serving():
        await until(lambda: coordinator.host("hv1"))


async def test_a_cloud_chosen_at_the_coordinator_is_synchronized_too(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    coordinator.synced_clouds = ["silver"]
    await lab.register(selection="none")
    async with lab.serving():
        await until(lambda: coordinator.inventory and coordinator.inventory.clouds)
        assert [cloud.name for cloud in coordinator.inventory.clouds] == ["silver"]


async def test_an_edited_fabric_is_told_anew_with_a_higher_version(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.inventory)
        before = coordinator.inventory.version
        lab.settings.fabric.write_text(FABRIC + '[[clouds]]\nname = "bronze"\n')
        await until(lambda: len(coordinator.inventory.clouds) == 3)
        assert coordinator.inventory.version > before


async def test_a_broken_fabric_keeps_the_old_inventory_says_so_and_survives_a_restart(
    lab: Lab, coordinator: FakeCoordinator, until: Until, capsys: pytest.CaptureFixture[str]
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.inventory)
        lab.settings.fabric.write_text('[[clouds]]\nname = "gold"\nnetwroks = ["prod"]\n')
        await until(lambda: lab.command("status") == 3)
        assert "did you mean clouds[0].networks?" in capsys.readouterr().out
        assert len(coordinator.inventory.clouds) == 2
    coordinator.links.clear()
    async with lab.serving():
        await until(lambda: coordinator.inventory)
        assert len(coordinator.inventory.clouds) == 2
        lab.settings.fabric.write_text(FABRIC)
        await until(lambda: lab.command("status") == 0)


async def test_the_coordinator_can_ask_for_everything_again(lab: Lab, coordinator: FakeCoordinator, until: Until):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links and coordinator.links[0].kind("inventory"))
        told = len(coordinator.links[0].kind("inventory"))
        coordinator.tell(link_pb2.ToProvider(sync_clouds=link_pb2.SyncClouds()))
        await until(lambda: len(coordinator.links[0].kind("inventory")) > told)
