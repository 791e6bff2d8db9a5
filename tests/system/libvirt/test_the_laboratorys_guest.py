"""The guest that proofs rest on: it writes what it says, finds it again, and says so when it does not."""

import pytest

from deploy.lab.machine import run, until

pytestmark = pytest.mark.system


def test_it_boots_writes_records_to_both_disks_and_answers_over_http(guest, lan):
    assert guest.at_boot()["first"] == 0
    before = guest.answer(lan)["record"]
    later = until("records", lambda: (n := guest.answer(lan)["record"]) > before + 3 and n, timeout=30)
    for disk in ("/first", "/second"):
        numbers = [int(line.split()[0]) for line in guest.get(lan, disk).decode().splitlines()]
        assert numbers[: later - 1] == list(range(1, later)), "without a gap"


def test_after_a_killed_qemu_every_record_it_acknowledged_is_there(guest, lan):
    until("records", lambda: guest.answer(lan)["record"] > 5)
    acknowledged = guest.answer(lan)["record"]
    guest.host.kill_qemu(guest.name)
    until("libvirt to see it", lambda: guest.host.state(guest.name) == "shut off")
    guest.start()
    found = guest.at_boot()
    assert found["problems"] == ""
    assert found["first"] >= acknowledged
    assert found["second"] in (found["first"], found["first"] - 1)


def test_it_says_so_when_its_disks_are_not_of_one_instant(guest, lan):
    """A second disk that is older than the first, as a copy without one point for both makes it."""
    until("records", lambda: guest.answer(lan)["record"] > 2)
    older = guest.host.images / "older.qcow2"
    guest.host.virsh("domfsfreeze", guest.name)
    disk = guest.host.images / f"{guest.name}-vdb.qcow2"
    run("cp", str(disk), str(older))
    guest.host.virsh("domfsthaw", guest.name)
    record = guest.answer(lan)["record"]
    until("more records", lambda: guest.answer(lan)["record"] > record + 3)
    guest.host.virsh("destroy", guest.name)
    older.rename(disk)
    guest.start()
    assert "on the first disk, only" in guest.at_boot()["problems"]


def test_freezing_calls_its_hook_and_holds_its_writes(guest, lan):
    until("records", lambda: guest.answer(lan)["record"] > 2)
    guest.host.virsh("domfsfreeze", guest.name)
    frozen = guest.answer(lan)["record"]
    assert guest.said("GUEST hook freeze", timeout=10)
    assert guest.answer(lan)["record"] == frozen
    guest.host.virsh("domfsthaw", guest.name)
    until("records", lambda: guest.answer(lan)["record"] > frozen, timeout=20)


@pytest.mark.parametrize("way", ["acpi", "agent"])
def test_it_shuts_down_in_an_orderly_way(guest, way):
    guest.host.virsh("shutdown", guest.name, "--mode", way)
    until("its end", lambda: guest.host.state(guest.name) == "shut off", timeout=60)
    assert "GUEST shuts down" in guest.console()
