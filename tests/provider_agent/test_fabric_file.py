"""The fabric file: what is wrong in it is said with the key and a suggestion."""

from pathlib import Path

import pytest

from provider_agent.vmm.fabric_file import FabricFile, load
from twinsite.settings import SettingsError

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[[cloud]]\nname = "x"', "unknown key cloud"),
        ('[[clouds]]\nname = "x"\nhost_group = []', "unknown key clouds[0].host_group"),
        ("[[clouds]]\nnetworks = []", "clouds[0].name is missing"),
        ('[[clouds]]\nname = "x"\nnetworks = ["prod"]', "cloud x names the network prod, which is not defined"),
        ('[[clouds]]\nname = "x"\nstorage_classifications = ["f"]', "storage classification f, which is not defined"),
        ('[[clouds]]\nname = "x"\n[[clouds]]\nname = "x"', "cloud x is there 2 times"),
        ('[[networks]]\nname = "n"\nsubnets = ["10.0.0.1/24"]', "has host bits set"),
        ('[[networks]]\nname = "../n"', "is not a name for a network"),
        ('[[clouds]]\nname = "a\\nb"', "is not a name for a cloud"),
        (f'[[clouds]]\nname = "{"x" * 300}"', "is not a name for a cloud"),
        (
            '[[clouds]]\nname = "x"\nhost_groups = [{name = "a", hosts = ["h"]}, {name = "b", hosts = ["h"]}]',
            "host in more than one group: h is there 2 times",
        ),
        ("clouds = 3", "clouds must be a list"),
        ("[[clouds", "is not TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, said: str):
    path = tmp_path / "fabric.toml"
    path.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.text("next_step")


async def test_without_any_fabric_there_is_nothing_to_serve(tmp_path: Path):
    with pytest.raises(SettingsError, match="no such fabric file"):
        await FabricFile(tmp_path / "fabric.toml", tmp_path / "kept").read()


async def test_a_restart_with_a_broken_file_uses_the_last_good_content(tmp_path: Path):
    path, kept = tmp_path / "fabric.toml", tmp_path / "kept.toml"
    path.write_text('[[clouds]]\nname = "gold"')
    good = (await FabricFile(path, kept).read()).fabric
    path.unlink()
    reading = await FabricFile(path, kept).read()
    assert reading.fabric == good
    assert reading.problem is not None


async def test_a_file_that_cannot_be_read_or_kept_ends_nothing(tmp_path: Path):
    path, kept = tmp_path / "fabric.toml", tmp_path / "kept.toml"
    path.write_text('[[clouds]]\nname = "gold"')
    kept.mkdir()  # as a full disk: it cannot be written
    fabric = FabricFile(path, kept)
    good = (await fabric.read()).fabric
    path.unlink()
    path.mkdir()
    reading = await fabric.read()
    assert reading.fabric == good
    assert reading.problem is not None
    assert "cannot be read" in str(reading.problem)
    assert reading.problem.text("next_step")


def test_the_example_shows_every_key():
    fabric = load(ROOT / "deploy/config/fabric.toml")
    (cloud,) = fabric.clouds
    assert cloud.host_groups[0].hosts
    assert cloud.networks == tuple(network.name for network in fabric.networks)
    assert cloud.storage_classifications == tuple(one.name for one in fabric.storage_classifications)
    assert fabric.networks[0].subnets
