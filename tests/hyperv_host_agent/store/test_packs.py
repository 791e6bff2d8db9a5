"""However layers were merged across points, every point that is kept is the source at its instant."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store import merge_plan
from hyperv_host_agent.store.base import Budget, NoSpace, StoreDamaged
from hyperv_host_agent.store.formats.qcow2 import ChainReader
from hyperv_host_agent.store.formats.side_file import side_path
from hyperv_host_agent.store.layer_check import LayerCheck
from hyperv_host_agent.store.layer_content import LayerContent
from hyperv_host_agent.store.repair import is_sound
from hyperv_host_agent.store.replica import ChainReplica
from tests.contracts.replica_store import VM, new_machine
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import Cycle, Machine, fingerprints, frame_of, send
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER

pytestmark = pytest.mark.timeout(400)  # some of them take hundreds of steps


@dataclass
class Schedule:
    """A replica and what it must hold, under whatever comes."""

    rig: ChainRig
    seed: int
    machine: Machine = field(init=False)
    replica: ChainReplica = field(init=False)
    cycles: dict[int, Cycle] = field(default_factory=dict)
    attached: dict[str, tuple[int, dict[Path, bytes]]] = field(default_factory=dict)
    merged: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.machine = new_machine(self.seed)
        self.replica = self.rig.store.create(VM, term=1)

    def step(self) -> None:
        dice = self.dice.randrange(20)
        if dice < 11:
            self.machine.scribble()
            self.cycle()
        elif dice < 13:
            self.machine.scribble_and_resize()
            self.cycle()
        elif dice == 13:
            self.disk_comes_or_goes()
        elif dice < 17:
            self.maintain()
        elif dice == 17:
            self.reopen()
        elif self.attached and self.dice.randrange(2):
            self.detach(self.dice.choice(list(self.attached)))
        elif self.cycles:
            self.attach(f"test-{self.dice.randrange(4)}", self.dice.choice(list(self.cycles)))

    def cycle(self) -> None:
        cycle = self.machine.cycle(Kind.DELTA)
        send(self.replica, cycle)
        self.cycles[cycle.header.number] = cycle

    def disk_comes_or_goes(self) -> None:
        if "disk-c" in self.machine.disks:
            self.machine.remove("disk-c")
        else:
            self.machine.add("disk-c", self.dice.randrange(1, 12 * CLUSTER // 512) * 512)
            self.machine.write("disk-c", 0, b"new" * 100)
        self.cycle()

    def maintain(self) -> None:
        gone = [cycle for cycle in self.cycles if self.dice.random() < self.dice.choice((0.0, 0.02, 0.3))]
        budget = Budget(self.dice.choice((5_000, 100_000, 1 << 40)))
        report = self.replica.maintain(keep=[cycle for cycle in self.cycles if cycle not in gone], budget=budget)
        for cycle in report.removed:
            assert cycle in gone
            del self.cycles[cycle]
        assert [point.cycle for point in self.replica.points()] == list(self.cycles)
        self.merged += len(report.merged)
        if report.merged:
            self.look(self.dice.choice(list(self.cycles)))

    def reopen(self) -> None:
        if self.dice.randrange(2):
            self.replica.close()
        self.rig.power_loss()
        self.replica = self.rig.store.open(VM)
        assert [point.cycle for point in self.replica.points()] == list(self.cycles)

    def attach(self, owner: str, cycle: int) -> None:
        if owner in self.attached:
            self.detach(owner)
        layers = [path for disk in self.replica.attach(cycle, owner) for path in disk.layers]
        self.attached[owner] = (cycle, {path: path.read_bytes() for path in layers})

    def detach(self, owner: str) -> None:
        cycle, layers = self.attached.pop(owner)
        assert {path: path.read_bytes() for path in layers} == layers
        assert cycle in self.cycles
        self.replica.detach(owner)

    def look(self, cycle: int) -> None:
        """The point, in every way there is."""
        for disk, content in self.cycles[cycle].content.items():
            assert self.rig.content(self.replica, cycle, disk) == content, (cycle, disk)
            assert dict(self.replica.fingerprints(disk, 0, 1 << 30, cycle=cycle)) == fingerprints(content)
        assert list(self.replica.verify(cycle=cycle)) == []

    def settle(self) -> None:
        for owner in list(self.attached):
            self.detach(owner)
        while not self.replica.maintain(keep=list(self.cycles), budget=Budget(50_000)).finished:
            pass

    def depth(self) -> int:
        return max(len(chain) for _, chain in self.replica._catalog.chains.each())


@pytest.mark.parametrize("seed", range(8))
def test_every_kept_point_stays_what_it_was_through_hundreds_of_steps(quick_path: Path, seed: int):
    schedule = Schedule(ChainRig(quick_path / "store"), seed)
    for _ in range(300):
        schedule.step()
    schedule.settle()
    assert schedule.merged > 5
    for cycle in schedule.cycles:
        schedule.look(cycle)
    for disk, chain in schedule.replica._catalog.chains.each():
        assert len(chain) <= merge_plan.MOST
        for layer in chain:
            path = schedule.rig.root / VM / disk / layer.file
            assert is_sound(side_path(path), layer)
            with LayerCheck(path, layer, side_path(path)) as check:
                assert check.tables_problem() is None
            with LayerContent(path.parent, layer) as content:
                assert [entry for entry in content.entries() if not content.content(entry)] == []
    assert not list(schedule.rig.root.rglob("*.view.qcow2"))


@pytest.mark.qemu
@pytest.mark.parametrize("seed", range(100, 103))
def test_qemu_agrees_about_every_point_in_packs_that_shrink_and_grow(quick_path: Path, seed: int):
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is missing: apt-get install qemu-utils")
    schedule = Schedule(ChainRig(quick_path / "store"), seed)
    for _ in range(160):
        schedule.step()
    schedule.settle()
    assert schedule.merged > 3
    checked: set[int] = set()
    views = 0
    truth = quick_path / "truth.raw"
    for cycle, brought in schedule.cycles.items():
        for disk in schedule.replica.attach(cycle, "qemu"):
            views += ".view." in disk.layers[-1].name
            truth.write_bytes(brought.content[disk.id])
            for layer in disk.layers:
                if layer.stat().st_ino not in checked:
                    found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", layer))
                    assert {"leaks", "corruptions", "check-errors"} & {key for key in found if found[key]} == set()
                    if ".view." not in layer.name:
                        checked.add(layer.stat().st_ino)
            assert disk.size == json.loads(qemu_img("info", "--output=json", disk.layers[-1]))["virtual-size"]
            qemu_img("compare", "-f", "raw", "-F", "qcow2", truth, disk.layers[-1])
        schedule.replica.detach("qemu")
    assert views > 10


def qemu_img(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def packed(quick_path: Path) -> Iterator[Schedule]:
    """Forty points, all kept, most of them inside packs."""
    schedule = Schedule(ChainRig(quick_path / "store"), 7)
    for number in range(40):
        schedule.machine.write("disk-a", number % 3 * CLUSTER, schedule.machine.random.randbytes(3 * CLUSTER))
        schedule.machine.write("disk-b", 0, b"point %d" % number)
        schedule.cycle()
        schedule.replica.maintain(keep=list(schedule.cycles))
    yield schedule
    schedule.replica.close()


def test_a_thousand_kept_points_stand_on_few_layers(quick_path: Path):
    rig, machine = ChainRig(quick_path / "store"), new_machine(1)
    replica = rig.store.create(VM, term=1)
    cycles = {}
    for number in range(1, 1001):
        machine.write("disk-a", number % 20 * CLUSTER, b"%d" % number)
        cycle = machine.cycle(Kind.DELTA)
        cycles[number] = cycle.content if number % 50 == 1 else {}
        send(replica, cycle)
        replica.maintain(keep=range(1001))
        assert len(rig.layers("disk-a")) <= 16
    assert [point.cycle for point in replica.points()] == list(range(1, 1001))
    for number, content in cycles.items():
        for disk, expected in content.items():
            assert rig.content(replica, number, disk) == expected


def test_a_view_is_shared_survives_a_restart_and_goes_with_its_last_user(packed: Schedule):
    store, replica = packed.rig.root / VM, packed.replica
    first = replica.attach(5, "one")
    assert replica.attach(5, "two") == first
    view = first[0].layers[-1]
    assert view.name == "000005.view.qcow2"
    inode = view.stat().st_ino
    replica.close()
    packed.rig.power_loss()
    packed.replica = replica = packed.rig.store.open(VM)
    assert view.stat().st_ino == inode
    assert replica.attach(5, "three") == first
    assert view.stat().st_ino == inode
    for owner in ("one", "two"):
        replica.detach(owner)
    packed.look(5)
    replica.detach("three")
    assert not list(store.rglob("*.view.*"))


def test_a_view_that_nobody_uses_or_that_was_not_finished_is_cleared_at_the_start(packed: Schedule):
    view = packed.replica.attach(5, "one")[0].layers[-1]
    content = view.read_bytes()
    packed.replica.detach("one")
    packed.replica.close()
    view.write_bytes(content)
    view.with_name("000006.view.qcow2.partial").write_bytes(content)
    packed.rig.power_loss()
    packed.replica = packed.rig.store.open(VM)
    assert not list(packed.rig.root.rglob("*.view.*"))
    packed.look(5)


def test_a_view_cut_short_under_a_pin_is_built_anew(packed: Schedule):
    view = packed.replica.attach(5, "one")[0].layers[-1]
    packed.replica.close()
    view.write_bytes(view.read_bytes()[:50])
    packed.rig.power_loss()
    packed.replica = packed.rig.store.open(VM)
    assert not view.exists()
    packed.look(5)


def test_without_room_for_its_view_a_point_is_not_attached_and_not_pinned(packed: Schedule):
    packed.replica.attach(6, "before")
    packed.rig.set_free(10)
    with pytest.raises(NoSpace):
        packed.replica.attach(5, "one")
    assert [point.cycle for point in packed.replica.points() if point.pinned_by] == [6]
    assert not list(packed.rig.root.rglob("000005.view.*"))
    packed.rig.set_free(1 << 30)
    packed.replica.attach(5, "one")
    packed.look(5)


def test_space_comes_back_when_points_go(packed: Schedule):
    def stored() -> int:
        return sum(path.stat().st_blocks * 512 for path in packed.rig.root.rglob("*.qcow2"))

    full = stored()
    assert full > 40 * 3 * CLUSTER  # every version is there
    packed.replica.maintain(keep=[10, 20, 30])
    packed.cycles = {cycle: packed.cycles[cycle] for cycle in (10, 20, 30, 40)}
    assert packed.replica.maintain(keep=[10, 20, 30]).finished
    assert stored() < full / 4
    for cycle in packed.cycles:
        packed.look(cycle)
    packed.replica.maintain(keep=[])
    packed.cycles = {40: packed.cycles[40]}
    packed.look(40)
    assert stored() < full / 6


BIG = 3 * 8192 * CLUSTER  # a disk whose merges have three steps


def write_sparsely(replica: ChainReplica, content: dict[int, bytes]) -> None:
    """A cycle that writes these clusters of a disk of BIG bytes."""
    state = replica.state().committed
    number = state.number + 1 if state else 1
    header = CycleHeader(
        vm_id=VM,
        id=number.to_bytes(16),
        number=number,
        parent=number - 1,
        parent_id=state.id if state else b"",
        term=1,
        kind=Kind.DELTA,
        instant=float(number),
        consistency="crash",
        disks=(DiskGeometry("big", BIG),),
    )
    frames = {cluster: frame_of(data) for cluster, data in sorted(content.items())}
    batch = Batch(
        sequence=1,
        disk=0,
        clusters=list(frames),
        lengths=list(map(len, frames.values())),
        fingerprints=b"".join(fingerprint(content[cluster]) for cluster in frames),
        zero_runs=(),
        payload=b"".join(frames.values()),
    )
    send(replica, Cycle(header, [(batch, bytes(16))], {}))


def filled_sparsely(rig: ChainRig, count: int = 20) -> tuple[ChainReplica, list[dict[int, bytes]]]:
    """A replica of a big disk, and what it holds after each cycle."""
    replica, dice = rig.store.create(VM, term=1), random.Random(3)
    states: list[dict[int, bytes]] = [{}]
    for number in range(count):
        content = {window * 8192 + number % 5: dice.randbytes(CLUSTER) for window in range(3)}
        write_sparsely(replica, content)
        states.append(states[-1] | content)
    return replica, states


def assert_holds(replica: ChainReplica, cycle: int, state: dict[int, bytes]) -> None:
    expected = {cluster: fingerprint(data) for cluster, data in state.items()}
    assert dict(replica.fingerprints("big", 0, 1 << 30, cycle=cycle)) == expected
    with ChainReader(replica.attach(cycle, "look")[0].layers) as reader:
        assert {cluster: reader.read_cluster(cluster) for cluster in state} == state
        assert reader.mapped(0, BIG // CLUSTER) == sorted(state)
    replica.detach("look")
    assert list(replica.verify(cycle=cycle)) == []


def test_maintenance_goes_on_where_its_budget_ended_it(quick_path: Path):
    replica, states = filled_sparsely(ChainRig(quick_path / "store"))
    report = replica.maintain(keep=[], budget=Budget(1))
    rounds = 1
    assert not report.finished
    assert report.merged == []
    left = report.left_bytes
    while not report.finished:
        report = replica.maintain(keep=[], budget=Budget(1))
        assert report.left_bytes <= left
        left = report.left_bytes
        rounds += 1
    assert rounds >= 3
    assert report.merged == [tuple(range(1, 21))]
    assert_holds(replica, 20, states[20])


def test_a_point_attached_while_its_layers_are_merged_ends_that_merge(quick_path: Path):
    replica, states = filled_sparsely(rig := ChainRig(quick_path / "store"))
    assert not replica.maintain(keep=range(21), budget=Budget(1)).finished
    assert list(rig.root.rglob("*.merged"))
    attached = replica.attach(5, "test")
    layers = {path: path.read_bytes() for path in attached[0].layers}
    while not replica.maintain(keep=range(21), budget=Budget(1)).finished:
        pass
    assert {path: path.read_bytes() for path in layers} == layers
    assert not list(rig.root.rglob("*.merged"))
    for cycle, state in enumerate(states[1:], 1):
        assert_holds(replica, cycle, state)


def test_a_repair_is_not_undone_by_a_merge_that_had_begun(quick_path: Path):
    replica, _ = filled_sparsely(rig := ChainRig(quick_path / "store"))
    layer = replica._catalog.chains.disks["big"][-1]
    path = rig.root / VM / "big" / layer.file
    with LayerContent(path.parent, layer) as content:
        entry = next(content.entries())
        frame = content.frame(entry)
    rig.damage("big", entry.cluster)
    assert list(replica.verify()) != []
    assert not replica.maintain(keep=[], budget=Budget(1)).finished
    assert list(path.parent.glob("*.merged"))
    assert replica._rewrite("big", layer, {(entry.cluster, entry.cycle): frame})
    assert replica.maintain(keep=[]).merged
    assert list(replica.verify()) == []


def test_layers_are_merged_around_one_that_cannot_be_read(quick_path: Path):
    replica, states = filled_sparsely(rig := ChainRig(quick_path / "store"), 40)
    side = side_path(rig.root / VM / "big" / "000020.qcow2")
    data = bytearray(side.read_bytes())
    data[10] ^= 1
    side.write_bytes(data)
    for attempt in range(2):
        try:
            report = replica.maintain(keep=range(41))
        except StoreDamaged as error:
            assert not attempt
            assert "000020.fp" in str(error)
    assert report.finished
    assert len(rig.layers("big")) <= 18
    for cycle in (1, 19, 21, 40):
        with ChainReader(replica.attach(cycle, "look")[0].layers) as reader:
            assert {cluster: reader.read_cluster(cluster) for cluster in states[cycle]} == states[cycle]
        replica.detach("look")


def test_what_fits_is_merged_while_the_rest_waits_for_room(quick_path: Path):
    rig, machine = ChainRig(quick_path / "store"), new_machine(5)
    replica = rig.store.create(VM, term=1)
    for number in range(20):
        machine.write("disk-a", 0, machine.random.randbytes(10 * CLUSTER))
        machine.write("disk-b", number % 6 * CLUSTER, b"%d" % number)
        cycle = machine.cycle(Kind.DELTA)
        send(replica, cycle)
    rig.set_free(3 * 10 * CLUSTER)
    report = replica.maintain(keep=range(21))
    assert report.no_room is not None
    assert not report.finished
    assert len(rig.layers("disk-a")) == 20
    assert len(rig.layers("disk-b")) <= 16
    assert not list(rig.root.rglob("*.merged"))
    rig.set_free(1 << 30)
    assert replica.maintain(keep=range(21)).finished
    assert len(rig.layers("disk-a")) <= 16
    assert rig.content(replica, 20, "disk-a") == cycle.content["disk-a"]


def test_a_layer_written_anew_takes_the_place_of_a_damaged_one(packed: Schedule):
    chains = packed.replica._catalog.chains
    layer = next(layer for layer in chains.disks["disk-a"] if layer.points)
    directory = packed.rig.root / VM / "disk-a"
    with LayerContent(directory, layer) as content:
        entries = [entry for entry in content.entries() if not entry.mapped][:3]
        frames = {(entry.cluster, entry.cycle): content.frame(entry) for entry in entries}
    data = bytearray((directory / layer.file).read_bytes())
    for entry in entries:
        data[entry.offset + entry.length // 2] ^= 4
    (directory / layer.file).write_bytes(data)
    assert list(packed.replica.verify(cycle=entries[0].cycle)) != []
    assert packed.replica._rewrite("disk-a", layer, frames)
    for cycle in packed.cycles:
        packed.look(cycle)
