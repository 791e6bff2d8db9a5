"""Every kind of call the store makes, failing once with each error a file system has: nothing is lost, all goes on."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.fakes import store_workload, warm_program
from tests.fakes.chain_rig import ChainRig
from tests.fakes.store_workload import VM, WORKS
from tests.fakes.warm_program import SYNCS, Call, Warm
from tests.hyperv_host_agent.store.test_chain_crashes import PROMISES, Crashed, finish

pytestmark = pytest.mark.system  # some hundred processes

EVERY: Final = os.environ.get("TWINSITE_EVERY_CALL") == "1"  # `make soak`
MOST: Final = 4  # otherwise: of one kind that fail in turn, in one work: the first, the last and some between
FAULTS: Final = ("EIO", "ENOSPC", "short")
LASTS: Final = 2  # further calls that fail after the first
LEAST: Final = 12  # faults of one sort in any work


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with store_workload.started() as program:
        yield program


def chosen(calls: Sequence[Call]) -> list[Call]:
    """Some of every kind, and not only on one file."""
    if EVERY:
        return warm_program.points(calls)
    kinds: dict[str, list[Call]] = defaultdict(list)
    for call in warm_program.points(calls):
        kinds[call.name].append(call)
    return [
        found[place * (len(found) - 1) // max(1, MOST - 1)] if len(found) > MOST else found[place]
        for found in kinds.values()
        for place in range(min(MOST, len(found)))
    ]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WORKS)
@pytest.mark.timeout(3600 if EVERY else 300)
def test_a_call_that_fails_is_a_named_error_and_costs_nothing_else(warm: Warm, quick_path: Path, name: str, fault: str):
    work, root, prepared = WORKS[name], quick_path / "store", quick_path / "prepared"
    work.prepare(prepared)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)

    there = [root / path.relative_to(prepared) for path in prepared.rglob("*")]
    calls = chosen(warm_program.whole(warm, [name, str(root)], root, fresh).calls)
    count = 0
    for call in calls:
        if fault == "short" and call.name != "pwrite64":
            continue
        count += 1
        for reopen in ([], ["reopen"]) if fault == "EIO" and call.name in SYNCS else ([],):
            fresh()
            # Of a short write half is taken, or nothing of it: that strace can do.
            error = "retval=0" if fault == "short" else f"error={fault}"
            short = [f"short={call.number}"] if fault == "short" and count % 2 else []
            inject = "" if short else f"{call.name}:{error}:when={call.number}"
            done = warm.run([name, str(root), *reopen, *short], inject=inject, below=root)
            assert done.status == 0, (call, done.stdout, done.stderr)
            said = done.stdout.splitlines()
            assert said[-1] == "done", call
            failed = [line.split()[1] for line in said if line.startswith("failed")]
            if fault == "short":
                assert failed == [], (call, said)
            elif fault == "EIO" or call.name in SYNCS:  # what a sync says is never a matter of space
                assert "NoSpace" not in failed, (call, said)
            else:
                assert set(failed) <= {"NoSpace"}, (call, said)
            warm_program.assert_no_sync_is_tried_again(done.calls, there)
            holds(name, root, said, count)
    assert count >= (4 if fault == "short" else LEAST)


@pytest.mark.parametrize("name", ["receive", "repair"])
@pytest.mark.timeout(300)
def test_once_a_fault_that_lasted_is_over_the_open_replica_goes_on_by_itself(warm: Warm, quick_path: Path, name: str):
    work, root, prepared = WORKS[name], quick_path / "store", quick_path / "prepared"
    work.prepare(prepared)

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)

    there = [root / path.relative_to(prepared) for path in prepared.rglob("*")]
    calls = [call for call in warm_program.whole(warm, [name, str(root)], root, fresh).calls if call.name in SYNCS]
    for call in calls:
        fresh()
        done = warm.run(
            [name, str(root)], inject=f"{call.name}:error=EIO:when={call.number}..{call.number + LASTS}", below=root
        )
        assert done.status == 0, (call, done.stdout, done.stderr)
        said = done.stdout.splitlines()
        assert said[-1] == "done", call
        warm_program.assert_no_sync_is_tried_again(done.calls, there)
        holds(name, root, said, call.number)
    assert len(calls) >= LEAST


def holds(name: str, root: Path, said: list[str], attach: int) -> None:
    """What was promised holds after a fault as after a crash."""
    promise = PROMISES[name]
    if promise.left:
        rig = ChainRig(root)
        replica = rig.store.open(VM)
        assert [point.cycle for point in replica.points()] == promise.left
        replica.close()
        del rig, replica
    finish(Crashed(name, root, said), promise, attach)
