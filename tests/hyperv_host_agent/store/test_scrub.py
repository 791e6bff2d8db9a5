"""One byte that is not what was written, anywhere: found, named, mended while there is something to mend it from, and
never served as good data.
"""

import copy
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind, Wanted
from hyperv_host_agent.store.base import Finding, PointInfo, Replica, StoreDamaged, WriteFailed
from hyperv_host_agent.store.copies import COPY
from hyperv_host_agent.store.formats import zstd_frame
from hyperv_host_agent.store.formats.qcow2 import ChainReader
from hyperv_host_agent.store.formats.side_file import Entry, SideFile, side_path
from hyperv_host_agent.store.replica import ChainReplica
from tests.contracts.replica_store import VM
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import Cycle, Machine, fingerprints, frame_of, send, stage
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER, Run

PLACES: Final = 1040
CHUNKS: Final = 8  # of the places, so that tests stay short


@dataclass
class Scene:
    """A closed replica with everything in it that a replica can have, and what it must hold."""

    root: Path
    machine: Machine
    cycles: dict[int, Cycle]
    unfinished: Cycle

    def files(self) -> dict[str, list[Path]]:
        """Every file by its kind, relative to the root."""
        kinds: dict[str, list[Path]] = {}
        for path in sorted(self.root.rglob("*")):
            # What is on its way is checked once it has arrived, and a view is made anew.
            if path.is_file() and path.stat().st_size and not path.match("*.partial") and ".view" not in path.name:
                name = path.relative_to(self.root)
                kind = name.parent.name + name.name.lstrip("0123456789") if len(name.parts) > 1 else name.name
                kinds.setdefault(kind, []).append(name)
        return kinds


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    memory = Path("/dev/shm")  # a fresh directory of our own in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield built(Path(folder) / "store")


