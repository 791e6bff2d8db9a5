from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.admin import FakeCoordinator, coordinator, logged_in
from twinsite.cli.main import main


@dataclass
class Ended:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def served() -> Iterator[FakeCoordinator]:
    with coordinator() as fake:
        yield fake


@pytest.fixture
def fake(served: FakeCoordinator) -> FakeCoordinator:
    login = served.answers["Enrollment.Login"]
    served.answers.clear()
    served.calls.clear()
    served.answers["Enrollment.Login"] = login
    return served


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def twinsite(fake: FakeCoordinator, home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run one command as a logged-in owner, not on a terminal."""
    logged_in(fake, home)
    fake.calls.clear()
    capsys.readouterr()

    def run(*arguments: str) -> Ended:
        status = main(["--home", str(home), *arguments])
        text = capsys.readouterr()
        return Ended(status, text.out, text.err)

    return run
