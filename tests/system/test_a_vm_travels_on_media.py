"""The initial copy of a VM goes to the other site in a parcel, its changes over the network meanwhile."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.lab import Lab, until
from tests.system.conftest import create_vm
from tests.system.promises import guest_at, nothing_of_the_point_is_lost, start_job, succeeded
from twinsite.units import MiB

RANDOM_BYTES = 96 * MiB  # more than a guest writes while its seed is on its way
pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def media() -> Iterator[Path]:
    """A file system that is no host's store: as a disk that is carried about."""
    path = Path(tempfile.mkdtemp(prefix="twinsite-media-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def message(lab: Lab, job_id: str) -> str:
    """Of the task that waits for the first point."""
    tasks: list[dict[str, str]] = lab.json("job", "show", job_id)["tasks"]
    return next(one["message"] for one in tasks if one["name"] == "Initial replication")


def test_a_vm_is_protected_on_media_at_its_time_and_fails_over(lay_out: Callable[..., Lab], media: Path) -> None:
    lab = lay_out()
    create_vm(lab, first=2 * RANDOM_BYTES)
    lab.up(frequency="2s")
    job_id = start_job(lab, "vm", "protect", "web01", "--pair", "gold-a:gold-b", "--offline", "--at", "+2h", "-y")
    until("the schedule", lambda: "waits until" in message(lab, job_id) or None)
    lab.cli("seed", "export", "web01", "--to", str(media), status=6)  # nothing has begun
    lab.cli("vm", "start-initial", "web01")
    until("the seed to be awaited", lambda: lab.protection().get("awaiting_seed") or None)
    until("the way to be told", lambda: "twinsite seed export" in message(lab, job_id) or None)
    assert not lab.points()

    assert "SEED_PATH_ON_HYPERVISOR" in lab.cli("seed", "export", "web01", "--to", str(lab.root), status=1)
    lab.cli("seed", "export", "web01", "--to", str(media))
    lab.cli("seed", "import", "web01", "--from", str(media))
    succeeded(lab, job_id)
    shown = lab.protection()
    assert not shown["awaiting_seed"]
    assert shown["points"] >= 1
    assert shown["wire_bytes"] < RANDOM_BYTES, "the copy went over the network all the same"

    source = guest_at(lab, "a")
    job = start_job(lab, "vm", "failover", "web01", "--confirm", "web01", "--reason", "the parcel came")
    nothing_of_the_point_is_lost(lab, source, succeeded(lab, job))
