"""The shipped settings file is the documentation of every option, and what it says is true."""

import dataclasses
import re
from pathlib import Path

import pytest

from hyperv_host_agent.replication.rates import Rule
from hyperv_host_agent.settings import PROGRAM, Settings
from twinsite.settings import SettingsError, load

SHIPPED = Path(__file__).parents[2] / "deploy" / "config" / "host.toml"


def test_the_shipped_file_shows_every_option_at_its_default(tmp_path: Path) -> None:
    assert load(Settings, SHIPPED, program=PROGRAM, environment={}) == Settings()
    opened = tmp_path / "host.toml"
    opened.write_text(re.sub(r"^# (?=\w+ = )", "", SHIPPED.read_text(), flags=re.MULTILINE))
    assert load(Settings, opened, program=PROGRAM, environment={}) == Settings()
    named = set(re.findall(r"^# (\w+) = ", SHIPPED.read_text(), flags=re.MULTILINE))
    leaves = {field.name for field in dataclasses.fields(Settings)} - {"transfer", "hypervisor"}
    leaves |= {field.name for field in dataclasses.fields(Settings().hypervisor)}
    leaves |= {field.name for field in dataclasses.fields(Settings().transfer)}
    assert named == leaves


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[hypervisor]\nkind = "vmware"', "embedded"),
        ("[hypervisor]\nnetworks = [5]", "must be a table"),
        ("[hypervisor]\nguest_seconds = -1", "0 to 3600"),
        ('[hypervisor]\naddresses = [{mac = "x", address = "10.0.0.1/8"}]', "52:54:00"),
        ('[hypervisor]\naddresses = [{mac = "52:54:00:00:00:01", address = "10.0.0.1"}]', "prefix"),
        ('[hypervisor]\naddresses = [{mac = "52:54:00:00:00:01", address = "x/8"}]', "IPv4"),
        ('listen = "8084"', "host:port"),
        ('advertise = "b1:99999"', "host:port"),
        ('log_level = "loud"', "log_level"),
        ("store_reserve_bytes = -1", "negative"),
        ("maintain_bytes_per_second = 999", "at least 1000000"),
        ("[transfer]\ncompressors = 0", "compressors"),
        ("[transfer]\ncopies = 0", "copies"),
        ("[transfer]\nconcurrency = -1", "concurrency"),
        ("[transfer]\nrates = 5", "must be a list"),
        ('[transfer]\nrates = ["10 MB/s"]', "must be a table"),
        ('[transfer]\nrates = [{days = "mon-fri"}]', "rate is missing"),
        ('[transfer]\nrates = [{rate = "10"}]', "10 MB/s"),
        ('[transfer]\nrates = [{rate = "100 B/s"}]', "below 1024"),
        ('[transfer]\nrates = [{rate = "1 MB/s", days = "monday"}]', "mon-fri"),
        ('[transfer]\nrates = [{rate = "1 MB/s", from = "8:00"}]', "08:00"),
        ('[transfer]\nrates = [{rate = "1 MB/s", to = "25:00"}]', "08:00"),
        ('[transfer]\nrates = [{rate = "1 MB/s", form = "08:00"}]', "did you mean transfer.rates[0].from"),
        ('stroe = "/x"', "did you mean store"),
    ],
)
def test_a_wrong_value_stops_the_start_with_the_reason(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "host.toml"
    path.write_text(line)
    with pytest.raises(SettingsError) as refused:
        load(Settings, path, program=PROGRAM, environment={})
    assert said in str(refused.value) + refused.value.text("next_step")


def test_rates_are_a_calendar(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(
        "[transfer]\nrates = ["
        '{days = "mon-fri", from = "08:00", to = "18:00", rate = "10 MB/s"},'
        '{days = "fri-mon,wed", from = "22:30", to = "06:00", rate = "100 Mbit/s"},'
        '{rate = "1 GB/s"}]\n'
    )
    loaded = load(Settings, path, program=PROGRAM, environment={})
    assert [rate.rule() for rate in loaded.transfer.rates] == [
        Rule(0b0011111, 480, 1080, 10_000_000),
        Rule(0b1110101, 1350, 360, 12_500_000),
        Rule(0b1111111, 0, 1440, 1_000_000_000),
    ]
