"""What is recorded of replications: a sample for every VM and minute, whatever happens to the program or the disk."""

import asyncio
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from hyperv_host_agent.replication.progress import CycleDone, Phase, View
from hyperv_host_agent.replication.schedule import Timing
from hyperv_host_agent.replication.state import Totals
from hyperv_host_agent.sample_store import SampleStore, SamplesUnwritable
from hyperv_host_agent.samples import Recorder
from hyperv_host_agent.sampling import BATCH_SAMPLES, TICK_SECONDS, Sampling
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock

BEGIN = 1_800_000_000.0  # a full minute
VM = "0f6e0000-0000-4000-8000-000000000001"


def done(seconds: float = 1.0, *, copy: bool = False, disks: tuple[tuple[str, int], ...] = (), **causes) -> CycleDone:
    return CycleDone(1, copy, "crash", seconds, Timing(**causes), 0, 0, 0, disks)


def seen(instant: float = 0.0, *, last: CycleDone | None = None, **counters: int) -> View:
    """What a sender shows of itself."""
    numbers = dict.fromkeys(("copied_bytes", "copy_bytes", "cycles", "missed", "failures"), 0)
    numbers |= {"changed_bytes": 0, "content_bytes": 0, "wire_bytes": 0} | counters
    return View(
        phase=Phase.REPLICATING,
        reason=None,
        term=1,
        committed=None,
        instant=instant,
        last_seconds=0.0,
        causes=Timing(),
        late="",
        note="",
        last=last,
        totals=Totals(),
        **numbers,
    )


# ---- the recorder ------------------------------------------------------------------------------------------------


def test_a_minute_has_the_sums_of_its_cycles_and_its_own_alone() -> None:
    recorder = Recorder()
    first = done(2.0, source=0.5, network=1.5, disks=(("a", 100), ("b", 20)))
    second = done(3.0, network=3.0, disks=(("b", 5),))
    view = seen(BEGIN - 1, changed_bytes=120, content_bytes=100, wire_bytes=60, last=first)
    recorder.view(VM, view, BEGIN + 10)
    recorder.view(VM, view, BEGIN + 11)  # the same cycle again
    view = seen(BEGIN + 20, missed=1, failures=2, changed_bytes=125, content_bytes=101, wire_bytes=64, last=second)
    recorder.view(VM, view, BEGIN + 30)
    third = replace(view, instant=BEGIN + 61, changed_bytes=200, last=done())
    recorder.view(VM, third, BEGIN + 62)
    minute, following = recorder.unsaved(BEGIN + 62)
    assert (minute.start_unix, following.start_unix) == (BEGIN, BEGIN + 60)
    assert (minute.cycles, minute.missed, minute.failures) == (2, 1, 2)
    assert (minute.changed_bytes, minute.content_bytes, minute.wire_bytes) == (125, 101, 64)
    assert (minute.seconds_sum, minute.seconds_max) == (5.0, 3.0)
    assert (minute.causes.source, minute.causes.network) == (0.5, 4.5)
    assert {disk.disk_id: disk.changed_bytes for disk in minute.disks} == {"a": 100, "b": 25}
    assert (following.cycles, following.changed_bytes, following.wire_bytes) == (1, 75, 0)


def test_the_oldest_age_of_the_newest_point_is_that_just_before_the_next_or_at_the_end() -> None:
    recorder = Recorder()
    recorder.view(VM, seen(BEGIN - 5), BEGIN)
    recorder.view(VM, seen(BEGIN + 38), BEGIN + 40)  # the point of before was 45 s old
    recorder.roll(BEGIN + 61)
    recorder.roll(BEGIN + 121)
    ages = {sample.start_unix - BEGIN: sample.rpo_max_seconds for sample in recorder.unsaved(BEGIN + 125)}
    assert ages == {0: 45, 60: 82, 120: 87}


