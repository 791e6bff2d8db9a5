"""Names people use, and reports with junk in them."""

from dataclasses import dataclass

import pytest

from coordinator.inventory.model import Ambiguous, Report, Unknown, address, instant, resolve, shown
from tests.fakes.site import machine, stamp
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.types.v1 import types_pb2


@dataclass(frozen=True)
class Thing:
    id: str
    name: str
    server: str = "vmm-a"


THINGS = [Thing("s-aaaaaaaa1111", "alpha"), Thing("s-aaaaaaaa2222", "beta"), Thing("s-bbbbbbbb3333", "twin")]
TWIN = Thing("s-cccccccc4444", "twin", "vmm-b")


@pytest.mark.parametrize(
    ("name", "found"),
    [("alpha", 0), ("s-aaaaaaaa2222", 1), ("s-bbbbbb", 2), ("vmm-a/twin", 2)],
)
def test_a_name_an_id_or_a_prefix_of_eight_finds_one_thing(name, found):
    assert resolve("server", name, THINGS, qualifier="server") == THINGS[found]


@pytest.mark.parametrize("name", ["", "gamma", "s-bbbbb", "ALPHA", "vmm-b/alpha", "alpha\n"])
def test_what_names_nothing_is_unknown(name):
    with pytest.raises(Unknown):
        resolve("server", name, THINGS, qualifier="server")


@pytest.mark.parametrize("name", ["s-aaaaaaaa", "twin"])
def test_what_names_several_is_answered_with_the_candidates(name):
    with pytest.raises(Ambiguous) as refused:
        resolve("server", name, [*THINGS, TWIN])
    assert refused.value.candidates.count("s-") == 2


def test_an_id_wins_over_a_name_that_looks_like_it():
    impostor = Thing("s-dddddddd5555", "s-aaaaaaaa1111")
    assert resolve("server", "s-aaaaaaaa1111", [impostor, *THINGS]) == THINGS[0]


def host(name: str = "a1", host_id: str = "h-0123456789ab", *machines: types_pb2.Machine) -> link_pb2.HostPresence:
    status = types_pb2.HostStatus(host_id=host_id, name=name, machines=machines, replication_address="a1:8084")
    return link_pb2.HostPresence(status=status, connected=True)


@pytest.mark.parametrize("name", ["../etc", "a\nb", "", "x" * 300, "-rf", "a/b"])
def test_bad_names_are_refused_and_hide_nothing_else(name):
    inventory = link_pb2.Inventory(
        clouds=[link_pb2.Cloud(name=name), link_pb2.Cloud(name="gold")],
        networks=[link_pb2.Network(name="a\tb"), link_pb2.Network(name="VM Network (prod)")],
        hosts=[host(name), host("a2", "h-0123456789ac")],
    )
    report = Report.from_proto(inventory)
    assert [cloud.name for cloud in report.clouds] == ["gold"]
    assert [network.name for network in report.networks] == ["VM Network (prod)"]
    assert [one.name for one in report.hosts] == ["a2"]
    assert len(report.refused) >= 3
    assert all(sentence.isprintable() for sentence in report.refused)


def edited(**fields: object) -> types_pb2.Machine:
    made = machine("bad")
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def with_disks(*disks: types_pb2.Disk) -> types_pb2.Machine:
    made = machine("bad")
    del made.disks[:]
    made.disks.extend(disks)
    return made


GOOD_DISK = "0c5a7e1e-0000-4000-8000-000000000001"


@pytest.mark.parametrize(
    "bad",
    [
        edited(id="../../x"),
        edited(id="0C5A7E1E-0000-4000-8000-000000000001"),
        edited(name="../x"),
        edited(name="a\nb"),
        edited(name="x" * 300),
        edited(memory_bytes=2**64 - 1),
        with_disks(types_pb2.Disk(id="x", size_bytes=1)),
        with_disks(types_pb2.Disk(id=GOOD_DISK, size_bytes=0)),
        with_disks(types_pb2.Disk(id=GOOD_DISK, size_bytes=2**60)),
        with_disks(types_pb2.Disk(id=GOOD_DISK, size_bytes=1), types_pb2.Disk(id=GOOD_DISK, size_bytes=2)),
        with_disks(*[types_pb2.Disk(id=machine("x").id, size_bytes=1) for _ in range(65)]),
    ],
)
def test_a_vm_described_wrongly_is_left_out_but_counts_as_present(bad):
    good = machine("good")
    report = Report.from_proto(link_pb2.Inventory(hosts=[host("a1", "h-0123456789ab", bad, good)]))
    assert [one.name for one in report.hosts[0].machines] == ["good"]
    assert report.hosts[0].present == {bad.id, good.id}
    assert report.refused


def test_numbers_that_fit_no_database_are_cut():
    presence = host()
    presence.status.store_free_bytes = 2**64 - 1
    report = Report.from_proto(link_pb2.Inventory(version=2**64 - 1, hosts=[presence]))
    assert report.version == report.hosts[0].free_bytes == 2**63 - 1


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("10.0.0.1:8084", True),
        ("host.example.org:8084", True),
        ("[::1]:8084", True),
        ("host:0", False),
        ("host:99999", False),
        ("host", False),
        ("host:8084\n", False),
        ("unix:/run/x:1", False),
    ],
)
def test_an_address_is_host_and_port_or_nothing(text, good):
    assert address(text) == (text if good else "")


def test_impossible_instants_are_no_instants():
    assert instant(stamp(1_800_000_000.5)) == pytest.approx(1_800_000_000.5)
    for seconds in (-1, 0, 2**62):
        assert instant(types_pb2.Point(instant={"seconds": seconds}).instant) == 0


def test_text_of_a_peer_is_printable_and_short():
    assert shown("web01") == "web01"
    assert shown("a\x1b[31m") == "'a\\x1b[31m'"
    assert len(shown("x" * 1000)) < 50
