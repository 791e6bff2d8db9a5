"""Whatever of its memory a source or a target loses, the disk is never sent a second time."""

import os
import shutil
from pathlib import Path

import pytest

from hyperv_host_agent.replication.cycle import Wanted
from tests.fakes.agent_pair import FIRST, SECOND, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.wire_tap import wire_tap
from twinsite.api.types.v1 import types_pb2
from twinsite.extents import CLUSTER, Run
from twinsite.units import MiB

SIZE = 32 * MiB
LITTLE = 1 * MiB
REPLICATING = types_pb2.REPLICATION_STATE_REPLICATING


def forget(folder: Path, what: str) -> None:
    """What a source keeps of its VM, gone or damaged while the agent is down."""
    (kept,) = (folder / "a1" / "state" / "sources").iterdir()
    match what:
        case "everything":
            shutil.rmtree(kept)
        case "the state":
            (kept / "sender.json").unlink()
        case "the index":
            shutil.rmtree(kept / "fingerprints")
        case "a piece of the index":
            for file in kept.glob("fingerprints/*.fp"):
                os.truncate(file, file.stat().st_size - 16)


@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "untracked"])
@pytest.mark.parametrize("what", ["everything", "the state", "the index", "a piece of the index"])
async def test_a_source_that_lost_its_memory_sends_what_differs(tmp_path: Path, what: str, tracked: bool) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec(size=SIZE)
        guest = two.add(machine, {FIRST: os.urandom(SIZE), SECOND: contents()[SECOND]})
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        points = [point.cycle for point in two.at_target.points[machine.id]]

        def meanwhile() -> None:
            forget(tmp_path, what)
            guest.write(FIRST, 7 * CLUSTER, b"while nobody looked")
            if not tracked:
                guest.lose_tracking()

        await two.restart_source(meanwhile=meanwhile)
        before = tap.sent
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1] == {disk: guest.content(disk) for disk in (FIRST, SECOND)}
        assert tap.sent - before < LITTLE
        assert set(points[-1:]) <= {point.cycle for point in two.at_target.points[machine.id]}
        await eventually("all to be well", lambda: two.at_source.statuses[machine.id].state == REPLICATING)


async def test_a_target_that_was_restored_from_an_older_copy_gets_what_it_lacks(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec(size=SIZE)
        guest = two.add(machine, {FIRST: os.urandom(SIZE)})
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        store, older = tmp_path / "b1" / "store", tmp_path / "older"
        await two.restart_target(meanwhile=lambda: shutil.copytree(store, older))
        for round_ in range(4):
            guest.write(FIRST, round_ * 20 * CLUSTER, os.urandom(CLUSTER))
            await two.settled(machine.id)

        def restore() -> None:
            shutil.rmtree(store)
            older.rename(store)

        await two.restart_target(meanwhile=restore)
        before = tap.sent
        guest.write(FIRST, SIZE - CLUSTER, b"afterwards")
        await two.settled(machine.id)
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)
        assert tap.sent - before < LITTLE


async def test_a_fetch_that_is_cut_begins_anew(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec(size=SIZE)
        guest = two.add(machine, {FIRST: os.urandom(SIZE)})
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        cuts = [2000, 1000]

        def cut() -> None:
            if cuts and tap.received > at + cuts[-1]:
                cuts.pop()
                tap.cut()

        at = tap.received
        await two.restart_source(meanwhile=lambda: forget(tmp_path, "everything"))
        tap.on_bytes = cut
        before = tap.sent
        guest.write(FIRST, 0, b"changed")
        await two.settled(machine.id)
        assert not cuts
        assert tap.sent - before < LITTLE
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)


async def test_clusters_the_target_lacks_are_sent_though_nothing_changed(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec(size=SIZE)
        guest = two.add(machine, {FIRST: os.urandom(SIZE // 2)})
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        held = await two.target.targets.receptions.get(machine.id)
        lacking = (Wanted(FIRST, Run(5, 3)), Wanted(FIRST, Run(SIZE // CLUSTER - 2, 2)), Wanted(SECOND, Run(0, 1)))
        await held.held.run(held.held.replica.want, lacking)
        before = tap.sent
        guest.write(FIRST, 6 * CLUSTER, b"one of them changed too")
        await eventually("all of them to come", lambda: not held.held.replica.wanted())
        await two.settled(machine.id)
        assert 3 * CLUSTER < tap.sent - before < LITTLE
        assert (await newest(two.target, machine.id))[1] == {disk: guest.content(disk) for disk in (FIRST, SECOND)}
