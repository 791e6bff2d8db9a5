"""Reading a seed in under kill -9, I/O errors and a full disk, at every system call the store makes."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import seed_workload, warm_program
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import send
from tests.fakes.seed_workload import AFTER, BEFORE, LACKING, VM, history, prepare, read_in
from tests.fakes.warm_program import Warm
from twinsite.extents import CLUSTER

pytestmark = pytest.mark.system  # some hundred processes

SCRIPT = Path(seed_workload.__file__)
CALLS = ("pwrite64", "fsync", "rename", "ftruncate")
LEAST = 30  # calls that change a file


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm.started(SCRIPT) as program:
        yield program


@pytest.fixture
def prepared(quick_path: Path) -> Path:
    prepare(quick_path / "prepared")
    return quick_path / "prepared"


def fresh(prepared: Path) -> None:
    """The prepared store again."""
    root = prepared.with_name("store")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root)


def assert_all_is_well(rig: ChainRig, replica: ChainReplica) -> None:
    """Whatever happened: nothing incomplete is offered, and after one more attempt and cycle all is the source."""
    cycles, batches = history()
    assert [point.cycle for point in replica.points()] == list(range(1, BEFORE + 1))
    assert not any(point.recoverable for point in replica.points())
    if replica.awaited() is not None:
        read_in(replica, batches)
    assert replica.state().wanted == LACKING
    assert not any(point.recoverable for point in replica.points())
    assert send(replica, cycles[BEFORE]).recoverable
    assert replica.state().wanted == ()
    for cycle in (*cycles[AFTER:BEFORE], cycles[BEFORE]):
        for disk, content in cycle.content.items():
            expected = bytearray(content)
            if cycle is not cycles[BEFORE] and disk == "b":  # what the seed lacked came later
                start, end = LACKING[0].run.start * CLUSTER, LACKING[0].run.end * CLUSTER
                expected[start:end] = bytes(end - start)
            assert rig.content(replica, cycle.header.number, disk) == expected
    assert list(replica.verify()) == []
    replica.close()


def assert_tidy(root: Path) -> None:
    ChainStore(root).open(VM).close()
    rest = {".partial", ".merged", ".tmp", ".journal", ".seed"}
    assert [path.name for path in root.rglob("*") if path.suffix in rest] == []


def test_a_kill_at_any_call_leaves_the_replica_waiting_or_seeded(warm: Warm, prepared: Path):
    root, points = prepared.with_name("store"), 0
    for _, done in warm_program.kills(warm, ["import", str(root)], root, lambda: fresh(prepared)):
        rig = ChainRig(root)
        replica = rig.store.open(VM)
        if "imported" in done.stdout:
            assert replica.awaited() is None
        assert_all_is_well(rig, replica)
        assert_tidy(root)
        points += 1
    assert points > LEAST


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_call_that_fails_once_costs_no_more_than_the_attempt(warm: Warm, prepared: Path, error: str):
    root, seen = prepared.with_name("store"), 0
    there = [root / path.relative_to(prepared) for path in prepared.rglob("*")]
    whole = warm_program.whole(warm, ["import", str(root)], root, lambda: fresh(prepared))
    kinds: Counter[str] = Counter()
    for call in warm_program.points(whole.calls):
        kinds[call.name] += 1
        if call.name not in CALLS or kinds[call.name] % 3 != 1:
            continue
        fresh(prepared)
        inject = f"{call.name}:error={error}:when={call.number}"
        done = warm.run(["import", str(root)], inject=inject, below=root)
        assert done.status == 0, (call, done.stderr)
        if error == "EIO" or call.name in warm_program.SYNCS:  # a failed sync is never tried again
            assert "no-space" not in done.stdout
        warm_program.assert_no_sync_is_tried_again(done.calls, there)
        rig = ChainRig(root)
        assert_all_is_well(rig, rig.store.open(VM))
        assert_tidy(root)
        seen += 1
    assert seen > LEAST / 3
