"""One VM's replica on disk: the `Replica` port over manifests, layers, pins and the cycle being received."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.replication.cycle import Batch, Committed, CycleHeader, Kind, TargetState, Wanted
from hyperv_host_agent.store import copies, files, manifests, merging, rules, seeding
from hyperv_host_agent.store.attachments import Attachments
from hyperv_host_agent.store.base import (
    AttachedDisk,
    AwaitedSeed,
    Budget,
    Checked,
    Finding,
    MaintainReport,
    NoSpace,
    PointInfo,
    ScrubState,
    SeedNotAwaited,
    SeedStopped,
    StoreDamaged,
    TermLost,
    WriteFailed,
)
from hyperv_host_agent.store.catalog import Catalog
from hyperv_host_agent.store.chains import CHAINS
from hyperv_host_agent.store.content import DiskContent
from hyperv_host_agent.store.copies import Document
from hyperv_host_agent.store.damage import Record
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from hyperv_host_agent.store.ground import Ground
from hyperv_host_agent.store.inspection import Inspection
from hyperv_host_agent.store.keeps import Keeps
from hyperv_host_agent.store.lock_clock import LockClock
from hyperv_host_agent.store.maintenance import Maintenance
from hyperv_host_agent.store.manifests import DiskRef, LayerRef, Manifest
from hyperv_host_agent.store.receiving import Receiving
from hyperv_host_agent.store.wanted import WantedRuns
from twinsite.extents import Run, clusters

TERM: Final = "replica.json"


class ChainReplica:
    """A Replica in a directory.

    One thread receives; `maintain`, `attach`, `detach`, `points` and the readers may run beside it in others.
    """

    def __init__(self, directory: Path, vm_id: str, *, reserve: int, space: files.Space, clock: LockClock) -> None:
        """Open it, finish an interrupted merge, remove garbage. Raises StoreDamaged, NoSpace, WriteFailed."""
        self._directory, self._vm_id = directory, vm_id
        self._reserve, self._space = reserve, space
        self._maintaining = threading.Lock()
        self._reading_in = threading.Lock()  # guards the attempt below
        self._seeding: seeding.Seeding | None = None
        self._closed = threading.Event()
        with files.writing(vm_id, directory, space):
            self._catalog = catalog = Catalog(directory, vm_id)
            self._lock = catalog.lock
            self._term = _read_term(directory, vm_id, max((x.term for x in catalog.manifests.values()), default=0))
            self._call_off()
            self._keeps = Keeps(directory, clock)
            self._keeps.keep_only(manifest.info(()) for manifest in catalog.manifests.values())
            self._wanted = WantedRuns(directory)
            if catalog.seeded:
                self._wanted.add(catalog.seeded.lacking)
            self._attachments = Attachments(catalog, self._need)
            self._merges = Maintenance(catalog, space, self._need, self._closed)
            self._clock = clock
            self._suspect: Receiving | None = None
            self._record = Record(directory)
            self._inspection = Inspection(self._ground(), self._record, catalog.damaged)
            if catalog.rebuilt:
                self._inspection.suspect()
            with ExitStack() as unless_open:
                self._receiving = self._recover()
                if self._receiving:
                    unless_open.callback(self._receiving.close)
                self._collect(everything=True)
                unless_open.pop_all()

    def state(self) -> TargetState:
        with self._lock:
            newest = self._catalog.newest()
            committed = Committed(newest.cycle, newest.id) if newest else None
            wanted, placeholder = self._wanted.told(), self._catalog.placeholder()
            after = self._catalog.seeded.after if self._catalog.seeded else 0
        unfinished = self._receiving.unfinished if self._receiving else None
        seed = placeholder.id if placeholder else b""
        return TargetState(self._term, committed, unfinished, wanted, placeholder is not None, seed, after)

    def set_term(self, term: int) -> None:
        if term < self._term:
            raise ValueError(f"term {term} is below {self._term}")
        if term > self._term:
            with files.writing(self._vm_id, self._directory, self._space):
                write_term(self._directory, self._vm_id, term)
            self._term = term

    def begin(self, header: CycleHeader, *, resume_after: int) -> None:
        self._settle()
        rules.check_header(header, self._vm_id, self.state())
        if self._receiving and self._receiving.spoiled:
            self.abandon()
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
            parents = {disk.id: self._catalog.top(disk.id) for disk in header.disks}
        with self._dropping():
            receiving.sync()
            try:
                finished = receiving.finish(parents)
                manifest = self._commit(receiving, finished)
            except OSError:
                receiving.take_back()
                raise
            self._receiving = None
        self._account(receiving, manifest)
        return self._info(manifest)

    def abandon(self) -> None:
        if self._receiving:
            self._receiving.drop()
            self._receiving = None

    def points(self) -> list[PointInfo]:
        with self._lock:
            return [self._info(manifest) for manifest in self._catalog.manifests.values()]

    def lost(self) -> list[PointInfo]:
        with self._lock:
            return self._catalog.lost_points()

    def mark(self, cycle: int, *, keep: bool | None, name: str | None, lock_seconds: int | None) -> PointInfo:
        with self._lock, files.writing(self._vm_id, self._directory, self._space):
            manifest = self._catalog.point(cycle)
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
        with files.writing(self._vm_id, self._directory, self._space):
            try:
                return self._attachments.attach(cycle, owner)
            except LayerDamaged as error:
                self._inspection.suspect()
                raise StoreDamaged(self._vm_id, str(error)) from error

    def detach(self, owner: str) -> None:
        rules.check_owner(owner)
        with files.writing(self._vm_id, self._directory, self._space):
            self._attachments.detach(owner)

    def maintain(
        self, *, keep: Sequence[int], up_to: int | None = None, budget: Budget | None = None
    ) -> MaintainReport:
        report = MaintainReport()
        with self._maintaining, files.writing(self._vm_id, self._directory, self._space):
            with self._lock:
                self._catalog.settle()
                self._catalog.publish()
                stays = [x.cycle for x in self._catalog.manifests.values() if self._keeps.stays(x.info(()))]
                known = [*self._catalog.manifests, *(point.cycle for point in self._catalog.lost_points())]
                newer = [cycle for cycle in known if up_to is not None and cycle > up_to]
                report.removed = self._catalog.retire([*keep, *stays, *newer])
                self._keeps.forget(report.removed)
                self._collect()
            self._catalog.copy()
            try:
                self._merges.run(report, budget or Budget())
            except StoreDamaged:
                self._inspection.suspect()
                raise
            finally:
                self._collect()
        return report

    def awaited(self) -> AwaitedSeed | None:
        with self._lock:
            placeholder = self._catalog.placeholder()
        return seeding.of(placeholder) if placeholder else None

    def seed_begin(self, id: bytes) -> None:  # noqa: A002  # as the port
        with self._reading_in, files.writing(self._vm_id, self._directory, self._space):
            self._drop_seeding()
            with self._lock:
                self._catalog.publish()  # an attempt that failed at its last step may have left a layer half in place
                placeholder = self._catalog.placeholder()
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
                        self._catalog.publish(merging.Intent(disk_id, (into.file,), into))
                    seeded = attempt.seeded(after_cycle, lacking)
                    seeding.write(self._directory, seeded)
                    self._catalog.seeded = seeded
            self._drop_seeding()

    def seed_abandon(self) -> None:
        with self._reading_in:
            self._drop_seeding()

    def fingerprints(self, disk: str, start: int, count: int, *, cycle: int = 0) -> Iterator[tuple[int, bytes]]:
        content = self._content(disk, cycle)
        if content is None:
            return
        with closing(content):
            for side in content.damaged_sides():
                self._inspection.suspect()
                raise StoreDamaged(self._vm_id, f"{side.path.name} does not match the digest in {CHAINS}")
            yield from content.fingerprints(start, count)

    def check(self, *, cycle: int = 0, repair: bool = False) -> Iterator[Checked]:
        with self._lock:
            point = self._catalog.point(cycle) if cycle else None
        return self._inspected(self._inspection.check(point, repair=repair))

    def scrub(self, count: int, now: float) -> ScrubState:
        with files.writing(self._vm_id, self._directory, self._space):
            return self._inspection.scrub(count, now)

    def scrubbed(self) -> ScrubState:
        return self._inspection.state()

    def verify(self, *, cycle: int = 0) -> Iterator[Finding]:
        for step in self.check(cycle=cycle):
            yield from step.findings

    def close(self) -> None:
        """Let go of all files; a merge under way stops. What is staged and not synced is lost."""
        self._closed.set()
        with suppress(OSError):
            self._inspection.close()
        self.seed_abandon()
        with self._maintaining:
            with suppress(OSError):
                self._merges.abandon()
            if self._receiving:
                self._receiving.close()
                self._receiving = None

    def _inspected(self, steps: Iterator[Checked]) -> Iterator[Checked]:
        with files.writing(self._vm_id, self._directory, self._space):
            yield from steps

    def _ground(self) -> Ground:
        catalog = self._catalog
        return Ground(
            directory=self._directory,
            lock=self._lock,
            record=self._record,
            chains=lambda: catalog.chains,
            manifests=lambda: catalog.manifests,
            documents=self._documents,
            rewrite=self._rewrite,
            want=self._wanted.add,
            is_open=lambda: not self._closed.is_set(),
            journal_problem=self._journal_problem,
            drop_unfinished=self._spoil,
        )

    def _documents(self) -> list[Document]:
        term = Document(self._directory / TERM, files.seal(_term_document(self._vm_id, self._term)))
        own = [term, *self._record.documents(), *self._wanted.documents(), *self._clock.documents()]
        return [*own, *self._catalog.documents(), *self._keeps.documents()]

    def _rewrite(self, disk: str, ref: LayerRef, frames: Mapping[tuple[int, int], bytes]) -> bool:
        with self._maintaining:
            return not self._closed.is_set() and self._merges.rewrite(disk, ref, frames)

    def _journal_problem(self) -> str | None:
        receiving = self._receiving
        problem = receiving.journal_problem() if receiving else None
        self._suspect = receiving if problem and receiving is self._receiving else None
        return problem if self._suspect else None

    def _spoil(self) -> None:
        """The journal of the cycle that is being received is damaged: it has to come anew."""
        if self._suspect:
            self._suspect.spoiled = True

    def _recover(self) -> Receiving | None:
        newest = self._catalog.newest()
        return Receiving.recover(self._directory, committed=newest.cycle if newest else 0)

    def _info(self, manifest: Manifest) -> PointInfo:
        with self._lock:
            placeholder, seeded, cycle = self._catalog.placeholder(), self._catalog.seeded, manifest.cycle
            complete = (placeholder is None or cycle < placeholder.cycle) and (not seeded or seeded.complete(cycle))
            info = replace(manifest.info(self._catalog.pins.owners(cycle)), complete=complete)
            return self._inspection.told(self._keeps.told(info), manifest)

    def _call_off(self) -> None:
        """A whole copy came over the network, and a crash before the seed was called off."""
        placeholder = self._catalog.placeholder()
        copies = (cycle for cycle, manifest in self._catalog.manifests.items() if manifest.consistency == "none")
        newest = max(copies, default=0)
        if placeholder and newest > placeholder.cycle:
            self._catalog.seeded = seeding.called_off(seeding.of(placeholder), newest)
            seeding.write(self._directory, self._catalog.seeded)

    def _attempt(self) -> seeding.Seeding:
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

    def _content(self, disk_id: str, cycle: int) -> DiskContent | None:
        with self._lock:  # files keep their names until all are open
            point = self._catalog.point(cycle) if cycle else self._catalog.newest()
            disk = point.disk(disk_id) if point else None
            if disk is None:
                return None
            return DiskContent(self._directory / disk_id, self._catalog.stack(disk), disk.at, disk.geometry.size)

    def _current(self) -> Receiving:
        if self._receiving is None:
            raise ValueError("no cycle is being received")
        if self._receiving.spoiled:
            self.abandon()
            raise WriteFailed(self._vm_id, "the journal of the unfinished cycle is damaged")
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
            if self._receiving and self._catalog.in_limbo:  # its layers must stay until that is settled
                self._receiving.close()
                self._receiving = None
            self.abandon()
            raise

    def _commit(self, receiving: Receiving, finished: dict[str, LayerRef]) -> Manifest:
        """Publish the cycle with one rename."""
        header, newest = receiving.header, self._catalog.newest()
        disks = []
        for disk in header.disks:
            new, before = finished.get(disk.id), newest.disk(disk.id) if newest else None
            at = before.at if before and not new else header.number
            disks.append(DiskRef(disk, at, new))
        manifest = Manifest.of(header, tuple(disks), clusters=receiving.clusters, stored_bytes=receiving.stored_bytes)
        self._catalog.commit(manifest)
        return manifest

    def _account(self, receiving: Receiving, manifest: Manifest) -> None:
        """What a cycle that is committed brought, taken off what was lacking and damaged.

        It stays committed whatever becomes of this: what could not be written is known here, and written by the next
        check; a start before that wants the same clusters once more.
        """
        header, sizes = receiving.header, {disk.id: clusters(disk.size) for disk in receiving.header.disks}
        with self._lock, closing(receiving):
            brought: dict[str, list[Run]] = {}
            if self._wanted.told() or self._inspection.knows_damage:
                with self._later():
                    brought = receiving.brought()
            with self._later():
                self._wanted.carried(brought, sizes)
            with self._later():
                self._inspection.committed(header.number, brought)
            seeded = self._catalog.seeded
            if seeded and seeded.lacking:
                self._catalog.seeded = seeded = seeded.came(manifest.cycle, brought, sizes)
                with self._later():
                    seeding.write(self._directory, seeded)
            if header.kind is Kind.RESYNC and (placeholder := self._catalog.placeholder()):
                self._catalog.seeded = seeded = seeding.called_off(seeding.of(placeholder), manifest.cycle)
                with self._later():
                    seeding.write(self._directory, seeded)
            with self._later():
                receiving.committed()

    @contextmanager
    def _later(self) -> Iterator[None]:
        """A document that cannot be written now is for the next check."""
        try:
            yield
        except OSError:
            self._inspection.suspect()

    def _settle(self) -> None:
        """Before a new cycle: a commit whose end nobody knows is taken back. Raises WriteFailed, NoSpace."""
        with files.writing(self._vm_id, self._directory, self._space):
            self._catalog.settle()

    def _collect(self, *, everything: bool = False) -> None:
        self._catalog.collect(
            views=self._attachments.views(),
            partials=self._receiving.partials() if self._receiving else set(),
            everything=everything,
        )


def write_term(directory: Path, vm_id: str, term: int) -> None:
    """Set the replica's term durably. Raises OSError."""
    copies.write(directory / TERM, _term_document(vm_id, term))


