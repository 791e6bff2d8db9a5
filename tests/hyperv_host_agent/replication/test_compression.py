"""The level of compression follows link, processor and content."""

import itertools
import random
from dataclasses import dataclass, field

import pytest

from hyperv_host_agent.replication.compression import FIRST_COPY, FIRST_CYCLE, LEVELS, Compression, Part

MB = 1_000_000
REAL = {0: 1.0, 1: 0.31, 3: 0.296, 6: 0.277, 9: 0.273}  # programs and libraries, measured
SPEED = {0: 9000 * MB, 1: 374 * MB, 3: 307 * MB, 6: 100 * MB, 9: 62 * MB}  # of one thread, measured


@dataclass
class World:
    """A host, its link and its content, as they really are."""

    link: float  # bytes a second
    threads: int = 2
    slower: float = 1.0
    share: float = 1.0  # of the content that is no noise
    noise: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def part(self, level: int, *, beside: bool, content: int = 64 * MB) -> Part:
        def about() -> float:
            return self.chance.uniform(1 - self.noise, 1 + self.noise)

        shrinks = int(content * self.share) if level else 0
        frames = content - int(shrinks * (1 - REAL[level]))
        pack = shrinks / SPEED[level] * self.slower * about()
        return Part(level, content, frames, shrinks, pack, frames / self.link * about(), beside)

    def seconds(self, level: int, *, beside: bool) -> float:
        part = World(self.link, self.threads, self.slower, self.share).part(level, beside=beside)
        pack = part.pack_seconds / self.threads
        return max(pack, part.way_seconds) if beside else pack + part.way_seconds

    def settle(self, compression: Compression, *, beside: bool, parts: int = 40) -> list[int]:
        levels = []
        for _ in range(parts):
            level = compression.level(beside=beside)
            levels.append(level)
            compression.learn(self.part(level, beside=beside))
        return levels


def test_nothing_known_starts_with_the_fast_level_for_copies_and_the_usual_one_for_cycles() -> None:
    compression = Compression(2)
    assert (compression.level(beside=True), compression.level(beside=False)) == (FIRST_COPY, FIRST_CYCLE)


@pytest.mark.parametrize("beside", [True, False], ids=["copy", "cycle"])
@pytest.mark.parametrize("link", [0.1, 1, 10, 125, 400, 1250, 5000])
@pytest.mark.parametrize("slower", [0.5, 1, 4])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0], ids=["programs", "mixed", "noise"])
def test_what_it_settles_on_is_nearly_the_fastest_there_is(
    beside: bool, link: float, slower: float, share: float
) -> None:
    world = World(link * MB, slower=slower, share=share)
    compression = Compression(2)
    settled = world.settle(compression, beside=beside, parts=80)[20:]
    taken = sum(world.seconds(level, beside=beside) for level in settled) / len(settled)
    assert taken <= 1.2 * min(world.seconds(level, beside=beside) for level in LEVELS)


def test_a_slow_link_is_worth_the_highest_level_and_a_fast_one_none() -> None:
    assert World(0.5 * MB).settle(Compression(2), beside=True)[-1] == 9
    assert World(20_000 * MB).settle(Compression(2), beside=False)[-1] == 0
    assert World(900 * MB, threads=1, slower=3).settle(Compression(1), beside=True)[-1] == 0


def test_it_follows_a_link_and_a_content_that_change() -> None:
    compression = Compression(2)
    assert World(2 * MB).settle(compression, beside=True)[-1] >= 6
    assert World(5000 * MB).settle(compression, beside=True)[-1] <= 1
    assert World(2 * MB).settle(compression, beside=True)[-1] >= 6
    World(20_000 * MB, share=0.0).settle(compression, beside=True, parts=100)
    assert World(20 * MB).settle(compression, beside=True, parts=60)[-1] >= 3


@pytest.mark.parametrize("link", [3, 30, 125, 300, 700])
def test_a_noisy_measurement_does_not_make_it_dither(link: float) -> None:
    levels = World(link * MB, noise=0.25).settle(Compression(2), beside=True, parts=200)[20:]
    changes = sum(one != other for one, other in itertools.pairwise(levels))
    assert changes <= 15


def test_a_disk_of_stripes_is_judged_as_a_whole() -> None:
    compression = Compression(2)
    programs, noise = World(20 * MB), World(20 * MB, share=0.0)
    for number in range(200):
        world = noise if number % 5 > 2 else programs
        compression.learn(world.part(compression.level(beside=True), beside=True, content=16 * MB))
    assert compression.level(beside=True) >= 6


def test_copies_and_cycles_have_levels_of_their_own() -> None:
    compression = Compression(2)
    World(0.5 * MB).settle(compression, beside=True)
    assert compression.level(beside=True) == 9
    assert compression.level(beside=False) == FIRST_CYCLE


def test_a_small_part_says_nothing() -> None:
    compression = Compression(2)
    for _ in range(50):
        compression.learn(Part(3, 64_000, 64_000, 64_000, 5.0, 0.0, beside=False))
    assert compression.level(beside=False) == FIRST_CYCLE
