"""How old the newest complete state at the target is while guests write: every tenth of a second, for minutes."""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench import report
from bench.rig import Rig
from demo.guest import Guest
from hyperv_host_agent.hypervisors.embedded.machine_folder import MachineFolder
from twinsite.units import MiB

LOOK_SECONDS = 0.1
DISK = 256 * MiB


@dataclass
class Ages:
    """Of one VM's newest point, as its target's folder shows them."""

    newest: int = 0
    instant: float = 0.0
    seen: list[float] = field(default_factory=list)

    def look(self, points: Path, now: float) -> None:
        for path in sorted(points.glob("[0-9]*.json"), reverse=True):
            if not path.stem.isdigit() or int(path.stem) <= self.newest:
                break
            try:
                document = json.loads(path.read_bytes())["document"]
            except (FileNotFoundError, ValueError):
                continue
            self.newest, self.instant = int(path.stem), float(document["instant"])
            break
        if self.newest > 1:  # cycle 1 is the copy, no point yet
            self.seen.append(now - self.instant)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run(name: str, *, vms: int, frequency: int, megabytes: float, seconds: float, goal: float) -> None:
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as folder:
        rig = Rig(Path(folder))
        rig.join()
        place = rig.folder("a") / "vms"
        place.mkdir()
        blank = Path(folder, "blank")
        with blank.open("wb") as file:
            file.truncate(64 * MiB)
        interval = 0.1
        load = int(megabytes * 1e6 / vms * interval)
        guests = [
            Guest.create(place, f"vm{number}", first=blank, second=DISK, interval=interval, load=load)
            for number in range(vms)
        ]
        specs = [MachineFolder.open(guest.folder, guest.folder.name).spec for guest in guests]
        rig.protect(*specs, compression=True, frequency=frequency)
        ages = {spec.id: Ages() for spec in specs}
        try:
            for guest in guests:
                guest.start()
            rig.start("b")
            rig.start("a")
            deadline = time.monotonic() + 120
            while not all(rig.newest(vm_id) > 2 for vm_id in ages):
                if time.monotonic() > deadline:
                    raise RuntimeError("the first points never came")
                time.sleep(LOOK_SECONDS)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                for vm_id, seen in ages.items():
                    seen.look(rig.points(vm_id), time.time())
                time.sleep(LOOK_SECONDS)
        finally:
            Guest.kill_all(place)
            rig.stop()
            shutil.rmtree(folder, ignore_errors=True)
    everything = [age for one in ages.values() for age in one.seen]
    thirds = [
        statistics.mean(
            age
            for one in ages.values()
            for age in one.seen[len(one.seen) * part // 3 : len(one.seen) * (part + 1) // 3]
        )
        for part in (0, 2)
    ]
    report.line(name, percentile(everything, 0.99), goal, "goal for the 99th percentile of the age", "s")
    report.line(
        f"{name}-growth", thirds[1], thirds[0], "mean age in the first third of the time; ours in the last", "s"
    )


def main(seconds: float) -> None:
    run("rpo-5s", vms=10, frequency=5, megabytes=20, seconds=seconds, goal=10)
    run("rpo-1s", vms=1, frequency=1, megabytes=5, seconds=min(seconds, 60), goal=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    main(parser.parse_args().seconds)