def built(root: Path) -> Scene:
    machine = Machine(VM, {"disk-a": bytearray(12 * CLUSTER), "disk-b": bytearray(5 * CLUSTER + 1536)}, seed=4)
    rig, cycles = ChainRig(root), {}
    replica = rig.store.create(VM, term=1)
    kept = [2, 9, 17, 18, 25]
    for number in range(1, 27):
        for disk, content in machine.disks.items():
            at = machine.random.randrange(len(content) // CLUSTER) * CLUSTER
            machine.write(disk, at, b"cycle %d of %s\n" % (number, disk.encode()) * 100)
        if number % 6 == 0:
            machine.write("disk-a", 3 * CLUSTER, machine.random.randbytes(CLUSTER))
            machine.write("disk-a", 4 * CLUSTER, bytes(2 * CLUSTER))
        cycles[number] = machine.cycle(Kind.DELTA)
        send(replica, cycles[number])
        if number in {20, 24}:
            replica.maintain(keep=kept)
    replica.mark(9, keep=True, name="before the update", lock_seconds=3600)
    replica.mark(17, keep=True, name=None, lock_seconds=None)
    replica.attach(25, "test-1")
    replica.maintain(keep=[*kept, 26])
    machine.write("disk-a", 0, b"on its way" * 500)
    source = copy.deepcopy(machine)
    unfinished = machine.cycle(Kind.DELTA)
    replica.begin(unfinished.header, resume_after=0)
    stage(replica, unfinished.batches)
    replica.sync()
    replica.scrub(1 << 30, 1.0)
    replica.close()
    left = {point.cycle: cycles[point.cycle] for point in replica.points()}
    assert set(left) == {2, 9, 17, 18, 25, 26}
    return Scene(root, source, left, unfinished)


@dataclass
class Place:
    path: Path  # relative to the store
    offset: int
    mask: int


def places(scene: Scene, seed: int) -> Iterator[Place]:
    """Of every kind of file as many, anywhere in them; layers twice, their frames as often as the rest."""
    dice, kinds = random.Random(seed), scene.files()
    weighted = sorted(kinds) + [kind for kind in sorted(kinds) if kind.endswith(".qcow2")] * 4
    while True:
        path = dice.choice(kinds[dice.choice(weighted)])
        size = (scene.root / path).stat().st_size
        if path.suffix == ".qcow2" and dice.randrange(2):
            entry = dice.choice(entries(scene.root / path))
            yield Place(path, entry.offset + dice.randrange(entry.length), dice.randrange(1, 256))
        else:
            yield Place(path, dice.randrange(size), dice.randrange(1, 256))


def entries(layer: Path) -> list[Entry]:
    with closing(SideFile(side_path(layer))) as side:
        return list(side.entries())


def flip(path: Path, place: Place) -> None:
    with path.open("r+b") as file:
        file.seek(place.offset)
        byte = file.read(1)[0]
        file.seek(place.offset)
        file.write(bytes([byte ^ place.mask]))


class Trial:
    """One flipped byte, and what comes of it."""

    def __init__(self, scene: Scene, root: Path) -> None:
        shutil.copytree(scene.root, root)
        self.scene, self.rig = scene, ChainRig(root)
        self.machine = copy.deepcopy(scene.machine)
        self.truth = dict(scene.cycles)
        self.replica: Replica = self.rig.store.open(VM)

    def hit(self, place: Place) -> Entry | None:
        """Flip it; the frame it lies in, if it does."""
        path = self.rig.root / place.path
        found = entries(path) if path.suffix == ".qcow2" else []
        flip(path, place)
        return next((one for one in found if one.offset <= place.offset < one.offset + one.length), None)

    def mend(self) -> list[Finding]:
        return [finding for step in self.replica.check(repair=True) for finding in step.findings]

    def answer(self) -> None:
        """The source's next cycle, with what is wanted."""
        for wanted in self.replica.wanted():
            self.machine.dirty[wanted.disk].update(range(wanted.run.start, wanted.run.end))
        cycle = self.machine.cycle(Kind.DELTA)
        send(self.replica, cycle)
        self.truth[cycle.header.number] = cycle

    def points(self) -> dict[int, PointInfo]:
        return {point.cycle: point for point in self.replica.points()}

    def look(self) -> None:
        """Every point without damage is the source at its instant, as a hypervisor reads it."""
        for cycle, point in self.points().items():
            for disk in self.replica.attach(cycle, "reader") if not point.damaged else ():
                with ChainReader(disk.layers) as reader:
                    assert reader.read(0, reader.size) == self.truth[cycle].content[disk.id], (cycle, disk.name)
        self.replica.detach("reader")


def name_of(place: Place) -> str:
    """As findings name it."""
    inside = place.path.relative_to(VM) if place.path.parts[0] == VM else Path("..") / place.path
    return str(inside).removesuffix(COPY) if not inside.name.endswith(f".fp{COPY}") else str(inside)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_one_flipped_byte_anywhere_is_found_named_mended_and_never_served(scene: Scene, quick_path: Path, chunk: int):
    harmless = 0
    for number, place in zip(range(PLACES // CHUNKS), places(scene, chunk), strict=False):
        trial = Trial(scene, quick_path / str(number))
        frame = trial.hit(place)
        findings = trial.mend()
        named = [finding for finding in findings if finding.file == name_of(place)]
        if frame is not None and not findings:
            harmless += 1  # another encoding of the same content, or of a point that is gone
        elif frame is not None:
            assert {(one.disk, one.cluster) for one in named} == {(place.path.parent.name, frame.cluster)}, place
            assert named[0].points
        else:
            assert named, (place, findings)
        lost = {cycle for finding in findings if not finding.repaired for cycle in finding.points}
        assert {cycle for cycle, point in trial.points().items() if point.damaged} == lost, place
        trial.look()
        trial.answer()
        assert trial.replica.wanted() == ()
        assert not trial.replica.points()[-1].damaged
        still = [finding for finding in trial.mend() if not finding.file.endswith(".damaged")]
        assert {finding.problem for finding in still} <= {finding.problem for finding in findings if frame}, place
        trial.replica.close()
        trial.replica = trial.rig.store.open(VM)
        trial.look()
        trial.replica.close()
        shutil.rmtree(quick_path / str(number))
    assert harmless <= PLACES // CHUNKS // 10


def damaged(rig: ChainRig, replica: ChainReplica, cluster: int, cycle: int) -> str:
    """Damage the frame that a cycle brought of a cluster of disk-a: its layer's file."""
    for layer in replica._catalog.chains.disks["disk-a"]:
        path = rig.root / VM / "disk-a" / layer.file
        for entry in entries(path):
            if (entry.cluster, entry.cycle) == (cluster, cycle):
                flip(path, Place(path, entry.offset + entry.length // 2, 4))
                return layer.file
    raise AssertionError


@pytest.fixture
def rig(quick_path: Path) -> ChainRig:
    return ChainRig(quick_path / "store")


def written(rig: ChainRig, count: int) -> tuple[Machine, ChainReplica, list[Cycle]]:
    """Every cycle writes noise over cluster 1 of disk-a, and over another one."""
    machine = Machine(VM, {"disk-a": bytearray(64 * CLUSTER)}, seed=9)
    replica, cycles = rig.store.create(VM, term=1), []
    for number in range(count):
        machine.write("disk-a", CLUSTER, machine.random.randbytes(CLUSTER))
        machine.write("disk-a", (2 + number) * CLUSTER, machine.random.randbytes(CLUSTER))
        cycles.append(machine.cycle(Kind.DELTA))
        send(replica, cycles[-1])
    return machine, replica, cycles


def test_an_older_point_is_mended_when_the_source_brings_the_same_content_again(rig: ChainRig):
    machine, replica, cycles = written(rig, 3)
    damaged(rig, replica, 1, 2)
    replica.scrub(1 << 30, 0.0)
    assert [point.damaged for point in replica.points()] == [0, 1, 0]
    assert replica.wanted() == ()  # the newest point does not show it
    machine.write("disk-a", 40 * CLUSTER, cycles[1].content["disk-a"][CLUSTER : 2 * CLUSTER])  # a copy of it
    send(replica, machine.cycle())
    assert list(replica.check(repair=True))
    assert [point.damaged for point in replica.points()] == [0, 0, 0, 0]
    assert rig.content(replica, 2, "disk-a") == cycles[1].content["disk-a"]


def test_what_came_back_mends_the_points_before_it_without_waiting_for_another_round(rig: ChainRig):
    machine, replica, cycles = written(rig, 3)
    damaged(rig, replica, 3, 2)
    assert replica.scrub(1 << 30, 0.0).damaged == 1
    assert [point.damaged for point in replica.points()] == [0, 1, 1]
    (wanted,) = replica.wanted()
    machine.dirty["disk-a"].add(wanted.run.start)
    send(replica, machine.cycle())
    assert replica.scrubbed().retry
    assert [point.damaged for point in replica.points()] == [0, 1, 1, 0]
    state = replica.scrub(1, 1.0)
    assert (state.damaged, state.repaired, state.completed) == (0, 1, 0.0)
    for number in (1, 2, 3):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]


def test_what_a_repair_found_nothing_for_says_so_ever_after(rig: ChainRig):
    _, replica, _ = written(rig, 3)
    damaged(rig, replica, 1, 1)
    assert [(finding.repaired, finding.tried) for finding in replica.verify()] == [(False, False)]
    assert (replica.scrubbed().damaged, replica.scrubbed().tried) == (1, 0)
    (found,) = (finding for step in replica.check(repair=True) for finding in step.findings)
    assert found.tried
    replica.close()
    replica = rig.store.open(VM)
    assert [(finding.repaired, finding.tried) for finding in replica.verify()] == [(False, True)]
    assert (replica.scrubbed().damaged, replica.scrubbed().tried) == (1, 1)


def test_a_round_goes_on_where_a_restart_ended_it(rig: ChainRig):
    _, replica, _ = written(rig, 40)
    damaged(rig, replica, 41, 40)
    rounds, seen = 0, []
    state = replica.scrubbed()
    while state.completed is None and rounds < 100:
        state = replica.scrub(200_000, 5.0)
        seen.append(state.checked_bytes)
        rounds += 1
        replica.close()
        replica = rig.store.open(VM)
    assert rounds > 10
    assert seen[:-1] == sorted(seen[:-1])
    assert (state.completed, state.damaged) == (5.0, 1)
    assert replica.scrubbed() == state


def test_a_round_that_failed_is_not_over(rig: ChainRig):
    _, replica, _ = written(rig, 6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        for _ in range(3):
            with pytest.raises(WriteFailed):  # it gives side files their second copies
                replica.scrub(1 << 30, 5.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert replica.scrubbed().completed is None
    damaged(rig, replica, 7, 6)
    state = replica.scrub(1 << 30, 6.0)
    assert (state.completed, state.damaged) == (6.0, 1)


def test_what_cannot_be_written_stops_no_layer_after_it_and_is_said(rig: ChainRig):
    _, replica, _ = written(rig, 6)
    damaged(rig, replica, 7, 6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        reached = set()
        for _ in range(60):
            with suppress(WriteFailed):
                reached.add(replica.scrub(1, 5.0).checked_bytes)
        with pytest.raises(WriteFailed):
            list(replica.check(repair=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(reached) > 6  # layers, the last of them behind all that could not be mended
    assert replica.scrubbed().completed is None
    assert [finding.cluster for finding in replica.verify() if finding.disk] == [7]
    assert replica.points()[-1].damaged == 1
    with suppress(WriteFailed):  # of the round that was under way
        replica.scrub(1 << 30, 6.0)
    assert replica.scrub(1 << 30, 6.0).completed == 6.0


def test_damage_stops_no_merge_and_is_known_wherever_it_goes(rig: ChainRig):
    machine, replica, cycles = written(rig, 30)
    file = damaged(rig, replica, 12, 11)
    assert replica.scrub(1 << 30, 0.0).damaged == 1
    replica.maintain(keep=[12, 20])
    assert file not in [layer.file for layer in replica._catalog.chains.disks["disk-a"]]
    assert [(point.cycle, point.damaged) for point in replica.points()] == [(12, 1), (20, 1), (30, 1)]
    machine.dirty["disk-a"].add(12)
    send(replica, machine.cycle())
    replica.scrub(1, 1.0)
    assert [(point.cycle, point.damaged) for point in replica.points()] == [(12, 0), (20, 0), (30, 0), (31, 0)]
    for number in (12, 20, 30):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]


def test_a_layer_whose_disk_went_bad_altogether_is_written_anew_as_far_as_its_content_is_elsewhere(rig: ChainRig):
    machine, replica, cycles = written(rig, 6)
    for number in range(2, 8):  # all of it once more
        machine.dirty["disk-a"].add(number)
    send(replica, machine.cycle())
    replica.maintain(keep=range(1, 8))
    layer = rig.root / VM / "disk-a" / "000003.qcow2"
    layer.write_bytes(bytes(layer.stat().st_size))
    replica.close()
    replica = rig.store.open(VM)
    findings = [finding for step in replica.check(repair=True) for finding in step.findings]
    assert {(finding.cluster, finding.repaired) for finding in findings} == {(None, True), (1, False), (4, True)}
    assert [point.damaged for point in replica.points()] == [0, 0, 1, 0, 0, 0, 0]
    for number in (1, 2, 4, 5, 6):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]


def test_damage_that_stops_a_merge_or_the_fingerprints_is_looked_for_at_once(rig: ChainRig):
    _, replica, cycles = written(rig, 30)
    assert replica.scrub(1 << 30, 0.0).completed == 0.0
    assert not replica.scrubbed().retry
    side = rig.root / VM / "disk-a" / "000007.fp"
    for use in (lambda: replica.maintain(keep=[12]), lambda: list(replica.fingerprints("disk-a", 0, 64))):
        flip(side, Place(side, 20, 1))
        with pytest.raises(StoreDamaged):
            use()
        assert replica.scrubbed().retry
        state = replica.scrub(1 << 30, 1.0)
        assert (state.retry, state.damaged) == (False, 0)
    replica.maintain(keep=[12])  # what it did not merge around the damage
    assert len(list(side.parent.glob("*.qcow2"))) <= 17
    assert dict(replica.fingerprints("disk-a", 0, 64)) == fingerprints(cycles[29].content["disk-a"])


def test_a_layer_with_more_damage_than_can_be_listed_counts_as_one_and_all_of_it_is_wanted(rig: ChainRig):
    count = 10_100
    replica = rig.store.create(VM, term=1)
    disk = DiskGeometry("disk-a", count * CLUSTER)
    for number in (1, 2):
        data = b"line %d\n" % number * 500
        frame = frame_of(data)
        prints = fingerprint(data.ljust(CLUSTER, b"\0")) * count
        batch = Batch(1, 0, range(count), [len(frame)] * count, prints, (), frame * count)
        header = CycleHeader(VM, bytes([number]) * 16, number, number - 1, 1, Kind.DELTA, 1.0, "crash", (disk,))
        replica.begin(header, resume_after=0)
        replica.put(batch, bytes(16))
        replica.commit()
    layer = rig.root / VM / "disk-a" / "000002.qcow2"
    with layer.open("r+b") as file:
        file.seek(CLUSTER)
        file.write(bytes(len(frame) * count))
    findings = [finding for step in replica.check(repair=True) for finding in step.findings]
    assert [(finding.cluster, finding.points) for finding in findings] == [(None, (2,))]
    assert replica.wanted() == (Wanted("disk-a", Run(0, count)),)
    assert [point.damaged for point in replica.points()] == [0, 1]
    assert (rig.root / VM / "scrub.json").stat().st_size < 1000


def test_a_frame_of_another_length_takes_the_place_of_a_damaged_one(rig: ChainRig):
    machine, replica, cycles = written(rig, 30)
    machine.write("disk-a", 50 * CLUSTER, b"text\n" * 1000)
    cycles.append(machine.cycle())
    send(replica, cycles[-1])
    machine.write("disk-a", 51 * CLUSTER, b"more\n" * 1000)
    cycles.append(machine.cycle())
    send(replica, cycles[-1])
    replica.maintain(keep=[12, 20])
    file = damaged(rig, replica, 50, 31)
    (layer,) = [layer for layer in replica._catalog.chains.disks["disk-a"] if layer.file == file]
    content = cycles[-1].content["disk-a"][50 * CLUSTER : 51 * CLUSTER]
    assert replica._rewrite("disk-a", layer, {(50, 31): zstd_frame.raw(content)})
    replica.close()
    replica = rig.store.open(VM)
    assert list(replica.verify()) == []
    for number in (12, 20, 32):
        assert rig.content(replica, number, "disk-a") == cycles[number - 1].content["disk-a"]
    if shutil.which("qemu-img"):
        checked = ["qemu-img", "check", str(rig.root / VM / "disk-a" / file)]
        assert subprocess.run(checked, capture_output=True, check=False).returncode == 0