def test_minutes_without_a_commit_have_a_sample_whose_age_grows() -> None:
    recorder = Recorder()
    recorder.view(VM, seen(BEGIN), BEGIN)
    recorder.roll(BEGIN + 5 * 60 + 30)  # nobody looked for five minutes
    samples = recorder.unsaved(BEGIN + 5 * 60 + 30)
    assert [sample.start_unix for sample in samples] == [BEGIN + 60 * number for number in range(6)]
    assert [sample.rpo_max_seconds for sample in samples] == [60, 120, 180, 240, 300, 330]
    assert not any(sample.cycles for sample in samples)


def test_a_copy_is_no_cycle_and_its_bytes_are_no_churn() -> None:
    recorder = Recorder()
    copy = done(7200.0, copy=True, disks=(("a", 10**12),))
    recorder.view(VM, seen(changed_bytes=10**12, wire_bytes=10**11, last=copy), BEGIN)
    (sample,) = recorder.unsaved(BEGIN + 1)
    assert (sample.cycles, sample.seconds_max, list(sample.disks)) == (0, 0, [])
    assert (sample.changed_bytes, sample.wire_bytes) == (10**12, 10**11)


def test_a_sender_that_began_anew_counts_from_nothing() -> None:
    recorder = Recorder()
    recorder.view(VM, seen(failures=5, changed_bytes=100), BEGIN)
    recorder.view(VM, seen(failures=0, changed_bytes=0), BEGIN + 1)
    recorder.view(VM, seen(failures=1, changed_bytes=30), BEGIN + 2)
    (sample,) = recorder.unsaved(BEGIN + 3)
    assert (sample.failures, sample.changed_bytes) == (6, 130)


def test_a_clock_that_is_corrected_a_little_keeps_the_minute_open() -> None:
    recorder = Recorder()
    recorder.view(VM, seen(changed_bytes=1), BEGIN + 61)
    recorder.view(VM, seen(changed_bytes=3), BEGIN + 58)
    (sample,) = recorder.unsaved(BEGIN + 58)
    assert (sample.start_unix, sample.changed_bytes) == (BEGIN + 60, 3)
    recorder.roll(BEGIN + 10**9)  # and one that jumps far ahead does not make a million samples
    assert len(recorder.unsaved(BEGIN + 10**9)) == 2


# ---- on disk -----------------------------------------------------------------------------------------------------


