"""No jump of the wall clock, restart or crash makes a lock end early, and quiet time makes it end."""

import random
from pathlib import Path

import pytest

from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.lock_clock import FILE, LockClock
from tests.fakes.boot_clock import BootClock
from tests.fakes.chain_rig import flip


@pytest.mark.parametrize("seed", range(60))
def test_it_never_runs_faster_than_real_time_whatever_is_done_to_the_clocks(quick_path: Path, seed: int):
    draw, host = random.Random(seed), BootClock()
    clock, real, shown = LockClock(quick_path, read=host.read), 0.0, 0.0
    for _ in range(200):
        match draw.randrange(7):
            case 0 | 1:
                seconds = draw.choice((1.0, 20.0, 3600.0, 86400.0))
                host.advance(seconds)
                real += seconds
            case 2:
                host.set_wall(draw.choice((-1e7, -3600.0, 3600.0, 1e7)))
            case 3:
                clock = LockClock(quick_path, read=host.read)  # also what a crash leaves: nothing is written at the end
            case 4:
                seconds = draw.choice((5.0, 1e6))
                host.reboot(seconds)
                real += seconds
                clock = LockClock(quick_path, read=host.read)
            case 5:
                now = clock.now()
                assert now <= real
                if now < shown:  # a crash may cost what was counted since it was last kept, no more
                    assert shown - now <= 30.0
                shown = now
            case 6:
                clock.save()


def test_time_that_passes_quietly_counts_also_while_the_agent_was_away(quick_path: Path):
    host = BootClock()
    LockClock(quick_path, read=host.read).save()
    host.advance(86400)
    assert LockClock(quick_path, read=host.read).now() == 86400


def test_of_a_reboot_only_the_time_it_took_is_lost(quick_path: Path):
    host = BootClock()
    clock = LockClock(quick_path, read=host.read)
    host.advance(5000)
    clock.now()
    host.reboot(1e6)
    clock = LockClock(quick_path, read=host.read)
    assert clock.now() == 5000
    host.advance(100)
    assert clock.now() == 5100


@pytest.mark.parametrize("name", [FILE, f"{FILE}.copy"])
def test_one_damaged_copy_costs_nothing_and_two_start_where_the_youngest_lock_was_made(quick_path: Path, name: str):
    host = BootClock()
    clock = LockClock(quick_path, read=host.read)
    host.advance(5000)
    clock.save()
    flip(quick_path / name, 40)
    assert clock.documents()[0].problem() is not None
    assert LockClock(quick_path, read=host.read).now() == 5000
    assert clock.documents()[0].problem() is None
    for path in (quick_path / FILE, copy_path(quick_path / FILE)):
        flip(path, 40)
    clock = LockClock(quick_path, read=host.read)
    assert clock.now() == 0
    clock.at_least(4000)
    assert LockClock(quick_path, read=host.read).now() == 4000
