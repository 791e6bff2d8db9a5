"""Settings: one frozen tree; whatever is not understood stops the start and says where."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from twinsite.settings import SettingsError, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    megabytes: float = 1.0
    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError("workers must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    state: Path
    listen: str = "127.0.0.1:1"
    json: bool = False
    proxy: str | None = None
    clouds: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


def _load(path: Path | None, **environment: str) -> Program:
    return load(Program, path, program="demo", environment=environment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.toml"
    path.write_text('state = "/var/lib/demo"\n')
    return path


def test_defaults_fill_what_the_file_leaves_out(file: Path) -> None:
    assert _load(file) == Program(state=Path("/var/lib/demo"))


def test_drop_ins_overlay_the_file_in_the_order_of_their_names_and_the_environment_overlays_all(file: Path) -> None:
    folder = file.with_name("demo.toml.d")
    folder.mkdir()
    (folder / "10-a.toml").write_text('listen = "a:1"\n[limits]\nworkers = 3\n')
    (folder / "20-b.toml").write_text('listen = "b:1"\n')
    (folder / "ignored.txt").write_text("not = toml = at all")
    found = _load(file, TWINSITE_DEMO_LIMITS__MEGABYTES="2.5", TWINSITE_DEMO_JSON="true", TWINSITE_OTHER_LISTEN="x")
    assert (found.listen, found.limits, found.json) == ("b:1", Limits(megabytes=2.5, workers=3), True)


def test_the_environment_alone_is_enough(tmp_path: Path) -> None:
    found = _load(None, TWINSITE_DEMO_STATE=str(tmp_path), TWINSITE_DEMO_CLOUDS="gold,silver", TWINSITE_DEMO_PROXY="p")
    assert (found.state, found.clouds, found.proxy) == (tmp_path, ("gold", "silver"), "p")


@pytest.mark.parametrize(
    ("text", "environment", "says", "advises"),
    [
        ('lisen = "x"', {}, "unknown key lisen", "did you mean listen?"),
        ("[limits]\nworker = 1", {}, "unknown key limits.worker", "did you mean limits.workers?"),
        ("zzz = 1", {}, "unknown key zzz", "known here"),
        ("listen = 5", {}, "listen must be str, it is 5", "correct"),
        ("json = 1", {}, "json must be bool", "correct"),
        ('clouds = "gold"', {}, "clouds must be a list", "clouds ="),
        ("clouds = [1]", {}, "clouds[0] must be str", "correct"),
        ("limits = 5", {}, "limits must be a table", "[limits]"),
        ("[limits]\nworkers = 0", {}, "workers must be at least 1", "correct"),
        ("listen = ", {}, "is not TOML", "correct the line"),
        ("", {"TWINSITE_DEMO_LIMITS__WORKERS": "many"}, "limits.workers must be int, it is 'many'", "correct"),
        ("", {"TWINSITE_DEMO_LISEN": "x"}, "unknown key lisen", "did you mean listen?"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_what_to_do(
    file: Path, text: str, environment: dict[str, str], says: str, advises: str
) -> None:
    file.write_text('state = "/x"\n' + text)
    with pytest.raises(SettingsError) as wrong:
        _load(file, **environment)
    assert says in str(wrong.value)
    assert advises in wrong.value.text("next_step")
    assert wrong.value.origin in {str(file), *environment}


def test_a_file_that_is_missing_and_a_value_that_is_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        _load(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="state is missing"):
        _load(None)
