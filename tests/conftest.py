"""What every test stands on: where nothing may be skipped, a skip is a failure."""

import os
import socket
from collections.abc import Callable, Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("TWINSITE_NO_SKIPS") == "1":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where nothing may be skipped: {report.longrepr}"
    return report


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A TCP port nobody listens on now, for programs whose port must survive their restart."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find
