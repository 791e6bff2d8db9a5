from dataclasses import replace

import pytest

from hyperv_host_agent.replication.cycle import (
    Batch,
    Committed,
    CycleHeader,
    DiskGeometry,
    Kind,
    TargetState,
    Unfinished,
)
from hyperv_host_agent.replication.frames import (
    MAX_FRAME_BYTES,
    InvalidFrame,
    NotGranted,
    WrongPlace,
    check_batch,
    check_header,
    check_resume,
)
from twinsite.extents import CLUSTER, Run

GRANTED = (DiskGeometry("d1", 10 * CLUSTER), DiskGeometry("d2", 3 * CLUSTER))
HEADER = CycleHeader(
    "vm", b"i" * 16, 5, 4, 1, Kind.DELTA, 0.0, "crash", (DiskGeometry("d1", 9 * CLUSTER + 512),), b"", b"p" * 16
)
STATE = TargetState(1, Committed(4, b"p" * 16), None)
BATCH = Batch(1, 0, (2, 5, 9), (10, 20, 30), bytes(48), (Run(0, 2), Run(6, 3)), bytes(60))


def test_a_cycle_that_follows_is_taken():
    check_header(HEADER, STATE, GRANTED)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"id": b"short"}, InvalidFrame),
        ({"consistency": "perfect"}, InvalidFrame),
        ({"consistency": "none"}, InvalidFrame),  # a delta is of an instant
        ({"kind": Kind.RESYNC}, InvalidFrame),  # a copy is of none
        ({"kind": Kind.INITIAL, "consistency": "none"}, InvalidFrame),  # an initial copy stands on nothing
        ({"disks": ()}, InvalidFrame),
        ({"disks": HEADER.disks * 2}, InvalidFrame),
        ({"disks": (DiskGeometry("d1", 0),)}, InvalidFrame),
        ({"disks": (DiskGeometry("d1", 513),)}, InvalidFrame),
        ({"machine": bytes((1 << 20) + 1)}, InvalidFrame),
        ({"disks": (DiskGeometry("d3", 512),)}, NotGranted),
        ({"disks": (DiskGeometry("d2", 4 * CLUSTER),)}, NotGranted),
        ({"number": 4, "parent": 3}, WrongPlace),
        ({"number": 6}, WrongPlace),
        ({"parent": 3}, WrongPlace),
        ({"parent_id": b"q" * 16}, WrongPlace),  # the same number, another attempt
    ],
)
def test_a_cycle_that_does_not_fit_is_refused(change, error):
    with pytest.raises(error):
        check_header(replace(HEADER, **change), STATE, GRANTED)


def test_an_initial_copy_is_refused_where_points_are():
    initial = replace(HEADER, number=1, parent=0, parent_id=b"", kind=Kind.INITIAL, consistency="none")
    check_header(initial, TargetState(1, None, None), GRANTED)
    with pytest.raises(WrongPlace):
        check_header(initial, STATE, GRANTED)


def test_a_source_goes_on_only_within_what_is_durable_of_that_cycle():
    state = replace(STATE, unfinished=Unfinished(5, b"i" * 16, 7, bytes(16)))
    for resume_after in (0, 3, 7):
        check_resume(HEADER, state, resume_after)
    with pytest.raises(WrongPlace):
        check_resume(HEADER, state, 8)
    with pytest.raises(WrongPlace):
        check_resume(replace(HEADER, id=b"j" * 16), state, 1)
    with pytest.raises(WrongPlace):
        check_resume(HEADER, STATE, 1)


def test_a_batch_that_keeps_the_rules_is_taken():
    check_batch(HEADER, BATCH, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 2},
        {"sequence": 0},
        {"disk": 1},
        {"disk": -1},
        {"clusters": (5, 2, 9)},
        {"clusters": (2, 2, 9)},
        {"clusters": (2, 5, 10)},  # the disk has ten clusters, the last one partial
        {"clusters": (-1, 5, 9)},
        {"clusters": (2, 5)},
        {"lengths": (10, 20)},
        {"lengths": (10, 20, 31)},
        {"lengths": (0, 30, 30)},
        {"lengths": (-10, 40, 30)},
        {"lengths": (1, 1, MAX_FRAME_BYTES + 1), "payload": bytes(MAX_FRAME_BYTES + 3)},
        {"fingerprints": bytes(47)},
        {"payload": bytes(59)},
        {"zero_runs": (Run(0, 3),)},  # over data
        {"zero_runs": (Run(6, 5),)},  # beyond the end
        {"zero_runs": (Run(0, 0),)},
        {"zero_runs": (Run(6, 1), Run(0, 1))},
        {"zero_runs": (Run(6, 2), Run(7, 1))},
        {"zero_runs": (Run(-1, 1),)},
        {"zero_runs": tuple(Run(n, 1) for n in range(5000))},
        {"clusters": (), "lengths": (), "fingerprints": b"", "payload": b"", "zero_runs": ()},
    ],
)
def test_a_batch_that_breaks_a_rule_is_refused_whole(change):
    with pytest.raises(InvalidFrame):
        check_batch(HEADER, replace(BATCH, **change), 1)


def test_more_bytes_or_clusters_than_a_message_holds_are_refused():
    big = replace(HEADER, disks=(DiskGeometry("d1", 1 << 40),))
    many = Batch(1, 0, tuple(range(5000)), (1,) * 5000, bytes(16 * 5000), (), bytes(5000))
    with pytest.raises(InvalidFrame):
        check_batch(big, many, 1)
    heavy = Batch(1, 0, tuple(range(70)), (CLUSTER,) * 70, bytes(16 * 70), (), bytes(70 * CLUSTER))
    with pytest.raises(InvalidFrame):
        check_batch(big, heavy, 1)
