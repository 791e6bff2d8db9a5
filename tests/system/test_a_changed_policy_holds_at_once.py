"""What an administrator says of a pair is what its hosts do, without anything being set up anew."""

import pytest

from demo.lab import Lab, until
from tests.system.promises import new_point, start_job, succeeded

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]


def test_points_rates_and_frequency_follow_the_policy(lab: Lab) -> None:
    succeeded(lab, start_job(lab, "vm", "protect", "web01", "--pair", "gold-a:gold-b", "-y"))
    pair = ("pair", "set", "gold-a:gold-b")
    lab.cli(*pair, "--frequency", "1s", "--keep", "all:1h", "-y")
    assert lab.json("pair", "show", "gold-a:gold-b")["policy"]["frequency_seconds"] == 1
    until("several points", lambda: len(lab.points()) >= 4 or None)
    assert lab.protection()["frequency_seconds"] == 1

    lab.cli(*pair, "--link-rate", "4MB/s", "--rate", "20MB/s 00:00-24:00", "-y")
    until("the cap to hold", lambda: lab.protection()["rate_bytes_per_second"] == 4_000_000 or None)

    foretold = lab.run("twinsite", *pair, "--keep", "none", "--dry-run", "-o", "json")
    assert foretold == "", "words are not data"
    assert len(lab.points()) >= 4
    lab.cli(*pair, "--keep", "none", "--no-rates", "-y")
    until("maintenance to leave the newest", lambda: len(lab.points()) <= 2 or None)
    until("no cap any more", lambda: lab.protection()["rate_bytes_per_second"] == 0 or None)
    new_point(lab)
