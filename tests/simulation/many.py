"""Many seeds on several processors."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.scenario import run

Result = tuple[int, int, str]  # seed, recovery points, what went wrong


def one(seed: int) -> Result:
    try:
        return seed, run(seed).recoverable, ""
    except Exception as error:  # noqa: BLE001  # whatever it is, the seed is the finding
        return seed, 0, f"{type(error).__name__}: {error}"


def results(seeds: Iterable[int]) -> Iterator[Result]:
    """In the order of the seeds."""
    spawned = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawned) as pool:
        yield from pool.map(one, seeds, chunksize=10)
