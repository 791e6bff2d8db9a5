"""Compression costs what the link makes it worth, and noise is spared it."""

import os
import sysconfig
from pathlib import Path

import pytest
import zstandard

from hyperv_host_agent.packing import Packed, Packer
from tests.fakes.agent_pair import FIRST, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.wire_tap import wire_tap
from twinsite.extents import CLUSTER, Run
from twinsite.units import MiB


def programs(size: int) -> bytes:
    """What a system disk is full of."""
    found = b"".join(path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    return (found * (size // len(found) + 1))[:size]


def packed(packer: Packer, data: bytes) -> Packed:
    made = Packed(0)
    for start in range(0, len(data) // CLUSTER, 32):
        packer.pack(made, Run(start, 32), data[start * CLUSTER : (start + 32) * CLUSTER], None)
    return made


async def test_a_link_that_becomes_slow_is_given_less_to_carry_without_a_restart(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        size = 8 * MiB
        machine = spec(size=size)
        guest = two.add(machine, {})
        await two.protect(machine, address=tap.address, frequency=1)
        await two.settled(machine.id)

        async def carried(offset: int) -> int:
            """Bytes on the wire for the same content, moved a little."""
            before = tap.sent
            guest.write(FIRST, 0, programs(size + MiB)[offset : offset + 4 * MiB])
            await two.settled(machine.id)
            return tap.sent - before

        await carried(0)
        held = two.at_source.assigned.assignments[0]
        held.policy.vm_rates.add(bytes_per_second=400_000)
        two.provider.assign(two.source.host_id, held)
        await eventually("the cap", lambda: two.at_source.statuses[machine.id].rate_bytes_per_second)
        slow = [await carried(number * 4096) for number in range(1, 9)]
        quick = Packer()
        quick.level = 1
        # Not against what was sent before the cap: on a machine that is busy a link is slow from the start.
        assert slow[-1] < 0.97 * packed(quick, programs(size + MiB)[: 4 * MiB]).frame_bytes
        assert (await newest(two.target, machine.id))[1][FIRST] == guest.content(FIRST)


async def test_compression_is_switched_off_and_on_while_it_runs(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, wire_tap(two.target.address) as tap:
        machine = spec()
        guest = two.add(machine, {})
        await two.protect(machine, address=tap.address)
        await two.settled(machine.id)
        held = two.at_source.assigned.assignments[0]
        sent = {}
        for number, on in enumerate([True, False, True]):
            held.policy.compression = on
            version = two.at_source.held
            two.provider.assign(two.source.host_id, held)
            await eventually("the policy", lambda version=version: two.at_source.held > version)
            before = tap.sent
            guest.write(FIRST, 0, programs(5 * MiB)[number * 100 :][: 4 * MiB])
            await two.settled(machine.id)
            sent[number] = tap.sent - before
        assert sent[0] < 2 * MiB
        assert sent[1] > 4 * MiB
        assert sent[2] < 2 * MiB


@pytest.mark.parametrize("level", [1, 3, 6, 9])
def test_noise_hardly_costs_more_at_a_high_level_and_what_follows_it_is_compressed(level: int) -> None:
    noise, text = os.urandom(16 * MiB), programs(4 * MiB)
    packer = Packer()
    packer.level = level
    made = packed(packer, text + noise + text)
    clusters = len(text) // CLUSTER
    raw = CLUSTER + 14
    assert set(made.lengths[clusters:-clusters]) == {raw}
    assert max(made.lengths[:clusters]) < raw
    assert made.lengths[-clusters:] == made.lengths[:clusters]  # from the first cluster on


class Counting:
    """A compressor that counts what it is given."""

    def __init__(self, level: int) -> None:
        self._inner = zstandard.ZstdCompressor(level=level, write_checksum=True)
        self.count = 0

    def compress(self, data: bytes) -> bytes:
        self.count += 1
        return self._inner.compress(data)


def test_most_of_noise_never_sees_the_compressor() -> None:
    packer, compressor = Packer(), Counting(9)
    packer.level = 9
    packer._compressors[9] = compressor  # type: ignore[assignment]
    packed(packer, os.urandom(32 * MiB))
    assert compressor.count <= 512 // 12
    compressor.count = 0
    packed(packer, programs(8 * MiB))
    assert compressor.count == 128
