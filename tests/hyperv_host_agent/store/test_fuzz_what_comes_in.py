"""Frames from a peer, seeds from a medium, documents and layers from a disk that are not what they should be."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import fuzz_workload
from tests.fakes.fuzz_workload import MUTANTS


@pytest.mark.timeout(300)
def test_a_hundred_thousand_mutants_meet_typed_errors_only_in_little_memory(quick_path: Path):
    command = [sys.executable, fuzz_workload.__file__, str(quick_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    read, refused = 0, {}
    for line in done.stdout.splitlines():
        kind, count, errors = line.split()
        read += int(count)
        refused[kind] = int(errors)
    assert read >= 100_000
    assert refused.keys() == MUTANTS.keys()
    # A journal that is cut off counts up to there, and what is wrong with a sealed document is for its reader to say.
    assert [kind for kind in refused if not refused[kind]] == ["document", "journal"]
    assert [kind for kind in refused if refused[kind] == MUTANTS[kind]] == []
