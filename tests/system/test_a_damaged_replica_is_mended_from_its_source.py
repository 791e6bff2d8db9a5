"""A disk of the recovery site turns bits: it is found, named, never served, and mended while the source lives."""

from pathlib import Path

import pytest

from demo.lab import Lab, until
from tests.system.promises import ended, new_point, start_job, succeeded
from twinsite.units import MiB

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def layers_of(lab: Lab, number: str) -> list[Path]:
    return sorted((lab.root / "host-b" / "store").glob(f"*/*/{number}.qcow2"))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def test_a_flipped_byte_is_named_and_repaired_while_the_source_lives(lab: Lab) -> None:
    succeeded(lab, start_job(lab, "vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y"))
    new_point(lab)
    copy = max(layers_of(lab, "000001"), key=lambda path: path.stat().st_size)
    flip(copy, 3 * MiB)  # in the content that came with the first copy, which nothing has written since

    said = lab.run("twinsite", "vm", "verify", "web01", status=3)
    assert copy.name in said
    assert "damaged" in said
    until("the points to be marked", lambda: [p for p in lab.points() if p["damaged_clusters"] not in {0, "0"}])

    lab.cli("vm", "verify", "web01", "--repair", status=3)  # the source is asked; the next cycle brings it
    repaired = new_point(lab)
    until(
        "the damage to be mended", lambda: lab.protection()["scrub"].get("damaged_clusters") in {0, "0", None} or None
    )
    job = ended(lab, start_job(lab, "vm", "verify", "web01"))
    assert job["state"] == "succeeded", job
    newest = until(
        "a newest point that is whole", lambda: [p for p in lab.points()[:1] if p["damaged_clusters"] in {0, "0"}]
    )
    assert newest[0]["cycle"] >= repaired
