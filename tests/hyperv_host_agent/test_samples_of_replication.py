"""What two real host agents measure of their replication."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperv_host_agent.sample_store import SampleStore
from tests.fakes.agent_pair import FIRST, Pair, contents, pair, spec
from tests.fakes.host_provider import eventually
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import SystemClock
from twinsite.extents import CLUSTER


class HurriedClock(SystemClock):
    """The wall's time goes on in leaps, so that a minute is soon over."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


def recorded(folder: Path) -> Callable[[], list[types_pb2.Sample]]:
    """Of the host agent with this folder: what it keeps, the open minute too."""
    path = folder / "state" / "statistics.db"

    def read() -> list[types_pb2.Sample]:
        store = SampleStore(path)
        try:
            return store.oldest(1000, 10**9, but=(0, 0))
        finally:
            store.close()

    return read


async def cap(two: Pair, rate: int) -> None:
    """Of the one VM from now on, in bytes a second."""
    held = two.at_source.assigned.assignments[0]
    held.policy.vm_rates.add(bytes_per_second=rate)
    two.provider.assign(two.source.host_id, held)
    await eventually("the cap", lambda: two.at_source.statuses[held.vm_id].rate_bytes_per_second == rate)


async def test_the_sums_of_the_samples_are_what_was_changed_and_sent(tmp_path: Path) -> None:
    clock = HurriedClock()
    async with pair(tmp_path, clock=clock) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        for _ in range(3):
            guest.write(FIRST, 0, os.urandom(4 * CLUSTER))
            await two.settled(machine.id)
        clock.ahead += 60
        await eventually("the minute to be told", lambda: two.at_source.samples)
        read = recorded(tmp_path / "a1")

        def samples() -> list[types_pb2.Sample]:
            return list({sample.start_unix: sample for sample in [*read(), *two.at_source.samples]}.values())

        def written() -> bool:
            """What the guest wrote, without the copy."""
            return (
                sum(disk.changed_bytes for sample in samples() for disk in sample.disks if disk.disk_id == FIRST)
                == 12 * CLUSTER
            )

        await eventually("the last cycle", written)
        first = two.at_source.samples[0]
        assert (first.vm_id, first.start_unix % 60) == (machine.id, 0)
        status = two.at_source.statuses[machine.id]
        assert 4 <= sum(sample.cycles for sample in samples()) <= status.cycles
        assert 0 < sum(sample.changed_bytes for sample in samples()) <= status.changed_bytes
        assert 0 < sum(sample.wire_bytes for sample in samples()) <= status.wire_bytes
        assert 0 < first.rpo_max_seconds < 70
        whole = sum(getattr(first.causes, field.name) for field in types_pb2.Causes.DESCRIPTOR.fields)
        assert first.seconds_sum == pytest.approx(whole, rel=0.01)


async def test_a_cycle_that_is_held_back_is_missed_while_it_lasts_not_when_it_ends(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        await cap(two, 2048)
        committed = two.at_source.statuses[machine.id].committed_cycle
        guest.write(FIRST, 0, os.urandom(8 * CLUSTER))  # takes minutes
        read = recorded(tmp_path / "a1")
        await eventually("missed cycles", lambda: sum(sample.missed for sample in read()) >= 4, seconds=40)
        assert two.at_source.statuses[machine.id].committed_cycle <= committed + 2
        assert max(sample.rpo_max_seconds for sample in read()) > 4


async def test_what_is_counted_since_protection_began_goes_on_after_a_restart_of_the_source(tmp_path: Path) -> None:
    began = int(SystemClock().now())
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        await eventually("a cycle to be told", lambda: two.at_source.statuses[machine.id].cycles >= 2)
        before = types_pb2.ReplicationStatus()
        before.CopyFrom(two.at_source.statuses[machine.id])
        assert began <= before.counted_since.ToMicroseconds() / 1e6 <= SystemClock().now()
        await two.restart_source()
        guest.write(FIRST, 0, os.urandom(4 * CLUSTER))
        await two.settled(machine.id)
        most = before.changed_bytes + 4 * CLUSTER
        await eventually("that too", lambda: two.at_source.statuses[machine.id].changed_bytes >= most)
        after = two.at_source.statuses[machine.id]
        assert after.counted_since == before.counted_since
        assert after.cycles > before.cycles
        assert after.wire_bytes > before.wire_bytes + 4 * CLUSTER
