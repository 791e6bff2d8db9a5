"""The record check proves loss, tearing and reordering, and nothing else."""

import random

import pytest

from hyperv_host_agent.hypervisors.embedded.records import (
    SECTOR,
    Label,
    encode_label,
    encode_record,
    label_place,
    new_labels,
    read_label,
    verify_records,
)
from twinsite.units import KiB


class MemoryDisk:
    def __init__(self, size: int) -> None:
        self.content = bytearray(size)

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data


SIZES = (256 * KiB, 100 * KiB + 77, 64 * KiB)


@pytest.fixture
def disks() -> list[MemoryDisk]:
    made = [MemoryDisk(size) for size in SIZES]
    labels = new_labels(SIZES, loadable=[False, True, True], interval_seconds=0.5, load_bytes_per_second=7)
    for disk, label in zip(made, labels, strict=True):
        disk.write(label_place(disk.size), encode_label(label))
    return made


def label_of(disk: MemoryDisk) -> Label:
    label = read_label(disk)
    assert label is not None
    return label


def write(disks: list[MemoryDisk], first: int, last: int) -> None:
    for sequence in range(first, last + 1):
        for disk in disks:
            label = label_of(disk)
            disk.write(label.place(sequence), encode_record(label, sequence, 1000.0 + sequence))


def problems(disks: list[MemoryDisk]) -> str:
    return " | ".join(verify_records(disks).problems)


def test_a_label_says_what_the_guest_does_and_stays_clear_of_the_ring(disks: list[MemoryDisk]):
    for number, disk in enumerate(disks):
        label = label_of(disk)
        assert (label.disk, label.disks, label.interval_seconds, label.load_bytes_per_second) == (number, 3, 0.5, 7)
        assert label.load[0] + label.load[1] <= label.ring[0]
        assert label.ring[0] + label.ring[1] == label_place(disk.size) <= disk.size - SECTOR
        assert label.ring[0] % SECTOR == label.ring[1] % SECTOR == 0


def test_no_record_yet_is_no_problem(disks: list[MemoryDisk]):
    report = verify_records(disks)
    assert (report.newest, report.problems) == (0, ())


@pytest.mark.parametrize("count", [1, 5, 31, 32, 33, 500])
def test_whole_rings_are_sound_whatever_their_age_and_order(disks: list[MemoryDisk], count: int):
    write(disks, 1, count)
    report = verify_records(list(reversed(disks)))
    assert (report.newest, report.newest_at, report.per_disk) == (count, 1000.0 + count, (count,) * 3)
    assert report.problems == ()


def test_an_instant_between_two_disks_is_sound(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    for behind in (1, 2):
        write(disks[:behind], 41, 41)
        report = verify_records(disks)
        assert (report.newest, report.problems) == (40, ())


def test_a_guest_that_goes_on_behind_what_all_disks_hold_is_sound(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    write(disks[:1], 41, 41)  # the kill came here
    write(disks, 41, 90)
    assert verify_records(disks).problems == ()


def test_a_lost_write_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    before = bytes(disks[1].content)
    write(disks, 41, 41)
    disks[1].content[:] = before
    write(disks, 42, 45)
    assert "missing: [41]" in problems(disks)


def test_a_reordered_write_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    write(disks[1:], 41, 41)
    assert "disk 0, written first, ends at 40" in problems(disks)


def test_a_disk_of_an_older_instant_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    write(disks[:1], 41, 42)
    assert "disk 0 has record 42, but disk 2 ends at 40" in problems(disks)


def test_a_torn_record_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    label = label_of(disks[0])
    place = label.place(40)
    disks[0].write(place, encode_record(label, 40 + label.slots, 0.0)[:100])
    assert "torn or damaged" in problems(disks)


def test_any_flipped_bit_in_a_ring_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 500)
    seed = random.Random(3)
    for _ in range(30):
        disk = seed.choice(disks)
        start, length = label_of(disk).ring
        at = start + seed.randrange(length)
        disk.content[at] ^= 1 << seed.randrange(8)
        assert problems(disks)
        report = verify_records(disks)
        assert report.problems
        disk.content[at] ^= disk.content[at] ^ bytes(disk.content)[at]
        write(disks, 501, 500 + 200)  # heals the rings


def test_a_record_in_another_place_is_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    label = label_of(disks[0])
    disks[0].write(label.place(7), encode_record(label, 8, 0.0))
    assert "does not belong here" in problems(disks)


def test_disks_that_do_not_belong_together_are_found(disks: list[MemoryDisk]):
    write(disks, 1, 40)
    assert "of 3 were found" in problems(disks[:2])
    other = MemoryDisk(SIZES[2])
    labels = new_labels(SIZES, loadable=[False] * 3, interval_seconds=1, load_bytes_per_second=0)
    other.write(label_place(other.size), encode_label(labels[2]))
    assert "different guests" in problems([*disks[:2], other])
    assert "no disk carries" in problems([MemoryDisk(4096), MemoryDisk(0)])
