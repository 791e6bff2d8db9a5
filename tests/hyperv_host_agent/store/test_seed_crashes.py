"""Reading a seed in under kill -9, I/O errors and a full disk, at every system call the store makes."""

import shutil
from pathlib import Path

import pytest

from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import seed_workload, strace
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import send
from tests.fakes.seed_workload import AFTER, BEFORE, LACKING, VM, history, prepare, read_in
from twinsite.extents import CLUSTER

pytestmark = pytest.mark.system  # some hundred processes

SCRIPT = Path(seed_workload.__file__)
CALLS = ("openat", "pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "unlink")


@pytest.fixture
def prepared(quick_path: Path) -> Path:
    strace.require_strace()
    prepare(quick_path / "prepared")
    return quick_path / "prepared"


def fresh(prepared: Path) -> Path:
    """The prepared store again."""
    root = prepared.with_name("store")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root)
    return root


def touched(root: Path) -> list[Path]:
    """Every path that reading in touches."""
    vm = root / VM
    names = ("seed.json", "wanted.json", "wanted.json.copy", "merge.json")
    paths = [vm, vm / "points", *(vm / f"{name}{end}" for name in names for end in ("", ".tmp"))]
    paths += [vm / "points" / f"{cycle:06}.json{end}" for cycle in range(1, BEFORE + 1) for end in ("", ".tmp")]
    endings = ("qcow2", "qcow2.merged", "fp", "fp.merged", "fp.seed")
    return paths + [vm / disk / name for disk in ("a", "b") for name in ("", *(f"000001.{end}" for end in endings))]


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


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_leaves_the_replica_waiting_or_seeded(prepared: Path, call: str):
    root = fresh(prepared)
    points = 0
    for said in strace.kill_points(SCRIPT, ["import", str(root)], call=call, paths=touched(root)):
        rig = ChainRig(root)
        replica = rig.store.open(VM)
        if "imported" in said:
            assert replica.awaited() is None
        assert_all_is_well(rig, replica)
        assert_tidy(root)
        fresh(prepared)
        points += 1
    assert points > 2 or call in {"ftruncate", "fdatasync"}


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["pwrite64", "fsync", "rename", "ftruncate"])
def test_a_call_that_fails_once_costs_no_more_than_the_attempt(prepared: Path, call: str, error: str):
    number, hit = 1, True
    while hit:
        root = fresh(prepared)
        inject = f"{call}:error={error}:when={number}"
        done = strace.run(SCRIPT, ["import", str(root)], inject=inject, paths=touched(root))
        assert done.returncode == 0, done.stderr
        hit = any(word in done.stdout for word in ("no-space", "write-failed", "not-opened"))
        if error == "EIO" or call == "fsync":  # a failed sync is never tried again
            assert "no-space" not in done.stdout
        rig = ChainRig(root)
        assert_all_is_well(rig, rig.store.open(VM))
        assert_tidy(root)
        number += {"pwrite64": 3, "fsync": 2}.get(call, 1)
    assert number > 2
