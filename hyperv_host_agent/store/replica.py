"""One VM's replica on disk: the `Replica` port over manifests, layers, pins and the cycle being received."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from hyperv_host_agent.replication.cycle import Batch, Committed, CycleHeader, Kind, TargetState, Wanted
from hyperv_host_agent.store import checking, files, manifests, merge_plan, merging, rules, seeding
from hyperv_host_agent.store.base import (
    AttachedDisk,
    AwaitedSeed,
    Finding,
    MaintainReport,
    NoSpace,
    PointInfo,
    PointMissing,
    SeedNotAwaited,
    SeedStopped,
    StoreDamaged,
    WriteFailed,
)
from hyperv_host_agent.store.content import DiskContent
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from hyperv_host_agent.store.keeps import Keeps
from hyperv_host_agent.store.lock_clock import LockClock
from hyperv_host_agent.store.manifests import DiskRef, LayerRef, Manifest, layer_cycle
from hyperv_host_agent.store.pins import PINS, Pins
from hyperv_host_agent.store.receiving import Receiving
from hyperv_host_agent.store.wanted import WantedRuns
from twinsite.extents import clusters

TERM: Final = "replica.json"


class ChainReplica:
    """A Replica in a directory.

    One thread receives; `maintain`, `attach`, `detach`, `points` and the readers may run beside it in others.
    """

    def __init__(self, directory: Path, vm_id: str, *, reserve: int, space: files.Space, clock: LockClock) -> None:
        """Open it, finish an interrupted merge, remove garbage. Raises StoreDamaged, NoSpace, WriteFailed."""
        self._directory, self._vm_id = directory, vm_id
        self._reserve, self._space = reserve, space
        self._lock = threading.RLock()  # guards manifests, pins and the names of files
        self._maintaining = threading.Lock()
        self._reading_in = threading.Lock()  # guards the attempt below
        self._seeding: seeding.Seeding | None = None
        self._closed = threading.Event()
        self._broken = ""
        self._unpublished: merging.Intent | None = None
        self._term = _read_term(directory, vm_id)
        for name in (manifests.POINTS, PINS):
            if not (directory / name).is_dir():
                raise StoreDamaged(vm_id, f"{name}/ is missing")
        with files.writing(vm_id, directory, space):
            # What is seen here is told to the source as committed, so it must be what a power loss leaves.
            files.sync_directory(directory / manifests.POINTS)
            self._manifests = manifests.load(directory, vm_id)
            self._unpublished = checking.read_intent(directory, vm_id)
            self._publish()
            self._seeded = seeding.read(directory, vm_id)
            self._call_off()
            self._pins = Pins(directory, vm_id)
            self._keeps = Keeps(directory, clock)
            self._keeps.keep_only(manifest.info(()) for manifest in self._manifests.values())
            self._wanted = WantedRuns(directory)
            if self._seeded:
                self._wanted.add(self._seeded.lacking)
            checking.check_chains(directory, vm_id, self._manifests)
            self._receiving = self._recover()
            self._collect(everything=True)

    def state(self) -> TargetState:
        with self._lock:
            newest = self._newest()
            committed = Committed(newest.cycle, newest.id) if newest else None
            wanted, placeholder = self._wanted.told(), self._placeholder()
        unfinished = self._receiving.unfinished if self._receiving else None
        seed = placeholder.id if placeholder else b""
        return TargetState(self._term, committed, unfinished, wanted, placeholder is not None, seed)

    def set_term(self, term: int) -> None:
        if term < self._term:
            raise ValueError(f"term {term} is below {self._term}")
        if term > self._term:
            with files.writing(self._vm_id, self._directory, self._space):
                write_term(self._directory, self._vm_id, term)
            self._term = term

    def begin(self, header: CycleHeader, *, resume_after: int) -> None:
        self._check_sound()
        rules.check_header(header, self._vm_id, self.state())
        same = self._receiving is not None and self._receiving.header.id == header.id
        durable = self._receiving.durable if self._receiving and same else 0
        if resume_after > durable:
            raise ValueError(f"batch {resume_after} is not durable, {durable} is")
        if self._receiving and same and self._receiving.header.disks != header.disks:
            raise ValueError("the same cycle came with other disks")
        self._need(0)
        with self._dropping():
            if self._receiving and same:
                if not self._receiving.rewind(resume_after):
                    raise OSError(0, "the part of the cycle that came before is gone")
                self._receiving.header = header
                return
            self.abandon()
            self._receiving = Receiving.start(self._directory, header)

    def put(self, batch: Batch, digest: bytes) -> None:
        receiving = self._current()
        self._need(len(batch.payload))
        with self._dropping():
            receiving.put(batch, digest)

    def sync(self) -> int:
        receiving = self._current()
        self._need(0)
        with self._dropping():
            return receiving.sync()

    def commit(self) -> PointInfo:
        receiving = self._current()
        self._need(receiving.finish_bytes())
        header = receiving.header
        with self._lock:
            parents = {disk.id: self._top(disk.id) for disk in header.disks}
        with self._dropping():
            receiving.sync()
            try:
                finished = receiving.finish(parents)
                manifest = self._commit(receiving, finished)
            except OSError:
                receiving.take_back()
                raise
            self._receiving = None
            with self._lock:
                sizes = {disk.id: clusters(disk.size) for disk in header.disks}
                brought = receiving.brought() if self._wanted.told() else {}
                self._wanted.carried(brought, sizes)
                if self._seeded and self._seeded.lacking:
                    self._seeded = self._seeded.came(manifest.cycle, brought, sizes)
                    seeding.write(self._directory, self._seeded)
                if header.kind is Kind.RESYNC and (placeholder := self._placeholder()):
                    self._seeded = seeding.called_off(seeding.of(placeholder), manifest.cycle)
                    seeding.write(self._directory, self._seeded)
            receiving.committed()
        return self._info(manifest)

    def abandon(self) -> None:
        if self._receiving:
            self._receiving.drop()
            self._receiving = None

    def points(self) -> list[PointInfo]:
        with self._lock:
            return [self._info(manifest) for manifest in self._manifests.values()]

    def mark(self, cycle: int, *, keep: bool | None, name: str | None, lock_seconds: int | None) -> PointInfo:
        with self._lock, files.writing(self._vm_id, self._directory, self._space):
            manifest = self._manifests.get(cycle)
            if manifest is None:
                raise PointMissing(cycle)
            self._keeps.mark(manifest.info(()), keep=keep, name=name, lock_seconds=lock_seconds)
            return self._info(manifest)

    def wanted(self) -> tuple[Wanted, ...]:
        with self._lock:
            return self._wanted.told()

    def want(self, runs: Iterable[Wanted]) -> None:
        with self._lock, files.writing(self._vm_id, self._directory, self._space):
            self._wanted.add(runs)

    def attach(self, cycle: int, owner: str) -> tuple[AttachedDisk, ...]:
        rules.check_owner(owner)
        with self._lock, files.writing(self._vm_id, self._directory, self._space):
            manifest = self._manifests.get(cycle)
            if manifest is None:
                raise PointMissing(cycle)
            self._pins.add(owner, cycle)
            return tuple(
                AttachedDisk(
                    id=disk.geometry.id,
                    name=disk.geometry.name,
                    size=disk.geometry.size,
                    layers=tuple(self._directory / disk.geometry.id / layer.file for layer in disk.layers),
                )
                for disk in manifest.disks
            )

    def detach(self, owner: str) -> None:
        rules.check_owner(owner)
        with self._lock, files.writing(self._vm_id, self._directory, self._space):
            self._pins.remove(owner)

    def maintain(self, *, keep: Sequence[int]) -> MaintainReport:
        self._check_sound()
        report = MaintainReport()
        with self._maintaining, files.writing(self._vm_id, self._directory, self._space):
            with self._lock:
                self._publish()
                report.removed = self._retire(keep)
                self._collect()
                newest = self._newest()
            for disk in newest.disks if newest else ():
                with self._lock:
                    if self._placeholder() and seeding.shrank(disk):
                        continue
                    planned = merge_plan.groups(self._candidates(disk.geometry.id))
                for group in planned:
                    if not self._merge(disk.geometry.id, group):
                        report.finished = False
                        break
                    report.merged.append(tuple(map(layer_cycle, group)))
        return report

    def awaited(self) -> AwaitedSeed | None:
        with self._lock:
            placeholder = self._placeholder()
        return seeding.of(placeholder) if placeholder else None

    def seed_begin(self, id: bytes) -> None:  # noqa: A002  # as the port
        self._check_sound()
        with self._reading_in, files.writing(self._vm_id, self._directory, self._space):
            self._drop_seeding()
            with self._lock:
                self._publish()  # an attempt that failed at its last step may have left a layer half in place
                placeholder = self._placeholder()
            if placeholder is None or placeholder.id != id:
                raise SeedNotAwaited(self._vm_id)
            self._need(0)
            self._seeding = seeding.Seeding(self._directory, placeholder)

    def seed_put(self, batch: Batch) -> None:
        self._need(len(batch.payload))
        with self._reading_in, self._dropping_seed():
            self._attempt().put(batch)

    def seed_commit(self, *, after_cycle: int, lacking: Sequence[Wanted]) -> None:
        with self._reading_in:
            attempt = self._attempt()
            self._need(attempt.finish_bytes())
            with self._dropping_seed():
                bases = attempt.finish()
                with self._lock:
                    self._wanted.add(lacking)
                    for disk_id, into in bases.items():
                        self._publish()
                        self._unpublished = merging.Intent(disk_id, (into.file,), into)
                    self._publish()
                    seeded = attempt.seeded(after_cycle, lacking)
                    seeding.write(self._directory, seeded)
                    self._seeded = seeded
            self._drop_seeding()

    def seed_abandon(self) -> None:
        with self._reading_in:
            self._drop_seeding()

    def fingerprints(self, disk: str, start: int, count: int) -> Iterator[tuple[int, bytes]]:
        content = self._content(disk)
        if content is None:
            return
        with closing(content):
            for side in content.damaged_sides():
                raise StoreDamaged(self._vm_id, f"{side.path.name} does not match the digest in its manifest")
            yield from content.fingerprints(start, count)

    def verify(self) -> Iterator[Finding]:
        newest = self._newest()
        for disk in newest.disks if newest else ():
            cycle, name = newest.cycle if newest else 0, disk.geometry.id
            try:
                content = self._content(name)
            except LayerDamaged as error:
                yield Finding(cycle, name, error.cluster, str(error))
                continue
            if content:
                with closing(content):
                    for cluster, problem in content.problems():
                        yield Finding(cycle, name, cluster, problem)

    def close(self) -> None:
        """Let go of all files; a merge under way stops. What is staged and not synced is lost."""
        self._closed.set()
        self.seed_abandon()
        with self._maintaining:
            if self._receiving:
                self._receiving.close()
                self._receiving = None

    def _recover(self) -> Receiving | None:
        newest = self._newest()
        return Receiving.recover(self._directory, committed=newest.cycle if newest else 0)

    def _info(self, manifest: Manifest) -> PointInfo:
        with self._lock:
            placeholder, seeded, cycle = self._placeholder(), self._seeded, manifest.cycle
            complete = (placeholder is None or cycle < placeholder.cycle) and (not seeded or seeded.complete(cycle))
            return replace(self._keeps.told(manifest.info(self._pins.owners(cycle))), complete=complete)

    def _placeholder(self) -> Manifest | None:
        return seeding.awaited(self._manifests.values(), self._seeded)

    def _call_off(self) -> None:
        """A whole copy came over the network, and a crash before the seed was called off."""
        placeholder = self._placeholder()
        copies = (cycle for cycle, manifest in self._manifests.items() if manifest.consistency == "none")
        newest = max(copies, default=0)
        if placeholder and newest > placeholder.cycle:
            self._seeded = seeding.called_off(seeding.of(placeholder), newest)
            seeding.write(self._directory, self._seeded)

    def _attempt(self) -> seeding.Seeding:
        self._check_sound()
        if self._seeding is None:
            raise SeedStopped(self._vm_id)
        return self._seeding

    def _drop_seeding(self) -> None:
        """As far as the file system lets us: what stays is garbage to the next start."""
        if self._seeding:
            with suppress(OSError):
                self._seeding.drop()
            self._seeding = None

    @contextmanager
    def _dropping_seed(self) -> Iterator[None]:
        """Name OSErrors; one not about space costs the attempt."""
        try:
            with files.writing(self._vm_id, self._directory, self._space):
                yield
        except WriteFailed:
            self._drop_seeding()
            raise

    def _newest(self) -> Manifest | None:
        return self._manifests[max(self._manifests)] if self._manifests else None

    def _layers(self, disk_id: str) -> tuple[LayerRef, ...]:
        newest = self._newest()
        disk = newest.disk(disk_id) if newest else None
        return disk.layers if disk else ()

    def _top(self, disk_id: str) -> LayerRef | None:
        layers = self._layers(disk_id)
        return layers[-1] if layers else None

    def _content(self, disk_id: str) -> DiskContent | None:
        with self._lock:  # files keep their names until all are open
            layers = self._layers(disk_id)
            return DiskContent(self._directory / disk_id, layers) if layers else None

    def _check_sound(self) -> None:
        if self._broken:
            raise WriteFailed(self._vm_id, self._broken)

    def _current(self) -> Receiving:
        self._check_sound()
        if self._receiving is None:
            raise ValueError("no cycle is being received")
        return self._receiving

    def _need(self, count: int) -> None:
        free, _ = self._space(self._directory)
        if free < count + self._reserve:
            raise NoSpace(free, count + self._reserve)

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Name OSErrors; one not about space costs the cycle: after a failed fsync nobody knows what is there."""
        try:
            with files.writing(self._vm_id, self._directory, self._space):
                yield
        except WriteFailed:
            if self._receiving and self._broken:
                self._receiving.close()
                self._receiving = None
            self.abandon()
            raise

    def _commit(self, receiving: Receiving, finished: dict[str, LayerRef]) -> Manifest:
        """Publish the cycle with one rename."""
        header = receiving.header
        with self._lock:
            disks = []
            for disk in header.disks:
                new = finished.get(disk.id)
                disks.append(DiskRef(disk, (*self._layers(disk.id), new) if new else self._layers(disk.id)))
            manifest = Manifest.of(
                header, tuple(disks), clusters=receiving.clusters, stored_bytes=receiving.stored_bytes
            )
            path = manifests.point_path(self._directory, manifest.cycle)
            temporary = path.with_name(path.name + ".tmp")
            files.write_file(temporary, manifest.encode())
            temporary.rename(path)
            try:
                files.sync_directory(path.parent)
            except OSError as error:
                # Committed or not: only a new start can tell.
                self._broken = f"a commit may not be durable ({error.strerror}); the replica has to be opened again"
                raise WriteFailed(self._vm_id, self._broken) from error
            self._manifests[manifest.cycle] = manifest
        return manifest

    def _retire(self, keep: Sequence[int]) -> list[int]:
        """Points that nobody needs stop being points; their layers stay while others stand on them."""
        stay = {*keep, *self._pins.cycles(), max(self._manifests, default=0)}
        stay.update(cycle for cycle, manifest in self._manifests.items() if self._keeps.stays(manifest.info(())))
        if placeholder := self._placeholder():
            stay.add(placeholder.cycle)
        removed = [cycle for cycle in self._manifests if cycle not in stay]
        for cycle in removed:
            files.remove_file(manifests.point_path(self._directory, cycle))
            del self._manifests[cycle]
        self._keeps.forget(removed)
        if removed:
            files.sync_directory(self._directory / manifests.POINTS)
        return removed

    def _candidates(self, disk_id: str) -> list[merge_plan.Candidate]:
        tops, pinned = set(), self._pinned_files(disk_id)
        for manifest in self._manifests.values():
            disk = manifest.disk(disk_id)
            if disk:
                tops.add(disk.layers[-1].file)
        return [
            merge_plan.Candidate(layer.file, layer.stored_bytes, layer.file in tops, layer.file in pinned)
            for layer in self._layers(disk_id)
        ]

    def _pinned_files(self, disk_id: str) -> set[str]:
        cycles = set(self._pins.cycles())
        if placeholder := self._placeholder():
            cycles.add(placeholder.cycle)  # its layers are to be replaced as they are
        disks = (self._manifests[cycle].disk(disk_id) for cycle in cycles if cycle in self._manifests)
        return {layer.file for disk in disks if disk for layer in disk.layers}

    def _merge(self, disk_id: str, group: tuple[str, ...]) -> bool:
        """Merge adjacent layers of a disk. False: not now."""
        directory = self._directory / disk_id
        with self._lock:
            layers = self._layers(disk_id)
        names = [layer.file for layer in layers]
        chain = layers[: names.index(group[-1]) + 1]
        try:
            self._need(sum(layer.stored_bytes for layer in chain if layer.file in group))
            with files.writing(self._vm_id, directory, self._space):
                into = merging.merge(directory, chain, group, lambda: not self._closed.is_set())
        except (NoSpace, merging.Cancelled):
            return False
        except LayerDamaged as error:
            raise StoreDamaged(self._vm_id, str(error)) from error
        with self._lock:
            if self._pinned_files(disk_id).intersection(group):  # pinned while it was merged
                merging.discard(directory, into)
                return False
            self._unpublished = merging.Intent(disk_id, group, into)
            self._publish()
            self._collect()
        return True

    def _publish(self) -> None:
        """Put the merged layer in place that waits for it, if one does."""
        if self._unpublished:
            self._manifests.update(merging.publish(self._directory, self._unpublished, self._manifests))
            self._unpublished = None

    def _collect(self, *, everything: bool = False) -> None:
        newest = self._newest()
        checking.collect(
            self._directory,
            self._manifests.values(),
            partials=self._receiving.partials() if self._receiving else set(),
            up_to=newest.cycle if newest and not everything else None,
        )


def write_term(directory: Path, vm_id: str, term: int) -> None:
    """Set the replica's term durably. Raises OSError."""
    files.replace_file(directory / TERM, files.seal({"format": manifests.FORMAT, "vm": vm_id, "term": term}))


def _read_term(directory: Path, vm_id: str) -> int:
    try:
        document = files.unseal((directory / TERM).read_bytes())
        owner, term = document["vm"], int(document["term"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(vm_id, f"{TERM} {error}") from error
    if owner != vm_id:
        raise StoreDamaged(vm_id, f"{TERM} is of VM {owner}")
    return term
