"""A full disk at the target: replication pauses with the reason, other VMs go on, and it resumes by itself."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.lab import Lab, until
from tests.system.conftest import create_vm
from tests.system.promises import fail_over, guest_at, new_point, nothing_of_the_point_is_lost
from twinsite.units import MiB

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
SHM = Path("/dev/shm")


@pytest.fixture
def small_store() -> Iterator[Path]:
    """A folder on a memory file system, whose free space a ballast file can take."""
    path = SHM / f"twinsite-{os.getpid()}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def test_replication_pauses_says_why_and_resumes(lay_out: Callable[..., Lab], small_store: Path) -> None:
    free = shutil.disk_usage(small_store).free
    room = 256 * MiB
    if free <= 2 * room:
        pytest.skip("/dev/shm has less than 512 MiB free")
    lab = lay_out(host_settings={"b": {"store": str(small_store / "store"), "store_reserve_bytes": free - room}})
    create_vm(lab)
    lab.up(frequency="2s")
    lab.cli("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")

    ballast = small_store / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room)
    shown = until("the pause and its reason", lambda: p if (p := lab.protection())["state"] == "blocked" else None)
    assert shown["health"] != "normal"
    assert "room" in shown["reason"] or "space" in shown["reason"]

    ballast.unlink()
    new_point(lab)
    until("it to be healthy again", lambda: lab.protection()["state"] == "replicating" or None)
    nothing_of_the_point_is_lost(lab, guest_at(lab, "a"), fail_over(lab))
