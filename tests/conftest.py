"""What every test stands on: where nothing may be skipped, a skip is a failure."""

import os
from collections.abc import Callable, Generator

import pytest
from hypothesis import settings

from demo.ports import free_port

settings.register_profile("untimed", deadline=None)  # how long an example takes is no promise, and machines are busy
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("TWINSITE_NO_SKIPS") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where nothing may be skipped: {report.longrepr}"
    return report


@pytest.fixture(name="free_port")
def free_port_() -> Callable[[], int]:
    """A TCP port nobody listens on now, for programs whose port must survive their restart."""
    return free_port
