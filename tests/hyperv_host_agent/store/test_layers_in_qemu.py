"""QEMU's own tools agree about every layer, at every point, whatever was merged."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.store.base import Replica
from hyperv_host_agent.store.formats.qcow2 import ChainReader
from tests.contracts.replica_store import VM, new_machine
from tests.fakes.chain_rig import ChainRig
from tests.fakes.replicated_machine import Cycle, Machine, batch_of, send
from twinsite.extents import CLUSTER, Run

pytestmark = pytest.mark.qemu


@pytest.fixture(autouse=True)
def _qemu() -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is missing: apt-get install qemu-utils")


def qemu_img(*arguments: object) -> str:
    command = ["qemu-img", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def assert_qemu_agrees(replica: Replica, cycle: Cycle, quick_path: Path, checked: set[int] | None = None) -> None:
    """The disks at the point are the source's at the instant, and every layer under them is sound."""
    checked = set() if checked is None else checked  # a layer is never modified: once is enough
    for disk in replica.attach(cycle.header.number, "qemu"):
        truth = quick_path / "truth.raw"
        truth.write_bytes(cycle.content[disk.id])
        for layer in disk.layers:
            if layer.stat().st_ino in checked:
                continue
            checked.add(layer.stat().st_ino)
            found = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", layer))
            assert {"leaks", "corruptions", "check-errors"} & {key for key in found if found[key]} == set()
        assert disk.size == json.loads(qemu_img("info", "--output=json", disk.layers[-1]))["virtual-size"]
        qemu_img("compare", "-f", "raw", "-F", "qcow2", truth, disk.layers[-1])
        assert len(truth.read_bytes()) == disk.size
    replica.detach("qemu")


@pytest.mark.parametrize("seed", range(4))
def test_every_committed_cycle_of_disks_that_shrink_and_grow(quick_path: Path, seed: int):
    rig, machine = ChainRig(quick_path / "store"), new_machine(seed)
    replica = rig.store.create(VM, term=1)
    cycles = []
    for _ in range(7):
        cycles.append(machine.cycle())
        send(replica, cycles[-1])
        assert_qemu_agrees(replica, cycles[-1], quick_path)
        machine.scribble_and_resize()
    for cycle in cycles:
        assert_qemu_agrees(replica, cycle, quick_path)


def test_merged_layers(quick_path: Path):
    rig, machine = ChainRig(quick_path / "store"), new_machine(9)
    machine.write("disk-a", 0, machine.random.randbytes(20 * CLUSTER))  # a base that is not worth rewriting
    replica = rig.store.create(VM, term=1)
    kept: dict[int, Cycle] = {}
    merged = []
    for number in range(1, 44):
        cycle = machine.cycle(Kind.DELTA)
        send(replica, cycle)
        kept[number] = cycle
        keep = [point for point in kept if point % 10 == 0]
        report = replica.maintain(keep=keep)
        merged += report.merged
        for gone in report.removed:
            del kept[gone]
        if report.merged:
            checked: set[int] = set()
            for point in kept.values():
                assert_qemu_agrees(replica, point, quick_path, checked)
        machine.scribble_and_resize()
    assert any(group[0] > 1 for group in merged)
    assert any(group[0] == 1 for group in merged)
    assert list(kept) == [10, 20, 30, 40, 43]


def test_layers_of_noise_of_nothing_and_of_a_terabyte(quick_path: Path):
    machine = Machine(VM, {"noise": bytearray(70 * CLUSTER), "nothing": bytearray(CLUSTER)}, compress_runs=64)
    machine.write("noise", 0, machine.random.randbytes(70 * CLUSTER))
    first = machine.cycle()
    replica = ChainRig(quick_path / "store").store.create(VM, term=1)
    send(replica, first)
    machine.dirty["nothing"] = {0}
    second = machine.cycle()
    send(replica, second)
    for cycle in (first, second):
        assert_qemu_agrees(replica, cycle, quick_path)


def test_a_terabyte_that_is_nearly_empty_and_then_trimmed(quick_path: Path):
    replica = ChainRig(quick_path / "store").store.create(VM, term=1)
    size, parent = 1 << 40, b""
    far = [3, 8191, 8192, 150_000, size // CLUSTER - 1]
    wanted = dict.fromkeys(far, b"here" * (CLUSTER // 4))
    batch = batch_of(1, 0, wanted[3], [0])
    data = [replace(batch, clusters=far, lengths=batch.lengths * 5, fingerprints=batch.fingerprints * 5)]
    data[0] = replace(data[0], payload=bytes(batch.payload) * 5)
    trim = Batch(1, 0, [], [], b"", (Run(100, 200_000),), b"")
    for number, batches in enumerate((data, [trim], [])):
        header = CycleHeader(
            vm_id=VM,
            id=bytes([number]) * 16,
            number=number + 1,
            parent=number,
            parent_id=parent,
            term=1,
            kind=Kind.DELTA,
            instant=0,
            consistency="crash",
            disks=(DiskGeometry("big", size + 512 * number),),
        )
        send(replica, Cycle(header, [(batch, bytes(16)) for batch in batches], {}))
        parent = header.id
        for layer in replica.attach(number + 1, "test")[0].layers:
            qemu_img("check", layer)
    for point, left in ((1, far), (2, [3, far[-1]]), (3, [3, far[-1]])):
        with ChainReader(replica.attach(point, "test")[0].layers) as reader:
            assert [x for part in far for x in reader.mapped(part, part + 1)] == left
            assert [reader.read_cluster(cluster) for cluster in left] == [wanted[cluster] for cluster in left]
            assert reader.read_cluster(150_000) == (wanted[3] if point == 1 else bytes(CLUSTER))
    assert [cluster for cluster, _ in replica.fingerprints("big", 0, size)] == [3, far[-1]]


def test_what_qemu_wrote_is_read(quick_path: Path):
    machine = new_machine(2)
    content = bytes(machine.disks["disk-b"])
    raw, plain, packed, over = (quick_path / name for name in ("raw", "plain.qcow2", "packed.qcow2", "over.qcow2"))
    raw.write_bytes(content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, plain)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, packed)
    qemu_img("create", "-f", "qcow2", "-b", packed.name, "-F", "qcow2", over)
    for chain in ([plain], [packed], [packed, over]):
        with ChainReader(chain) as reader:
            assert reader.read(0, reader.size) == content
