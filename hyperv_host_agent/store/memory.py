"""The store's twin in memory, for the simulator and for tests: the same contract, and a power loss on demand."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperv_host_agent.replication.cycle import (
    Batch,
    Committed,
    CycleHeader,
    DiskGeometry,
    Kind,
    TargetState,
    Unfinished,
    Wanted,
)
from hyperv_host_agent.store import rules, seeding
from hyperv_host_agent.store.base import (
    AttachedDisk,
    AwaitedSeed,
    BadBatch,
    Budget,
    Checked,
    Finding,
    MaintainReport,
    NoSpace,
    PointInfo,
    PointLocked,
    PointMissing,
    PointPinned,
    ReplicaMissing,
    ScrubState,
    SeedNotAwaited,
    SeedStopped,
)
from hyperv_host_agent.store.formats import zstd_frame
from hyperv_host_agent.store.keeps import Mark, marked, told
from hyperv_host_agent.store.lock_clock import Passing
from hyperv_host_agent.store.wanted import TOLD
from twinsite.clock import Boot, boot
from twinsite.digest import CHAIN_START, fingerprint, is_zero
from twinsite.extents import CLUSTER, Run, clusters, runs

_ZEROS = bytes(CLUSTER)


@dataclass(slots=True)
class _Point:
    info: PointInfo
    disks: Mapping[str, Mapping[int, tuple[bytes, bytes]]]  # disk → cluster → frame, fingerprint; never modified
    hidden: Mapping[str, Mapping[int, int]] = field(default_factory=dict)  # by disk: see `_hidden`


@dataclass(slots=True)
class _Receiving:
    header: CycleHeader
    batches: list[tuple[Batch, bytes]] = field(default_factory=list)
    durable: int = 0
    seen: list[set[int]] = field(default_factory=list)  # per disk

    def cut(self, count: int) -> None:
        """Forget all but the first `count` batches."""
        del self.batches[count:]
        self.seen = [set() for _ in self.header.disks]
        for batch, _ in self.batches:
            self.seen[batch.disk].update(_touched(batch))


@dataclass(slots=True)
class _Kept:
    """What survives a power loss, but for the batches of `receiving` past its durable ones."""

    term: int
    points: dict[int, _Point] = field(default_factory=dict)
    pins: dict[str, set[int]] = field(default_factory=dict)
    marks: dict[int, Mark] = field(default_factory=dict)
    wanted: set[tuple[str, int]] = field(default_factory=set)  # disk, cluster
    completed: float | None = None  # the last check of everything
    damaged: dict[int, tuple[int, ...]] = field(default_factory=dict)  # frame → points
    receiving: _Receiving | None = None
    placeholder: AwaitedSeed | None = None
    seeded: seeding.Seeded | None = None

    def stored_bytes(self) -> int:
        frames = {id(cell): len(cell[0]) for p in self.points.values() for d in p.disks.values() for cell in d.values()}
        staged = sum(len(batch.payload) for batch, _ in self.receiving.batches) if self.receiving else 0
        return sum(frames.values()) + staged


def _touched(batch: Batch) -> set[int]:
    return set(batch.clusters).union(*(range(run.start, run.end) for run in batch.zero_runs))


class MemoryStore:
    """A ReplicaStore in memory. `crash` is a power loss of the host: every open Replica is dead, open them anew."""

    def __init__(self, *, capacity: int = 1 << 40, read: Callable[[], Boot] = boot) -> None:
        self.capacity = capacity  # bytes; tests lower it to fill the store and raise it to free space
        self._read = read
        self._passing = Passing(0.0, read())
        self._kept: dict[str, _Kept] = {}
        self._boot = 0

    def open(self, vm_id: str) -> "MemoryReplica":
        rules.check_id("VM", vm_id)
        if vm_id not in self._kept:
            raise ReplicaMissing(vm_id)
        return MemoryReplica(self, vm_id, self._kept[vm_id])

    def create(self, vm_id: str, *, term: int) -> "MemoryReplica":
        rules.check_id("VM", vm_id)
        if vm_id not in self._kept:
            self.need(1)
            self._kept[vm_id] = _Kept(term)
        return self.open(vm_id)

    def give_term(self, vm_id: str, term: int) -> None:  # noqa: ARG002  # what is in memory loses none
        rules.check_id("VM", vm_id)

    def remove(self, vm_id: str) -> None:
        rules.check_id("VM", vm_id)
        kept = self._kept.get(vm_id)
        for owner, cycles in (kept.pins if kept else {}).items():
            raise PointPinned(min(cycles), owner)
        now, wall = self.lock_clock()
        for mark in kept.marks.values() if kept else ():
            if now < mark.locked_until:
                raise PointLocked(mark.cycle, wall + mark.locked_until - now)
        self._kept.pop(vm_id, None)

    def replicas(self) -> list[str]:
        return sorted(self._kept)

    def free_bytes(self) -> int:
        return max(0, self.capacity - sum(kept.stored_bytes() for kept in self._kept.values()))

    def total_bytes(self) -> int:
        return self.capacity

    def crash(self, keep_unsynced: Callable[[str, int], int] = lambda _vm_id, _staged: 0) -> None:
        """Lose what was not synced; of `staged` such batches of a VM the first `keep_unsynced(vm_id, staged)` stay."""
        self._boot += 1
        for vm_id, kept in self._kept.items():
            if kept.receiving:
                staged = len(kept.receiving.batches) - kept.receiving.durable
                kept.receiving.cut(kept.receiving.durable + keep_unsynced(vm_id, staged))
                kept.receiving.durable = len(kept.receiving.batches)
                if not kept.receiving.durable:
                    kept.receiving = None

    def need(self, count: int) -> None:
        """Raise NoSpace unless `count` more bytes fit."""
        free = self.free_bytes()
        if free < count:
            raise NoSpace(free, count)

    def lock_clock(self) -> tuple[float, float]:
        """Seconds of the lock clock, and of the wall clock."""
        self._passing.see(self._read())
        return self._passing.elapsed, self._passing.last.wall

    @property
    def boot(self) -> int:
        return self._boot


class MemoryReplica:
    """A Replica of a MemoryStore."""

    def __init__(self, store: MemoryStore, vm_id: str, kept: _Kept) -> None:
        self._store, self._vm_id, self._state = store, vm_id, kept
        self._boot = store.boot
        self._base: list[dict[int, tuple[bytes, bytes]]] | None = None  # a seed being read in

    @property
    def _kept(self) -> _Kept:
        if self._boot != self._store.boot:
            raise RuntimeError("this replica was open when the power went; open it again")
        return self._state

    def state(self) -> TargetState:
        kept, unfinished, committed = self._kept, None, None
        if kept.points:
            newest = kept.points[max(kept.points)].info
            committed = Committed(newest.cycle, newest.id)
        if kept.receiving:
            header, durable = kept.receiving.header, kept.receiving.durable
            digest = kept.receiving.batches[durable - 1][1] if durable else CHAIN_START
            unfinished = Unfinished(header.number, header.id, durable, digest)
        awaited = self.awaited()
        seed = awaited.id if awaited else b""
        after = kept.seeded.after if kept.seeded else 0
        return TargetState(kept.term, committed, unfinished, self.wanted(), awaited is not None, seed, after)

    def set_term(self, term: int) -> None:
        if term < self._kept.term:
            raise ValueError(f"term {term} is below {self._kept.term}")
        self._kept.term = term

    def begin(self, header: CycleHeader, *, resume_after: int) -> None:
        rules.check_header(header, self._vm_id, self.state())
        receiving = self._kept.receiving
        if receiving is None or receiving.header.id != header.id:
            receiving = _Receiving(header)
        if resume_after > receiving.durable:
            raise ValueError(f"batch {resume_after} is not durable, {receiving.durable} is")
        if receiving.header.disks != header.disks:
            raise ValueError("the same cycle came with other disks")
        self._store.need(1)
        receiving.header = header
        receiving.cut(resume_after)
        receiving.durable = resume_after
        self._kept.receiving = receiving

    def put(self, batch: Batch, digest: bytes) -> None:
        receiving = self._receiving()
        rules.check_batch(receiving.header, batch, sequence=len(receiving.batches) + 1)
        touched, seen = _touched(batch), receiving.seen[batch.disk]
        if not seen.isdisjoint(touched):
            raise BadBatch(batch.sequence, f"cluster {min(seen & touched)} came before")
        self._store.need(max(1, len(batch.payload)))
        seen |= touched
        receiving.batches.append((replace(batch, payload=bytes(batch.payload)), digest))

    def sync(self) -> int:
        receiving = self._receiving()
        self._store.need(0)
        receiving.durable = len(receiving.batches)
        return receiving.durable

    def commit(self) -> PointInfo:
        receiving, kept = self._receiving(), self._kept
        self._store.need(0)
        header = receiving.header
        before = kept.points[header.parent] if header.parent else None
        disks = {disk.id: self._applied(disk, position, before) for position, disk in enumerate(header.disks)}
        info = PointInfo(
            cycle=header.number,
            id=header.id,
            parent=header.parent,
            instant=header.instant,
            consistency=header.consistency,
            term=header.term,
            machine=header.machine,
            disks=header.disks,
            clusters=sum(map(len, receiving.seen)),
            stored_bytes=sum(len(batch.payload) for batch, _ in receiving.batches),
        )
        kept.points[header.number] = _Point(info, disks, self._hidden(header, before))
        ends = {disk.id: clusters(disk.size) for disk in header.disks}
        brought = {(disk.id, x) for disk, seen in zip(header.disks, receiving.seen, strict=True) for x in seen}
        kept.wanted = {(disk, x) for disk, x in kept.wanted if x < ends.get(disk, 0)} - brought
        kept.receiving = None
        if header.placeholder:
            kept.placeholder = AwaitedSeed(header.id, header.number, header.instant, header.disks)
        if kept.seeded and kept.seeded.lacking:
            touched = {disk.id: runs(sorted(seen)) for disk, seen in zip(header.disks, receiving.seen, strict=True)}
            kept.seeded = kept.seeded.came(header.number, touched, ends)
        if header.kind is Kind.RESYNC and (awaited := self.awaited()):
            kept.seeded = seeding.called_off(awaited, header.number)
        return self._info(header.number)

    def abandon(self) -> None:
        self._kept.receiving = None

    def points(self) -> list[PointInfo]:
        return [self._info(cycle) for cycle in sorted(self._kept.points)]

    def lost(self) -> list[PointInfo]:
        return []

    def mark(self, cycle: int, *, keep: bool | None, name: str | None, lock_seconds: int | None) -> PointInfo:
        if cycle not in self._kept.points:
            raise PointMissing(cycle)
        mark = self._kept.marks.get(cycle) or Mark(cycle, b"")
        now, wall = self._store.lock_clock()
        self._kept.marks[cycle] = marked(mark, now, wall, keep=keep, name=name, lock_seconds=lock_seconds)
        return self._info(cycle)

    def wanted(self) -> tuple[Wanted, ...]:
        by_disk: dict[str, list[int]] = {}
        for disk, cluster in sorted(self._kept.wanted):
            by_disk.setdefault(disk, []).append(cluster)
        return tuple(Wanted(disk, run) for disk, found in by_disk.items() for run in runs(found))[:TOLD]

    def want(self, runs: Iterable[Wanted]) -> None:
        self._kept.wanted |= {(one.disk, cluster) for one in runs for cluster in range(one.run.start, one.run.end)}

    def attach(self, cycle: int, owner: str) -> tuple[AttachedDisk, ...]:
        rules.check_owner(owner)
        if cycle not in self._kept.points:
            raise PointMissing(cycle)
        self._kept.pins.setdefault(owner, set()).add(cycle)
        return tuple(
            AttachedDisk(disk.id, disk.name, disk.size, (Path("/memory", self._vm_id, disk.id, f"{cycle:06}"),))
            for disk in self._kept.points[cycle].info.disks
        )

    def detach(self, owner: str) -> None:
        self._kept.pins.pop(rules.check_owner(owner), None)

    def maintain(
        self,
        *,
        keep: Sequence[int],
        up_to: int | None = None,
        budget: Budget | None = None,  # noqa: ARG002  # nothing to merge
    ) -> MaintainReport:
        stay = {*keep, *self._pins(), max(self._kept.points, default=0)}
        now, _ = self._store.lock_clock()
        stay |= {mark.cycle for mark in self._kept.marks.values() if mark.kept or now < mark.locked_until}
        if awaited := self.awaited():
            stay.add(awaited.cycle)
        judged = self._kept.points if up_to is None else {cycle for cycle in self._kept.points if cycle <= up_to}
        removed = sorted(cycle for cycle in judged if cycle not in stay)
        for cycle in removed:
            del self._kept.points[cycle]
            self._kept.marks.pop(cycle, None)
        return MaintainReport(removed=removed)

    def awaited(self) -> AwaitedSeed | None:
        placeholder, seeded = self._kept.placeholder, self._kept.seeded
        return None if placeholder is None or (seeded and seeded.id == placeholder.id) else placeholder

    def seed_begin(self, id: bytes) -> None:  # noqa: A002  # as the port
        awaited = self.awaited()
        if awaited is None or awaited.id != id:
            raise SeedNotAwaited(self._vm_id)
        self._store.need(1)
        self._base = [{} for _ in awaited.disks]

    def seed_put(self, batch: Batch) -> None:
        base, awaited = self._base, self.awaited()
        if base is None or awaited is None:
            raise SeedStopped(self._vm_id)
        self._store.need(max(1, len(batch.payload)))
        batch = seeding.check(self._vm_id, awaited, batch)
        if batch.clusters and base[batch.disk] and batch.clusters[0] <= max(base[batch.disk]):
            raise BadBatch(batch.sequence, f"cluster {batch.clusters[0]} after {max(base[batch.disk])}")
        at = 0
        for index, (cluster, length) in enumerate(zip(batch.clusters, batch.lengths, strict=True)):
            base[batch.disk][cluster] = bytes(batch.payload[at : at + length]), batch.fingerprint(index)
            at += length

    def seed_commit(self, *, after_cycle: int, lacking: Sequence[Wanted]) -> None:
        base, awaited, kept = self._base, self.awaited(), self._kept
        if base is None or awaited is None:
            raise SeedStopped(self._vm_id)
        self._store.need(0)
        self.want(lacking)
        for point in kept.points.values():
            point.disks = {
                disk: {**content, **_shown(base, awaited, disk, point.hidden.get(disk, {}))}
                for disk, content in point.disks.items()
            }
        kept.seeded = seeding.Seeded(awaited.id, awaited.cycle, after_cycle, tuple(lacking), awaited.cycle + 1)
        self._base = None

    def seed_abandon(self) -> None:
        self._base = None

    def fingerprints(self, disk: str, start: int, count: int, *, cycle: int = 0) -> Iterator[tuple[int, bytes]]:
        content = self._point(cycle).disks.get(disk, {})
        for cluster in sorted(content):
            if start <= cluster < start + count:
                yield cluster, content[cluster][1]

    def check(self, *, cycle: int = 0, repair: bool = False) -> Iterator[Checked]:
        if cycle and cycle not in self._kept.points:
            raise PointMissing(cycle)
        return self._checked(cycle, repair=repair)

    def scrub(self, count: int, now: float) -> ScrubState:  # noqa: ARG002  # all at once: it is small
        for _ in self.check(repair=True):
            pass
        self._kept.completed = now
        return self.scrubbed()

    def scrubbed(self) -> ScrubState:
        kept = self._kept
        cells = {id(x): x for p in kept.points.values() for disk in p.disks.values() for x in disk.values()}
        total = sum(len(frame) for frame, _ in cells.values())
        checked = total if kept.completed is not None else 0
        return ScrubState(kept.completed, checked, total, len(kept.damaged))

    def verify(self, *, cycle: int = 0) -> Iterator[Finding]:
        for step in self.check(cycle=cycle):
            yield from step.findings

    def _checked(self, cycle: int, *, repair: bool) -> Iterator[Checked]:
        kept, total, done = self._kept, 0, 0
        shown: dict[int, tuple[str, int, tuple[bytes, bytes], list[int]]] = {}  # by frame
        for number, point in sorted(kept.points.items()):
            for disk, content in point.disks.items() if cycle in {0, number} else ():
                for cluster, cell in content.items():
                    if id(cell) not in shown:
                        shown[id(cell)] = (disk, cluster, cell, [])
                        total += len(cell[0])
                    shown[id(cell)][3].append(number)
        yield Checked(0, total)
        newest = max(kept.points, default=0)
        for name, (disk, cluster, (frame, expected), points) in shown.items():
            done += len(frame)
            problem = _problem(frame, expected)
            if problem:
                kept.damaged[name] = tuple(points)
                wanted = repair and newest in points
                if wanted:
                    self.want([Wanted(disk, Run(cluster, 1))])
                found = Finding(disk, f"{disk}/{cluster}", cluster, problem, tuple(points), wanted=wanted)
                yield Checked(done, total, (found,))
        yield Checked(total, total)

    def read(self, cycle: int, disk: str, cluster: int) -> bytes:
        """One cluster of a disk at a point, CLUSTER bytes; for tests and for the simulated hypervisor."""
        if cycle not in self._kept.points:
            raise PointMissing(cycle)
        cell = self._kept.points[cycle].disks[disk].get(cluster)
        return zstd_frame.content(cell[0]) if cell else _ZEROS

    def close(self) -> None:
        """Nothing is held open."""

    def _hidden(self, header: CycleHeader, before: _Point | None) -> dict[str, dict[int, int]]:
        """Of clusters that a seed may not show as it holds them, how many of their bytes it may, by disk."""
        awaited = self.awaited()
        if awaited is None or before is None:
            return {}
        hidden = {}
        sizes = {disk.id: disk.size for disk in before.info.disks}
        for position, disk in enumerate(header.disks):
            base = next((other.size for other in awaited.disks if other.id == disk.id), 0)
            found = dict(before.hidden.get(disk.id, {}))
            end = disk.size if disk.id in sizes else 0  # a disk that comes back has nothing of what it was
            for cluster in range(end // CLUSTER, clusters(base)):
                found[cluster] = min(found.get(cluster, CLUSTER), max(0, end - cluster * CLUSTER))
            found.update(dict.fromkeys(self._receiving().seen[position], 0))
            hidden[disk.id] = found
        return hidden

    def _receiving(self) -> _Receiving:
        if self._kept.receiving is None:
            raise ValueError("no cycle is being received")
        return self._kept.receiving

    def _point(self, cycle: int) -> _Point:
        """A point, 0: the newest. Raises PointMissing."""
        points = self._kept.points
        if not points or (cycle and cycle not in points):
            raise PointMissing(cycle)
        return points[cycle or max(points)]

    def _info(self, cycle: int) -> PointInfo:
        awaited, seeded = self.awaited(), self._kept.seeded
        complete = (awaited is None or cycle < awaited.cycle) and (not seeded or seeded.complete(cycle))
        pinned_by = tuple(sorted(self._pins().get(cycle, ())))
        info = replace(self._kept.points[cycle].info, pinned_by=pinned_by, complete=complete)
        damaged = sum(cycle in points for points in self._kept.damaged.values())
        info = replace(info, damaged=damaged)
        mark = self._kept.marks.get(cycle)
        return told(info, mark, *self._store.lock_clock()) if mark else info

    def _pins(self) -> dict[int, list[str]]:
        pins: dict[int, list[str]] = {}
        for owner, cycles in self._kept.pins.items():
            for cycle in cycles:
                pins.setdefault(cycle, []).append(owner)
        return pins

    def _applied(self, disk: DiskGeometry, position: int, before: _Point | None) -> dict[int, tuple[bytes, bytes]]:
        """The disk's content after the cycle that is being received."""
        content = dict(before.disks.get(disk.id, {})) if before else {}
        end = clusters(disk.size)
        for cluster in [cluster for cluster in content if cluster >= end]:
            del content[cluster]
        sizes = {other.id: other.size for other in before.info.disks} if before else {}
        # A shrink may have cut the last cluster; growing reads zeros.
        if disk.size % CLUSTER and end - 1 in content and sizes.get(disk.id, 0) > disk.size:
            frame, expected = content[end - 1]
            data = zstd_frame.content(frame)[: disk.size % CLUSTER].ljust(CLUSTER, b"\0")
            if is_zero(data):
                del content[end - 1]
            elif fingerprint(data) != expected:
                content[end - 1] = (zstd_frame.compress(data), fingerprint(data))
        for batch, _ in self._receiving().batches:
            if batch.disk != position:
                continue
            for run in batch.zero_runs:
                for cluster in range(run.start, run.end):
                    content.pop(cluster, None)
            at = 0
            for index, (cluster, length) in enumerate(zip(batch.clusters, batch.lengths, strict=True)):
                content[cluster] = (bytes(batch.payload[at : at + length]), batch.fingerprint(index))
                at += length
        return content


def _shown(
    base: Sequence[Mapping[int, tuple[bytes, bytes]]], awaited: AwaitedSeed, disk: str, hidden: Mapping[int, int]
) -> dict[int, tuple[bytes, bytes]]:
    """What of a seed a point shows of a disk, by cluster."""
    found = {}
    for content, geometry in zip(base, awaited.disks, strict=True):
        for cluster, cell in content.items() if geometry.id == disk else ():
            limit = hidden.get(cluster, CLUSTER)
            if limit == CLUSTER:
                found[cluster] = cell
            elif not is_zero(data := zstd_frame.content(cell[0])[:limit].ljust(CLUSTER, b"\0")):
                found[cluster] = (zstd_frame.compress(data), fingerprint(data))
    return found


def _problem(frame: bytes, expected: bytes) -> str | None:
    try:
        good = fingerprint(zstd_frame.content(frame)) == expected
    except zstd_frame.BadFrame as error:
        return error.problem
    return None if good else "its content does not match its fingerprint"
