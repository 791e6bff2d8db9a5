"""A link that is cut, and ends that restart: what was durable is not sent again, whatever kind of cycle it was."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperv_host_agent.replication.sender import WINDOW_BYTES
from tests.fakes.agent_pair import FIRST, Pair, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.wire_tap import WireTap, wire_tap
from twinsite.extents import CLUSTER
from twinsite.units import MiB

SIZE = 128 * MiB
CUTS = 20
AWAY = 2 * MiB  # in the buffers of both programs and of the tap when it cuts


def cut_at(tap: WireTap, *marks: int, cut: Callable[[], None] | None = None) -> list[int]:
    """Cut once so many bytes have passed, counted from now; the marks that are left."""
    left = [tap.sent + mark for mark in marks]

    def look() -> None:
        if left and tap.sent > left[0]:
            left.pop(0)
            (cut or tap.cut)()

    tap.on_bytes = look
    return left


async def protected(two: Pair, tap: WireTap, first: bytes) -> tuple[str, Callable[[int, bytes], None]]:
    """A VM at its first point, and how its guest writes."""
    machine = spec(size=SIZE)
    guest = two.add(machine, {FIRST: first})
    await two.protect(machine, address=tap.address, compression=False)
    await two.settled(machine.id)
    return machine.id, lambda offset, data: guest.write(FIRST, offset, data)


async def arrived(two: Pair, vm_id: str) -> None:
    await two.settled(vm_id)
    source = two.hypervisor.change_source(vm_id)
    assert (await newest(two.target, vm_id))[1][FIRST] == source.content(FIRST)  # type: ignore[attr-defined]


@pytest.mark.timeout(180)
async def test_twenty_cuts_in_one_cycle_cost_at_most_a_window_each_and_it_arrives(tmp_path: Path) -> None:
    async with pair(tmp_path, spool_memory=8 * MiB) as two, wire_tap(two.target.address) as tap:
        vm_id, write = await protected(two, tap, b"")
        cycle = two.at_target.points[vm_id][-1].cycle
        step = SIZE // CUTS
        before = tap.sent
        left = cut_at(tap, *range(step, SIZE, step))
        write(0, os.urandom(SIZE))
        await eventually("all the cuts", lambda: not left, seconds=90)
        found = await two.replicated(vm_id, beyond=cycle)
        sent = tap.sent - before
        assert found == cycle + 1  # one cycle it was, from the spool of one instant
        assert sent < SIZE + CUTS * (WINDOW_BYTES + AWAY)
        # What is sent again is what was not yet durable: two syncs' worth, far less than the window.
        assert sent < SIZE + CUTS * 2 * (16 * MiB + AWAY)
        await arrived(two, vm_id)


async def test_a_cycle_goes_on_at_a_target_that_restarted(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        vm_id, write = await protected(two, tap, b"")
        cycle = two.at_target.points[vm_id][-1].cycle
        before = tap.sent

        def away() -> None:
            tap.open = False
            tap.cut()

        left = cut_at(tap, SIZE * 3 // 4, cut=away)
        write(0, os.urandom(SIZE))
        await eventually("the cut", lambda: not left)
        await two.restart_target()
        tap.open = True
        assert await two.replicated(vm_id, beyond=cycle) == cycle + 1
        assert tap.sent - before < SIZE + WINDOW_BYTES + 2 * AWAY
        await arrived(two, vm_id)


async def test_a_copy_of_scattered_clusters_resumes_by_cluster(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        content = b"".join(os.urandom(CLUSTER) + bytes(CLUSTER) for _ in range(SIZE // CLUSTER // 2))
        left = cut_at(tap, *range(8 * MiB, SIZE // 2, 8 * MiB))
        vm_id, _ = await protected(two, tap, content)
        assert not left
        assert tap.sent < SIZE // 2 + 8 * 2 * (16 * MiB + AWAY)
        await arrived(two, vm_id)
