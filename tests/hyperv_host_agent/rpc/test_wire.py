"""Messages of the cluster stream: what goes in comes out, and nothing else is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperv_host_agent import wire
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from twinsite.api.types.v1 import types_pb2
from twinsite.digest import CHAIN_START
from twinsite.extents import Run

frames = st.lists(st.binary(min_size=1, max_size=200), max_size=8)


@given(frames, st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)), max_size=5))
def test_a_batch_comes_out_as_it_went_in(content: list[bytes], zeros: list[tuple[int, int]]) -> None:
    prints = bytes(range(16)) * len(content)
    header = wire.batch_header(
        7,
        1,
        clusters=range(len(content)),
        lengths=[len(frame) for frame in content],
        prints=prints,
        zeros=[Run(*zero) for zero in zeros],
    )
    message = wire.encode(header, content)
    decoded = wire.decode(message)
    batch = wire.batch_of(decoded)
    assert (batch.sequence, batch.disk, batch.fingerprints) == (7, 1, prints)
    assert list(batch.clusters) == list(range(len(content)))
    assert bytes(batch.payload) == b"".join(content)
    assert batch.zero_runs == tuple(Run(*zero) for zero in zeros)
    assert wire.chain(CHAIN_START, message) != wire.chain(wire.chain(CHAIN_START, message), message)


@given(st.binary(max_size=400))
def test_noise_is_refused_and_never_crashes(noise: bytes) -> None:
    try:
        message = wire.decode(noise)
        if message.header.WhichOneof("frame") == "batch":
            wire.batch_of(message)
        elif message.header.WhichOneof("frame") == "begin":
            wire.cycle_of(message.header.begin, "vm")
    except wire.BadMessage as error:
        assert str(error)


def test_a_begin_frame_carries_the_whole_header() -> None:
    header = CycleHeader(
        vm_id="vm-1",
        id=bytes(range(16)),
        number=9,
        parent=8,
        term=3,
        kind=Kind.DELTA,
        instant=1_800_000_000.25,
        consistency="application",
        disks=(DiskGeometry("d1", 1 << 40, "vda"), DiskGeometry("d2", 512, "vdb")),
        machine=types_pb2.Machine(id="vm-1", name="web01").SerializeToString(),
        parent_id=bytes(16),
    )
    frame = wire.begin(header, resume_after=5, grant=types_pb2.SignedDocument(key_id="k"))
    decoded = wire.decode(wire.encode(frame)).header.begin
    assert wire.cycle_of(decoded, "vm-1") == header
    assert decoded.resume_after == 5
    assert decoded.grant.key_id == "k"


def test_a_placeholder_is_known_as_one() -> None:
    fields = {"id": bytes(16), "cycle": 1, "kind": wire.pb.CYCLE_KIND_INITIAL, "consistency": "none"}
    cycle = wire.cycle_of(wire.pb.Begin(**fields, placeholder=True), "vm")
    assert cycle.placeholder
    assert wire.begin(cycle, resume_after=0, grant=types_pb2.SignedDocument()).begin.placeholder
    assert not wire.cycle_of(wire.pb.Begin(**fields), "vm").placeholder


@pytest.mark.parametrize(
    "change",
    [
        {"cycle": 0},
        {"parent": 9},
        {"id": b"short"},
        {"consistency": "perfect"},
        {"kind": wire.pb.CYCLE_KIND_UNSPECIFIED},
        {"parent_id": b""},
        {"placeholder": True},
    ],
)
def test_a_begin_frame_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    fields = {
        "id": bytes(16),
        "cycle": 9,
        "parent": 8,
        "parent_id": bytes(16),
        "kind": wire.pb.CYCLE_KIND_DELTA,
        "consistency": "crash",
    }
    assert wire.cycle_of(wire.pb.Begin(**fields), "vm")
    with pytest.raises(wire.BadMessage):
        wire.cycle_of(wire.pb.Begin(**fields | change), "vm")


def test_a_message_longer_than_the_channel_takes_is_refused() -> None:
    with pytest.raises(wire.BadMessage):
        wire.decode(bytes(wire.MESSAGE_BYTES + 1))
