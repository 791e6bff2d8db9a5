"""Disks of a protected VM grow, shrink, come and go while it runs; nobody does anything for its replication."""

import json

import pytest

from demo.guest import Guest
from demo.lab import Lab, until
from tests.system.promises import fail_over, guest_at, new_point, nothing_of_the_point_is_lost
from twinsite.units import MiB

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def sizes(guest: Guest) -> dict[str, int]:
    return {disk["name"]: disk["size"] for disk in guest.description()["disks"]}


def newest_sizes(lab: Lab) -> dict[str, int]:
    """Of the disks in the newest point, as the target's own files tell them."""
    newest = max((lab.root / "host-b" / "store").glob("*/points/[0-9]*.json"), key=lambda path: path.stem)
    try:
        document = json.loads(newest.read_bytes())["document"]
    except (FileNotFoundError, ValueError):  # retired, or being replaced
        return {}
    return {disk["name"]: disk["size"] for disk in document["disks"]}


def test_disks_grow_shrink_come_and_go_while_the_vm_is_replicated(lab: Lab) -> None:
    lab.cli("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
    new_point(lab)
    guest = guest_at(lab, "a")
    guest.resize_disk("vdb", 48 * MiB)
    until("a point with the larger disk", lambda: newest_sizes(lab) == sizes(guest) or None)
    guest.add_disk("vdc", 8 * MiB)
    guest.resize_disk("vdb", 12 * MiB)
    until("a point with the new disk", lambda: newest_sizes(lab) == sizes(guest) or None)
    guest.add_disk("vdd", 4 * MiB)
    guest.remove_disk("vdc")
    until("a point without the old one", lambda: newest_sizes(lab) == sizes(guest) or None)
    assert sorted(sizes(guest)) == ["vda", "vdb", "vdd"]
    new_point(lab)
    nothing_of_the_point_is_lost(lab, guest, fail_over(lab))
    assert sizes(guest_at(lab, "b", "replica")) == sizes(guest)
