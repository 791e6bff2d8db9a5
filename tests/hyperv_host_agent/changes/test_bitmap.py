"""A bitmap over memory behaves as a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from hyperv_host_agent.changes.bitmap import Bitmap, bytes_for
from twinsite.extents import Run, runs

BITS = 203
members = st.sets(st.integers(0, BITS - 1)) | st.builds(
    lambda start, count: set(range(start, min(BITS, start + count))), st.integers(0, BITS - 1), st.integers(1, BITS)
)


def bitmap(of: set[int]) -> Bitmap:
    made = Bitmap(memoryview(bytearray(4096)), BITS)
    for bit in of:
        made.set(bit)
    return made


@given(members)
def test_runs_and_counts_are_those_of_the_set(chosen: set[int]):
    made = bitmap(chosen)
    assert list(made.runs()) == list(runs(sorted(chosen)))
    assert made.count() == len(chosen)
    assert {bit for bit in range(BITS) if bit in made} == chosen


@given(members, members)
def test_a_merge_is_the_union_and_a_snapshot_stays(one: set[int], other: set[int]):
    made = bitmap(one)
    before = made.snapshot()
    made.merge(bitmap(other))
    assert list(made.runs()) == list(runs(sorted(one | other)))
    assert list(before.runs()) == list(runs(sorted(one)))
    made.clear()
    assert made.count() == 0


@given(members, st.integers(0, BITS - 1), st.integers(1, 40))
def test_a_run_is_known_to_hold_a_bit_or_not(chosen: set[int], start: int, count: int):
    run = Run(start, min(count, BITS - start))
    assert bitmap(chosen).any_in(run) == any(bit in chosen for bit in range(run.start, run.end))


@given(members, st.integers(0, BITS - 1), st.integers(1, 40))
def test_what_is_not_set_in_a_run_is_told_of_that_run_alone(chosen: set[int], start: int, count: int):
    run = Run(start, min(count, BITS - start))
    clear = [bit for bit in range(run.start, run.end) if bit not in chosen]
    assert list(bitmap(chosen).clear_runs(run)) == list(runs(clear))


def test_a_sparse_bitmap_of_a_big_disk_is_skimmed():
    bits = 1 << 27  # 8 TiB
    made = Bitmap(memoryview(bytearray(bytes_for(bits))), bits)
    for bit in (5, 7_000_001, bits - 1):
        made.set(bit)
    assert list(made.runs()) == [Run(5, 1), Run(7_000_001, 1), Run(bits - 1, 1)]
