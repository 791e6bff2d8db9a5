"""What several promises check alike."""

import json
from datetime import datetime
from typing import Any

from demo.guest import Guest
from demo.lab import CommandFailed, Lab, until

FINAL = ("succeeded", "completed_with_errors", "failed", "cancelled")


def guest_at(lab: Lab, site: str, purpose: str = "") -> Guest:
    """The one VM of that purpose at a site."""
    found = [guest for guest in Guest.all(lab.vms(site)) if guest.description()["purpose"] == purpose]
    assert len(found) == 1, [guest.folder.name for guest in found]
    return found[0]


def patient(lab: Lab, *arguments: str) -> dict[str, Any] | None:
    """The command's result, or None while the coordinator does not answer."""
    try:
        return lab.json(*arguments)
    except CommandFailed as failed:
        if failed.status == 9:
            return None
        raise


def start_job(lab: Lab, *arguments: str) -> str:
    """Start a job without waiting; its id."""
    return lab.cli(*arguments, "--no-wait").strip()


def ended(lab: Lab, job_id: str, *, timeout: float = 120.0) -> dict[str, Any]:
    """The job once it is final; patient with a coordinator that is away."""

    def final() -> dict[str, Any] | None:
        job = patient(lab, "job", "show", job_id)
        return job if job and job["state"] in FINAL else None

    return until(f"job {job_id} to end", final, timeout=timeout, every=0.3)


def succeeded(lab: Lab, job_id: str, *, timeout: float = 120.0) -> dict[str, Any]:
    job = ended(lab, job_id, timeout=timeout)
    assert job["state"] == "succeeded", json.dumps(job, indent=1)
    return job


def newest_cycle(lab: Lab, name: str = "web01") -> int:
    answer = patient(lab, "point", "list", name)
    return max((point["cycle"] for point in answer["items"]), default=0) if answer else 0


def new_point(lab: Lab, *, after: int | None = None, timeout: float = 90.0) -> int:
    """Wait for a recovery point newer than `after` (than the newest one now); its number."""
    known = newest_cycle(lab) if after is None else after
    return until(
        f"a point after {known}", lambda: found if (found := newest_cycle(lab)) > known else None, timeout=timeout
    )


def fail_over(lab: Lab, name: str = "web01") -> dict[str, Any]:
    """Unplanned failover to the newest point; the job."""
    lab.login()
    return succeeded(lab, start_job(lab, "vm", "failover", name, "--confirm", name, "--reason", "test"))


def nothing_of_the_point_is_lost(lab: Lab, source: Guest, job: dict[str, Any]) -> None:
    """The VM at B boots from the point, whole, in order, with every record written before the point's instant."""
    replica = guest_at(lab, "b", "replica")
    boot = until("the VM to boot at B", replica.boot)
    assert boot["problems"] == []
    instant = datetime.fromisoformat(job["result"]["instant"]).timestamp()
    assert boot["recovered_sequence"] >= source.newest_record(before=instant)
    before = boot["recovered_sequence"]
    until("the VM to write on at B", lambda: replica.newest_record() > before or None)