def term_problem(directory: Path, vm_id: str) -> str:
    """Why the replica's term cannot be read from either copy; empty: it can."""
    documents, problems = copies.read(directory / TERM, _term_of)
    others = [owner for owner, _ in documents if owner != vm_id]
    if others:
        return f"{TERM} is of VM {others[0]}"
    return "" if documents else "; ".join(problems) or f"{TERM} is missing"


def _term_document(vm_id: str, term: int) -> dict[str, object]:
    return {"format": manifests.FORMAT, "vm": vm_id, "term": term}


def _read_term(directory: Path, vm_id: str, least: int) -> int:
    """The replica's term, never below `least`; both copies say so afterwards. Raises TermLost, OSError."""
    problem = term_problem(directory, vm_id)
    if problem:
        raise TermLost(vm_id, problem)
    documents, _ = copies.read(directory / TERM, _term_of)
    # A crash between the two copies leaves them apart. Nobody was told the higher one, and it does no harm.
    term = max(least, *(term for _, term in documents))
    if documents != [(vm_id, term)] * 2:
        write_term(directory, vm_id, term)
    return term


def _term_of(document: dict[str, Any]) -> tuple[str, int]:
    owner, term = str(document["vm"]), int(document["term"])
    copies.as_written(document, _term_document(owner, term))
    return owner, term
