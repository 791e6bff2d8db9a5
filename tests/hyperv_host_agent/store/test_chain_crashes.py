"""The store on disk under kill -9, I/O errors and a full disk, at every system call it makes."""

import shutil
from pathlib import Path

import pytest

from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.replica import ChainReplica
from tests.fakes import store_workload, strace
from tests.fakes.chain_rig import ChainRig
from tests.fakes.store_workload import BEFORE, KEPT, MANY, VM, history, prepare, receive

pytestmark = pytest.mark.system  # a few hundred processes

SCRIPT = Path(store_workload.__file__)
LEFTOVERS = {".partial", ".merged", ".tmp", ".journal"}
STEPS = {"pwrite64": 4, "fsync": 2, "unlink": 2}  # there are many of them in the longest workload
CALLS = ("pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "unlink")


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
    """Every path that receiving or maintaining may touch."""
    vm = root / VM
    names = [f"{cycle:06}" for cycle in range(1, MANY + 2)]
    paths = [root, vm, vm / "points", vm / "pins", vm / "receiving.journal"]
    documents = ("replica.json", "merge.json", "chains.json", "chains.json.copy", "pins/user")
    paths += [vm / f"{name}{ending}" for name in documents for ending in ("", ".tmp")]
    for disk in ("a", "b"):
        endings = ("qcow2", "qcow2.partial", "qcow2.merged", "fp", "fp.merged", "view.qcow2", "view.qcow2.partial")
        paths += [vm / disk, *(vm / disk / f"{name}.{ending}" for name in names for ending in endings)]
    return paths + [vm / "points" / f"{name}.json{tmp}" for name in names for tmp in ("", ".tmp")]


def assert_points(rig: ChainRig, replica: ChainReplica, count: int = BEFORE) -> None:
    cycles = history(count)
    for point in replica.points():
        cycle = cycles[point.cycle - 1]
        assert cycle.header.id == point.id
        for disk, content in cycle.content.items():
            assert rig.content(replica, point.cycle, disk) == content
    assert list(replica.verify()) == []


def reopened(root: Path) -> tuple[ChainRig, ChainReplica]:
    rig = ChainRig(root)
    return rig, rig.store.open(VM)


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_while_receiving_loses_nothing_that_was_acknowledged(prepared: Path, call: str):
    cycle = history()[BEFORE]
    root = fresh(prepared)
    for said in strace.kill_points(SCRIPT, ["receive", str(root)], call=call, paths=touched(root)):
        rig, replica = reopened(root)
        state = replica.state()
        assert state.committed is not None
        synced = max([0, *(int(line.split()[1]) for line in said.splitlines() if line.startswith("synced"))])
        if f"committed {BEFORE + 1}" in said:
            assert state.committed.number == BEFORE + 1
        if state.committed.number == BEFORE:
            assert (state.unfinished.durable if state.unfinished else 0) >= synced
        receive(replica, cycle)
        assert [point.cycle for point in replica.points()] == list(range(1, BEFORE + 2))
        assert_points(rig, replica)
        replica.close()
        assert_tidy(root)
        fresh(prepared)


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_while_maintaining_leaves_every_kept_point_whole(prepared: Path, call: str):
    root = fresh(prepared)
    for said in strace.kill_points(SCRIPT, ["maintain", str(root)], call=call, paths=touched(root)):
        rig, replica = reopened(root)
        assert {point.cycle for point in replica.points()} >= {KEPT, BEFORE}
        assert_points(rig, replica)
        replica.maintain(keep=[KEPT])
        assert [point.cycle for point in replica.points()] == [KEPT, BEFORE]
        assert [path.name for path in rig.layers("a")] == ["000005.qcow2", "000006.qcow2", "000007.qcow2"]
        receive(replica, history()[BEFORE])
        assert_points(rig, replica)
        replica.close()
        assert_tidy(root)
        assert "maintained" not in said or "True" in said
        fresh(prepared)


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_call_while_packs_are_made_used_and_thinned_out_leaves_every_kept_point_whole(
    prepared: Path, call: str
):
    many = prepared.with_name("many")
    prepare(many, MANY)
    root = fresh(many)
    for said in strace.kill_points(
        SCRIPT, ["pack", str(root)], call=call, paths=touched(root), step=STEPS.get(call, 1)
    ):
        rig, replica = reopened(root)
        points = {point.cycle: point for point in replica.points()}
        assert points.keys() >= {KEPT, KEPT + 5, MANY}
        assert "detached" in said or len(points) == MANY
        if "attached 2" in said and "attached 8" not in said:
            assert points[2].pinned_by == ("user",)
        assert_points(rig, replica, MANY)
        replica.detach("user")
        replica.maintain(keep=[KEPT, KEPT + 5])
        assert [point.cycle for point in replica.points()] == [KEPT, KEPT + 5, MANY]
        assert_points(rig, replica, MANY)
        replica.close()
        assert_tidy(root)
        fresh(many)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["pwrite64", "fsync", "fdatasync", "rename", "ftruncate"])
@pytest.mark.parametrize("work", ["receive", "maintain", "stay"])
def test_a_call_that_fails_once_costs_no_point_and_no_restart(prepared: Path, call: str, error: str, work: str):
    number, step, hit = 1, {"pwrite64": 3, "fsync": 2}.get(call, 1), True
    while hit:
        root = fresh(prepared)
        words = ["receive", str(root), "stay"] if work == "stay" else [work, str(root)]
        done = strace.run(SCRIPT, words, inject=f"{call}:error={error}:when={number}", paths=touched(root))
        assert done.returncode == 0, done.stderr
        hit = any(word in done.stdout for word in ("no-space", "write-failed", "not-opened", "False"))
        if error == "EIO" or call in {"fsync", "fdatasync"}:  # a failed sync is never tried again
            assert "no-space" not in done.stdout
        else:
            assert "write-failed" not in done.stdout
        rig, replica = reopened(root)
        state = replica.state()
        assert state.committed is not None
        assert state.committed.number == BEFORE + (work != "maintain")
        assert_points(rig, replica)
        replica.close()
        number += step
    assert number > 1 + step or call in {"ftruncate", "fdatasync"}


def assert_tidy(root: Path) -> None:
    """No crash left anything behind."""
    ChainStore(root).open(VM).close()
    assert [path.name for path in root.rglob("*") if path.suffix in LEFTOVERS or ".view." in path.name] == []