def samples(count: int, *, first: float = BEGIN, name: str = VM) -> list[types_pb2.Sample]:
    return [
        types_pb2.Sample(vm_id=name, start_unix=int(first) + 60 * number, cycles=number, rpo_max_seconds=1.5)
        for number in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    opened = SampleStore(tmp_path / "statistics.db")
    yield opened
    opened.close()


def test_samples_come_back_oldest_first_in_bounded_batches_until_they_are_removed(store: SampleStore) -> None:
    store.write(reversed(samples(10)))
    store.write(samples(10))
    assert store.oldest(3, 10**6, but=(0, 0)) == samples(10)[:3]
    assert store.oldest(100, samples(1)[0].ByteSize() + 10, but=(0, 0)) == samples(10)[:1]
    assert store.oldest(100, 0, but=(0, 0)) == samples(10)[:1]
    assert store.oldest(100, 10**6, but=(0, int(BEGIN))) == samples(10)[1:]
    changed = types_pb2.Sample(vm_id=VM, start_unix=int(BEGIN), cycles=99)
    store.write([changed])
    assert store.remove(samples(10)[:5]) == 4
    assert store.oldest(100, 10**6, but=(0, 0)) == [changed, *samples(10)[5:]]


def test_what_is_too_old_or_too_much_goes_the_oldest_first(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "statistics.db", limit_bytes=200_000)
    store.write(samples(20_000))
    store.write(samples(5, first=BEGIN - 31 * 86400))
    assert store.trim(BEGIN) >= 5
    left = store.oldest(30_000, 10**9, but=(0, 0))
    assert 1000 < len(left) < 10_000
    assert left == samples(20_000)[-len(left) :]
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 6_000_000  # the pages are used again: it does not grow
    store.write(samples(5000, first=BEGIN + 10**7))
    store.trim(BEGIN + 10**7)
    store.close()
    assert (tmp_path / "statistics.db").stat().st_size < 3_000_000


@pytest.mark.parametrize("damage", [b"not a database at all" * 500, b""])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "statistics.db"
    path.write_bytes(damage)
    store = SampleStore(path)
    store.write(samples(3))
    assert store.oldest(9, 10**6, but=(0, 0)) == samples(3)
    store.close()
    with path.open("r+b") as file:
        file.seek(4096 // 2)
        file.write(b"\xff" * 8000)
    store.write(samples(2))
    assert store.oldest(9, 10**6, but=(0, 0))[:2] == samples(2)
    store.close()


def test_a_folder_that_cannot_be_written_is_an_error_that_may_pass(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "later" / "statistics.db")
    with pytest.raises(SamplesUnwritable):
        store.write(samples(1))
    (tmp_path / "later").mkdir()
    store.write(samples(1))
    assert store.oldest(9, 10**6, but=(0, 0)) == samples(1)
    store.close()


def test_a_disk_that_is_full_keeps_what_it_has_and_takes_more_when_there_is_room(store: SampleStore) -> None:
    store.write(samples(500))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(SamplesUnwritable):
            store.write(samples(20_000, first=BEGIN + 86400 * 7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.oldest(30_000, 10**9, but=(0, 0)) == samples(500)
    store.write(samples(10, first=BEGIN + 86400 * 7))
    assert len(store.oldest(30_000, 10**9, but=(0, 0))) == 510


# ---- together ----------------------------------------------------------------------------------------------------


class TickClock(MovedClock):
    """Of one sleeper, of whom it knows whether he sleeps."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self._asleep.set()
        await super().sleep(seconds)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        if not self._sleepers:
            self._asleep.clear()

    async def ticked(self, seconds: float) -> None:
        """Once he sleeps, so much time passes, and what that woke him for is done."""
        await self._asleep.wait()
        self.advance(seconds)
        await self._asleep.wait()

    async def set_back(self, now: float) -> None:
        """The wall's clock; sleeping goes on by another."""
        await self._asleep.wait()
        (_, _, wake) = self._sleepers.pop()
        self._now = now
        self._asleep.clear()
        wake.set()
        await self._asleep.wait()


class Desk:
    """A host's recorder with a moved clock, and a provider that stores when the test says so."""

    def __init__(self, folder: Path, clock: TickClock) -> None:
        self.clock = clock
        self.sampling = Sampling(SampleStore(folder / "statistics.db"), clock)
        self.sent: list[pb.SampleBatch] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.sampling.load()
        self._tasks = [asyncio.ensure_future(self.sampling.run())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def connect(self) -> None:
        self._tasks.append(asyncio.ensure_future(self.sampling.session(self.sent.append)))

    def disconnect(self) -> None:
        self._tasks.pop().cancel()

    async def until(self, check: Callable[[], object]) -> None:
        """Time passes in ticks of the recorder; each is waited for."""
        for _ in range(1000):
            if check():
                return
            await self.clock.ticked(TICK_SECONDS)
        raise AssertionError("it did not happen in time")

    async def minutes(self, count: int) -> None:
        """Let so many minutes pass, each sealed and written."""
        path = self.sampling._store
        end = self.clock.now() // 60 * 60 + 60 * count
        await self.until(lambda: self.clock.now() >= end and path.minute(int(end) - 60))


@pytest.fixture
def clock() -> TickClock:
    return TickClock(BEGIN)


async def test_samples_go_out_until_they_are_stored_and_then_no_more(tmp_path: Path, clock: TickClock) -> None:
    async with Desk(tmp_path, clock) as desk:
        desk.sampling.watch(VM)
        desk.sampling.view(VM, seen(BEGIN - 1, changed_bytes=5, last=done()))
        await desk.minutes(2)
        desk.connect()
        await desk.until(lambda: desk.sent)
        first = desk.sent[0]
        assert first.samples[0].start_unix == BEGIN
        assert (first.samples[0].cycles, first.samples[0].changed_bytes) == (1, 5)
        await desk.sampling.stored(first.id + 1)  # of something else
        desk.disconnect()
        desk.connect()
        await desk.until(lambda: len(desk.sent) == 2)
        assert desk.sent[1] == first  # the same batch in the next session
        await desk.sampling.stored(first.id)
        await desk.until(lambda: len(desk.sent) == 3)
        assert desk.sent[2].samples[0].start_unix > first.samples[-1].start_unix


async def test_an_outage_of_days_and_a_restart_of_the_agent_lose_no_minute(tmp_path: Path, clock: TickClock) -> None:
    store = SampleStore(tmp_path / "statistics.db")
    store.write(samples(3 * BATCH_SAMPLES - 100, first=BEGIN - 86400))
    store.close()
    async with Desk(tmp_path, clock) as desk:
        desk.sampling.view(VM, seen(BEGIN - 1, changed_bytes=5, last=done()))
        await clock.ticked(30)
    async with Desk(tmp_path, clock) as desk:  # in the same minute
        desk.sampling.view(VM, seen(BEGIN + 29, changed_bytes=7, last=done()))
        desk.connect()
        stored: list[types_pb2.Sample] = []
        while True:
            await desk.until(lambda: desk.sent)
            batch = desk.sent.pop()
            assert 0 < len(batch.samples) <= BATCH_SAMPLES
            stored += batch.samples
            await desk.sampling.stored(batch.id)
            if any(sample.start_unix >= BEGIN for sample in batch.samples):
                break
    assert stored[: 3 * BATCH_SAMPLES - 100] == samples(3 * BATCH_SAMPLES - 100, first=BEGIN - 86400)
    minute = next(sample for sample in stored if sample.start_unix == BEGIN)
    assert (minute.cycles, minute.changed_bytes) == (2, 12)


async def test_a_full_disk_costs_no_sample_once_there_is_room_again(tmp_path: Path, clock: TickClock) -> None:
    async with Desk(tmp_path / "full", clock) as desk:  # a folder that is not there: nothing can be written
        desk.connect()
        desk.sampling.view(VM, seen(BEGIN - 1, changed_bytes=5, last=done()))
        for _ in range(40):
            await clock.ticked(TICK_SECONDS)
        desk.sampling.view(VM, seen(clock.now(), changed_bytes=6, last=done()))
        assert not desk.sent
        (tmp_path / "full").mkdir()
        await desk.until(lambda: desk.sent)
        starts = [sample.start_unix for sample in desk.sent[0].samples]
        assert starts[0] == BEGIN
        assert starts == [BEGIN + 60 * number for number in range(len(starts))]
        assert desk.sent[0].samples[0].changed_bytes == 5


async def test_after_a_clock_was_set_back_for_hours_the_minute_goes_on_where_it_was(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "statistics.db")
    store.write([types_pb2.Sample(vm_id=VM, start_unix=int(BEGIN), cycles=4, changed_bytes=40)])
    store.close()
    clock = TickClock(BEGIN + 7 * 3600)
    async with Desk(tmp_path, clock) as desk:
        desk.sampling.view(VM, seen(changed_bytes=1))
        await desk.minutes(1)
        await clock.set_back(BEGIN + 10.0)
        desk.sampling.view(VM, seen(changed_bytes=3, last=done()))
        store = desk.sampling._store

        def added() -> bool:
            return [(sample.cycles, sample.changed_bytes) for sample in store.minute(int(BEGIN))] == [(5, 42)]

        await desk.until(added)


def test_a_store_is_closed_while_it_is_read(tmp_path: Path):
    store = SampleStore(tmp_path / "statistics.db")
    store.write(types_pb2.Sample(vm_id=f"vm-{number}", start_unix=int(BEGIN)) for number in range(500))
    with ThreadPoolExecutor(2) as readers:
        reads = [readers.submit(store.minute, int(BEGIN)) for _ in range(200)]
        while not all(read.done() for read in reads):
            store.close()
        assert {len(read.result()) for read in reads} == {500}
    store.close()
