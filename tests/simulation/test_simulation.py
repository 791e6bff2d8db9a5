import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.faults import PLANTED
from tests.simulation.many import results
from tests.simulation.scenario import run
from tests.simulation.world import Violation

SEEDS = 500
HUNT = 400  # seeds in which a planted fault has to show
ROOT = Path(__file__).parents[2]
CORPUS = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "corpus.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.timeout(900)  # a minute of two free processors
def test_whatever_goes_wrong_every_point_is_an_instant_of_the_source_and_all_heals():
    found = list(results(range(SEEDS)))
    failed = [f"seed {seed}: {problem}" for seed, _, problem in found if problem]
    assert not failed, "\n".join([*failed[:9], "python -m tests.simulation <seed> tells the story"])
    assert sum(points for _, points, _ in found) > SEEDS * 30  # it was a test of something


@pytest.mark.parametrize("seed", CORPUS)
def test_a_seed_that_once_failed_passes(seed):
    run(seed)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_noticed(name):
    for seed in range(HUNT):
        try:
            run(seed, PLANTED[name])
        except (Violation, ValueError, AssertionError):
            return
    pytest.fail(f"{HUNT} seeds ran as if nothing were wrong")


def test_equal_seeds_are_equal_runs_and_others_are_not():
    assert run(7) == run(7)
    assert run(7).trace != run(8).trace


def test_a_seed_is_the_same_run_in_every_process():
    script = "from tests.simulation.scenario import run; print(run(11).trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "4711")
    }
    assert traces == {run(11).trace}
