"""Changing the disks of a stopped VM as its guest would: remembered by the tracking, and all in one cycle."""

import random
import time
from contextlib import ExitStack
from pathlib import Path

from bench.rig import Rig, seconds_of
from hyperv_host_agent.changes.disk import RawDisk
from hyperv_host_agent.changes.durable import locked
from hyperv_host_agent.changes.tracked_disks import OWNER_LOCK, TrackedDisks
from hyperv_host_agent.hypervisors.embedded.machine_folder import MachineFolder, folder_name
from twinsite.extents import CLUSTER
from twinsite.units import MiB


def scattered(size: int, count: int, seed: int) -> dict[int, bytes]:
    """New content for `count` clusters somewhere on a disk of `size` bytes: half of it text, half of it noise."""
    dice = random.Random(seed)
    words = [dice.randbytes(dice.randint(2, 9)).hex() for _ in range(2000)]
    made = {}
    for number, cluster in enumerate(sorted(dice.sample(range(size // CLUSTER), count))):
        text = " ".join(dice.choices(words, k=CLUSTER // 8)).encode()[:CLUSTER].ljust(CLUSTER, b".")
        made[cluster * CLUSTER] = text if number % 2 else dice.randbytes(CLUSTER)
    return made


def write(rig: Rig, changes: dict[int, bytes]) -> None:
    """To the first disk of the rig's VM."""
    folder = rig.folder("a") / "vms" / folder_name(rig.vm_id)
    file = MachineFolder.open(folder, rig.vm_id).disks[0]
    with ExitStack() as stack:
        deadline = time.monotonic() + 20
        while not stack.enter_context(locked(folder / OWNER_LOCK)):  # the agent looks at it now and then
            if time.monotonic() > deadline:
                raise RuntimeError("the disks never came free")
            time.sleep(0.005)
        disks = stack.enter_context(TrackedDisks(folder, {file.id: RawDisk(folder / file.file, writable=True)}))
        for offset, content in changes.items():
            disks.write(file.id, offset, content)


def cycle_seconds(rig: Rig, after: int, clusters: int, *, timeout: float = 120.0) -> float:
    """From instant to commit, of the first cycle above `after` that brought so many clusters."""
    deadline = time.monotonic() + timeout
    seen: set[Path] = set()
    while time.monotonic() < deadline:
        for path in sorted(rig.points().glob("[0-9]*.json")):
            if path in seen or not path.stem.isdigit() or int(path.stem) <= after:
                continue
            seen.add(path)
            try:
                if f'"clusters":{clusters},' in path.read_text():
                    return seconds_of(path)
            except FileNotFoundError:
                continue  # retention was faster than we are
        time.sleep(0.005)
    raise RuntimeError("the cycle never came")


def sparse(path: Path, size: int, data: int) -> None:
    """A disk of `size` bytes of which the first `data` hold noise."""
    with path.open("wb") as file:
        file.truncate(size)
        noise = random.Random(1)
        for _ in range(data // MiB):
            file.write(noise.randbytes(MiB))
