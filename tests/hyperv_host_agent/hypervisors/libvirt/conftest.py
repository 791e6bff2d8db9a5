import os

import pytest

from hyperv_host_agent.hypervisors.libvirt import library


@pytest.fixture(scope="session", autouse=True)
def libvirt_python():
    if not library.available() and os.environ.get("TWINSITE_NO_SKIPS") != "1":
        pytest.skip("libvirt-python is not installed")
