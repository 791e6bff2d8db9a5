"""An overlay shows its point and what was written over it."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.hypervisors.embedded.overlay import (
    OverlayDisk,
    create_overlay,
    forget_resize,
    publish_resize,
    stage_resize,
)
from tests.fakes.layers import chain
from twinsite.extents import CLUSTER, Run, clusters

SIZE = 20 * CLUSTER + 1536
BOOT = b"this boot of it."


@pytest.fixture
def below(tmp_path: Path) -> tuple[tuple[Path, ...], bytes]:
    seed = random.Random(4)
    old = bytearray(SIZE)
    for cluster in range(0, 21, 2):
        end = min(SIZE, (cluster + 1) * CLUSTER)
        old[cluster * CLUSTER : end] = seed.randbytes(end - cluster * CLUSTER)
    new = bytearray(old)
    new[4 * CLUSTER : 6 * CLUSTER] = seed.randbytes(2 * CLUSTER)
    new[8 * CLUSTER : 9 * CLUSTER] = bytes(CLUSTER)
    return chain(tmp_path, [bytes(old), bytes(new)]), bytes(new)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    path = tmp_path / "disk0.top"
    create_overlay(path, SIZE)
    return path


@pytest.fixture
def overlay(top: Path, below: tuple[tuple[Path, ...], bytes]) -> Iterator[OverlayDisk]:
    disk = OverlayDisk(top, below[0], writable=True, boot=BOOT)
    yield disk
    disk.close()


def scribble(disk: OverlayDisk, model: bytearray, seed: random.Random, times: int) -> None:
    for _ in range(times):
        offset = seed.randrange(disk.size)
        data = seed.randbytes(min(disk.size - offset, seed.choice([1, 512, 4096, CLUSTER, 3 * CLUSTER])))
        disk.write(offset, data)
        model[offset : offset + len(data)] = data


@pytest.mark.parametrize("seed", range(5))
def test_reads_and_writes_equal_a_flat_disk(
    overlay: OverlayDisk, top: Path, below: tuple[tuple[Path, ...], bytes], seed: int
):
    chance, model = random.Random(seed), bytearray(below[1])
    beside = OverlayDisk(top, below[0], writable=False, boot=BOOT)  # as the host agent reads it
    for _ in range(8):
        scribble(overlay, model, chance, 4)
        for disk in (overlay, beside):
            assert disk.read(0, SIZE) == model
            offset = chance.randrange(SIZE)
            length = chance.randrange(SIZE - offset)
            assert disk.read(offset, length) == model[offset : offset + length]
        for hole in beside.holes(Run(0, clusters(SIZE))):
            assert not any(model[hole.start * CLUSTER : hole.end * CLUSTER])
    beside.close()


def test_an_untouched_overlay_is_the_point_and_knows_its_zeros(
    overlay: OverlayDisk, top: Path, below: tuple[tuple[Path, ...], bytes]
):
    assert overlay.read(0, SIZE) == below[1]
    zeros = {cluster for run in overlay.holes(Run(0, 21)) for cluster in range(run.start, run.end)}
    assert zeros == {1, 3, 7, 8, 9, 11, 13, 15, 17, 19}
    assert sum(path.stat().st_blocks for path in top.parent.glob("disk0.*")) * 512 <= 16384


def test_what_was_written_survives_a_kill_of_the_guest(top: Path, below: tuple[tuple[Path, ...], bytes]):
    model = bytearray(below[1])
    killed = OverlayDisk(top, below[0], writable=True, boot=BOOT)
    scribble(killed, model, random.Random(1), 10)
    killed.close()  # without a sync, as the kernel does it
    again = OverlayDisk(top, below[0], writable=True, boot=BOOT)
    assert again.read(0, SIZE) == model
    again.close()


def test_after_a_crash_of_the_host_what_was_not_synced_shows_the_point_again(
    top: Path, below: tuple[tuple[Path, ...], bytes]
):
    disk = OverlayDisk(top, below[0], writable=True, boot=BOOT)
    disk.write(5 * CLUSTER + 7, b"durable")
    disk.sync()
    disk.write(10 * CLUSTER + 7, b"lost")
    disk.close()
    with top.open("r+b") as file:  # the page never reached the disk
        file.seek(10 * CLUSTER)
        file.write(bytes(CLUSTER))
    model = bytearray(below[1])
    model[5 * CLUSTER + 7 : 5 * CLUSTER + 14] = b"durable"
    for writable in (False, True, False):
        disk = OverlayDisk(top, below[0], writable=writable, boot=b"the next boot...")
        assert disk.read(0, SIZE) == model
        disk.close()


def test_an_overlay_without_its_layers_or_its_map_is_an_error_of_the_disk(
    top: Path, below: tuple[tuple[Path, ...], bytes]
):
    with pytest.raises(OSError, match="missing"):
        OverlayDisk(top, [top.with_name("missing.qcow2")], writable=False, boot=BOOT)
    top.with_suffix(".present").unlink()
    with pytest.raises(OSError, match="No such file"):
        OverlayDisk(top, below[0], writable=False, boot=BOOT)


@pytest.mark.parametrize("seed", range(8))
def test_an_overlay_that_shrinks_and_grows_equals_a_flat_disk_that_does(
    top: Path, below: tuple[tuple[Path, ...], bytes], seed: int
):
    chance, model = random.Random(seed), bytearray(below[1])
    for _ in range(12):
        size = chance.randrange(1, 2 * SIZE // 512) * 512
        stage_resize(top, chance.randrange(1, SIZE // 512) * 512, below[0], boot=BOOT)
        forget_resize(top)  # that one was not decided
        stage_resize(top, size, below[0], boot=BOOT)
        publish_resize(top)
        publish_resize(top)
        os.truncate(top, size)
        del model[size:]
        model.extend(bytes(size - len(model)))
        disk = OverlayDisk(top, below[0], writable=True, boot=BOOT)
        assert disk.read(0, size) == model
        for hole in disk.holes(Run(0, clusters(size))):
            assert not any(model[hole.start * CLUSTER : hole.end * CLUSTER])
        if chance.randrange(2):
            scribble(disk, model, chance, 3)
        disk.close()


def test_an_overlay_whose_map_is_of_another_size_is_refused(top: Path, below: tuple[tuple[Path, ...], bytes]):
    os.truncate(top, SIZE + 8 * 4096 * CLUSTER)
    with pytest.raises(OSError, match="wrong length"):
        OverlayDisk(top, below[0], writable=False, boot=BOOT)
