"""The shipped settings file is the documentation of every option, and what it says is true."""

import dataclasses
import re
from pathlib import Path

import pytest

from hyperv_host_agent.settings import PROGRAM, Settings
from twinsite.settings import SettingsError, load

SHIPPED = Path(__file__).parents[2] / "deploy" / "config" / "host.toml"


def test_the_shipped_file_shows_every_option_at_its_default(tmp_path: Path) -> None:
    assert load(Settings, SHIPPED, program=PROGRAM, environment={}) == Settings()
    opened = tmp_path / "host.toml"
    opened.write_text(re.sub(r"^# (?=\w+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE))
    assert load(Settings, opened, program=PROGRAM, environment={}) == Settings()
    named = set(re.findall(r"^# (\w+) = ", SHIPPED.read_text(), flags=re.MULTILINE))
    leaves = {field.name for field in dataclasses.fields(Settings)} - {"transfer"}
    leaves |= {field.name for field in dataclasses.fields(Settings().transfer)}
    assert named == leaves


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('hypervisor = "vmware"', "embedded"),
        ('listen = "8084"', "host:port"),
        ('advertise = "b1:99999"', "host:port"),
        ('log_level = "loud"', "log_level"),
        ("store_reserve_bytes = -1", "negative"),
        ("[transfer]\ncompressors = 0", "compressors"),
        ("[transfer]\ncopies = 0", "copies"),
        ('stroe = "/x"', "did you mean store"),
    ],
)
def test_a_wrong_value_stops_the_start_with_the_reason(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "host.toml"
    path.write_text(line)
    with pytest.raises(SettingsError) as refused:
        load(Settings, path, program=PROGRAM, environment={})
    assert said in str(refused.value) + refused.value.text("next_step")
