"""Two sites as real processes on loopback with one small VM; each test gets its own."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.guest import Guest
from demo.lab import SITES, Lab
from twinsite.units import MiB

FIRST_BYTES = 24 * MiB
SECOND_BYTES = 16 * MiB


@pytest.fixture
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A short path: a unix socket's may have 107 bytes. Kept when the test failed, and said where."""
    path = Path(tempfile.mkdtemp(prefix="twinsite-"))
    failed = request.session.testsfailed
    yield path
    if request.session.testsfailed == failed:
        shutil.rmtree(path, ignore_errors=True)
    else:
        print(f"state and logs: {path}")


@pytest.fixture
def lay_out(root: Path) -> Iterator[Callable[..., Lab]]:
    """A laboratory whose programs are not started yet; whatever runs at the end is ended."""
    labs: list[Lab] = []

    def make(**settings: object) -> Lab:
        lab = Lab(root)
        lab.lay_out(**settings)  # type: ignore[arg-type]
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.kill()  # first: a host agent would start its guests again
        for site in SITES:
            Guest.kill_all(lab.vms(site))


@pytest.fixture
def lab(lay_out: Callable[..., Lab]) -> Lab:
    """Two paired clouds, VM web01 running at site A, cycles of 2 s once it is protected."""
    lab = lay_out()
    create_vm(lab)
    lab.up(frequency="2s")
    return lab


def create_vm(lab: Lab, name: str = "web01", *, first: int = FIRST_BYTES) -> Guest:
    """A VM at site A: random content on the first disk, records on both; running."""
    image = lab.root / f"{name}.img"
    image.write_bytes(os.urandom(first // 2) + bytes(first // 2))
    guest = Guest.create(lab.vms("a"), name, first=image, second=SECOND_BYTES)
    guest.start()
    return guest
