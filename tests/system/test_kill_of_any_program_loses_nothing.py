"""kill -9 of any of the five programs at any moment of the demonstration's path, then a restart: no person is needed,
nothing acknowledged is lost, no job is lost or done twice."""

import random
import time

import pytest

from demo.lab import Lab, until
from tests.system.promises import (
    ended,
    fail_over,
    guest_at,
    new_point,
    nothing_of_the_point_is_lost,
    patient,
    start_job,
    succeeded,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(420)]


@pytest.mark.parametrize("victim", ["coordinator", "provider-a", "provider-b", "host-a", "host-b"])
def test_a_killed_program_comes_back_and_everything_goes_on(lab: Lab, victim: str) -> None:
    chance = random.Random(victim)
    source = guest_at(lab, "a")

    def kill_and_restart() -> None:
        time.sleep(chance.uniform(0.0, 1.5))
        lab[victim].kill()
        time.sleep(chance.uniform(0.0, 1.0))
        lab[victim].start()

    def act(*arguments: str) -> None:
        job = start_job(lab, *arguments)
        kill_and_restart()
        succeeded(lab, job)

    act("vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
    for _ in range(2):  # while cycles run
        kill_and_restart()
        new_point(lab)
    act("vm", "test", "web01")
    tests = until("the test to be shown", lambda: (patient(lab, "vm", "show", "web01") or {}).get("protection"))[
        "tests"
    ]
    assert len(tests) == 1
    copy = guest_at(lab, "b", "test")
    assert until("the test copy to boot", copy.boot)["problems"] == []
    act("vm", "test-cleanup", "web01")
    new_point(lab)

    lab.login()
    job = start_job(lab, "vm", "failover", "web01", "--confirm", "web01", "--reason", "test")
    kill_and_restart()
    nothing_of_the_point_is_lost(lab, source, succeeded(lab, job))

    kinds = [job["kind"] for job in lab.json("job", "list")["items"]]
    assert len(kinds) == len(set(kinds)), f"a job was done twice: {kinds}"


def test_everything_killed_at_once_comes_back_by_itself(lab: Lab) -> None:
    chance = random.Random("everything")
    source = guest_at(lab, "a")
    job = start_job(lab, "vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y")
    time.sleep(chance.uniform(0.2, 2.0))
    for program in lab.programs.values():
        program.kill()
    for program in lab.programs.values():
        program.start(wait=False)
    for program in lab.programs.values():
        program.ready()
    assert ended(lab, job)["state"] == "succeeded"
    new_point(lab)
    nothing_of_the_point_is_lost(lab, source, fail_over(lab))
