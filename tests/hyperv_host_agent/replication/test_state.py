import pytest

from hyperv_host_agent.replication.cycle import Committed, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.state import Checkpoint, Flight, Position, SenderState, Totals, dump, load

DISKS = (DiskGeometry("d1", 1 << 30, "vda"), DiskGeometry("d2", 65536))
HEADER = CycleHeader("vm", b"i" * 16, 8, 7, 3, Kind.RESYNC, 1_800_000_000.125, "none", DISKS, b"\x00machine", b"p" * 16)
FULL = SenderState(
    term=3,
    committed=Committed(7, b"p" * 16),
    disks=DISKS,
    recoverable=True,
    instant=1.5,
    trusted=True,
    flight=Flight(HEADER, Checkpoint(9, b"c" * 16, Position(1, 4)), suppressed=True, ended=True),
    totals=Totals(1_800_000_000.125, 7, 1 << 40, 1 << 39),
)


@pytest.mark.parametrize("state", [SenderState(), FULL, SenderState(flight=Flight(HEADER, None, suppressed=False))])
def test_what_is_stored_comes_back(state):
    assert load(dump(state)) == state


@pytest.mark.parametrize("data", [b"", b"{}", dump(FULL)[:-20], dump(FULL).replace(b'"version": 1', b'"version": 9')])
def test_anything_else_is_refused(data):
    with pytest.raises((ValueError, KeyError)):
        load(data)
