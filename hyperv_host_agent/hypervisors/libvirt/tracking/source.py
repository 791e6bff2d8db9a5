"""The change source of a VM under libvirt: a checkpoint a cycle, read through a pull backup open for moments."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from hyperv_host_agent.changes import durable
from hyperv_host_agent.changes.base import UNTRACKED, Anchor, SourceFailed, SourceUnavailable, Tracking
from hyperv_host_agent.changes.bitmap import Bitmap, bytes_for
from hyperv_host_agent.hypervisors.libvirt import geometry
from hyperv_host_agent.hypervisors.libvirt.describe import describe
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.errors import Busy, CheckpointBroken, NotThere
from hyperv_host_agent.hypervisors.libvirt.tracking import backup_xml, bitmaps, job, memory, stopped
from hyperv_host_agent.hypervisors.libvirt.tracking.bitmaps import DiskTracking, TrackedDisk
from hyperv_host_agent.hypervisors.libvirt.tracking.freezing import Freezer, Guard
from hyperv_host_agent.hypervisors.libvirt.tracking.memory import PREFIX, Marked, Memory, Size
from hyperv_host_agent.hypervisors.libvirt.tracking.now import Now
from hyperv_host_agent.hypervisors.libvirt.tracking.places import Places
from hyperv_host_agent.hypervisors.libvirt.tracking.point import LibvirtPoint
from hyperv_host_agent.hypervisors.libvirt.tracking.session import Served, Session
from hyperv_host_agent.nbd.stream import UnixAddress
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.clock import Clock, SystemClock
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER, Run, clusters
from twinsite.units import GiB

WAIT_SECONDS: Final = 10.0  # for a job of somebody else, before the cycle is given up for now
_HOLES_AT_ONCE: Final = GiB // CLUSTER

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Plan:
    """Of a point: what is read of each disk, and what is known of it."""

    disks: list[TrackedDisk]
    since: dict[str, str]  # by target
    lost: str  # why what changed is not known, a phrase
    doubt: str


class LibvirtChangeSource:
    """One of a VM in this process. `guard` arms the guard of a freeze; `machine` describes the VM for the point."""

    def __init__(
        self,
        vm_id: str,
        domain: Callable[[], Domain],
        places: Places,
        *,
        machine: Callable[[], bytes],
        guard: Callable[[str], Guard],
        clock: Clock | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """`domain` raises NotThere."""
        self.vm_id = vm_id
        self._domain, self._machine = domain, machine
        self._places = places.of(vm_id)
        self._clock = clock or SystemClock()
        self._wait_seconds = wait_seconds
        self._lock = threading.RLock()  # guards what follows, and what is remembered
        self._point: LibvirtPoint | None = None
        self._now = Now(self._open_now)
        self._freezer = Freezer(vm_id, domain, self._note_freezing, guard)
        self._asked = False  # the guest whether it is frozen, without a reason

    # The port.

    def status(self) -> tuple[Anchor | None, Tracking]:
        known = self._memory()
        if not known.tracking:
            return None, Tracking.LOST
        if known.anchor is None:
            return None, Tracking.OK
        with self._translated():
            lost = _lost(self._look(self._domain()), known.anchor)
        return known.anchor.anchor, Tracking.LOST if lost else Tracking.OK

    def start(self) -> None:
        """What an agent that died left behind is put in order, too."""
        with self._translated():
            self._domain().state()
        with self._lock:
            self.recover()
            known = self._memory()
            if not known.tracking:
                self._remember(replace(known, tracking=True))

    def recover(self) -> None:
        """End a job of ours that nobody reads, let the guest go on, thaw it, drop checkpoints of no use."""
        with self._lock, self._translated():
            if self._point is not None and not self._point.closed:
                return
            self.rest()
            self._places.make()
            with durable.locked(self._places.lock) as free:
                if not free:
                    return
                domain = self._domain()
                if domain.is_active():
                    if job.end_ours(self.vm_id, domain, self._places):
                        _log.warning("stale_backup_ended", vm_id=self.vm_id)
                    # Once, for an agent that lost its memory; a later freeze that is not noted is another program's.
                    connected = not self._asked and 'state="connected"' in domain.xml().replace("'", '"')
                    if self._places.freezing.exists() or connected:
                        self._freezer.settle()
                    self._asked = True
                else:
                    stopped.end_leftovers(self._places)
                self._places.sweep()
                self._drop_strays(domain, self._look(domain))

    def open_point(self, cycle: int, id: bytes, *, consistency: str) -> LibvirtPoint:  # noqa: A002  # as the port
        with self._lock:
            if not self._memory().tracking:
                raise SourceUnavailable(self.vm_id, "its changes are not tracked")
            if self._point is not None and not self._point.closed:
                raise SourceUnavailable(self.vm_id, "a point of it is open already")
            self.rest()
            with contextlib.ExitStack() as held, self._translated():
                self._hold(held)
                domain = self._domain()
                marked = Marked(cycle, id, {})
                active = domain.is_active()
                if active:
                    job.wait_free(self.vm_id, domain, self._places, self._clock, seconds=self._wait_seconds)
                disks = self._look(domain)
                known = self._settled_disks(domain, disks)
                self._remember(replace(known, pending=marked))
                with contextlib.ExitStack() as undo:
                    undo.callback(self._undo)
                    open_it = self._open_running if active else self._open_stopped
                    self._point = open_it(domain, disks, known.anchor, marked, consistency, held.pop_all())
                    undo.pop_all()
                return self._point

    def ack(self, cycle: int, id: bytes) -> None:  # noqa: A002  # as the port
        with self._lock:
            known = self._memory()
            if known.pending is None or known.pending.anchor != Anchor(cycle, id):
                return
            before = known.anchor
            self._remember(replace(known, anchor=known.pending, pending=None))
            if before is not None:
                self._drop(before.checkpoint)

    def discard(self) -> None:
        with self._lock:
            known = self._memory()
            if known.pending is not None:
                self._remember(replace(known, pending=None))
                self._drop(known.pending.checkpoint)

    def read_now(self, disk: str, run: Run) -> bytes:
        point = self._point
        if point is not None and not point.closed:
            return point.read(disk, run)
        with self._now.using() as session:
            return session.read(disk, run)

    def holes_now(self, disk: str, run: Run) -> Iterator[Run]:
        for start in range(run.start, run.end, _HOLES_AT_ONCE):
            piece = Run(start, min(_HOLES_AT_ONCE, run.end - start))
            point = self._point
            with contextlib.ExitStack() as stack:
                session = point.session if point and not point.closed else stack.enter_context(self._now.using())
                found = list(session.holes(disk, (piece,)))
            yield from found

    def disks(self) -> tuple[DiskGeometry, ...]:
        with self._translated():
            description = describe(self._domain().xml())
            found = tuple(
                DiskGeometry(disk.id, geometry.disk_size(disk.path, disk.format), disk.target)
                for disk in description.replicated()
                if disk.path is not None
            )
        with self._lock:
            self._seen({disk.id: disk.size for disk in found})
        return found

    def dirty_bytes(self) -> int:
        known = self._memory()
        if known.anchor is None:
            return 0
        try:
            with self._translated():
                disks = self._look(self._domain())
        except SourceUnavailable:
            return 0
        held = (disk.bitmaps.get(known.anchor.checkpoint) for disk in disks)
        return sum(bitmap.dirty for bitmap in held if bitmap is not None)

    def rest(self) -> None:
        self._now.rest()

    def stop(self) -> None:
        with self._lock:
            if self._point is not None:
                self._point.close()
            self.rest()
            self._remember(Memory())
            with self._translated(), contextlib.suppress(NotThere):
                self._domain()
                self.recover()
            self._places.memory.unlink(missing_ok=True)

    # Opening.

    def _open_running(
        self,
        domain: Domain,
        disks: list[TrackedDisk],
        anchor: Marked | None,
        marked: Marked,
        consistency: str,
        held: contextlib.ExitStack,
    ) -> LibvirtPoint:
        with held:
            self._check_space()
            plan = _plan(disks, anchor)
            problem = ""
            instant = self._clock.now()
            if consistency == "application":
                with self._freezer.quiet() as quiet:
                    instant = self._clock.now()
                    begun, plan = self._begin(domain, plan, marked, seconds=0.0)  # nothing is waited for now
                problem = quiet.problem
                if problem:
                    _log.warning("point_not_application_consistent", vm_id=self.vm_id, problem=problem)
            else:
                begun, plan = self._begin(domain, plan, marked, seconds=self._wait_seconds)
            exports = {disk.id: (begun.address, disk.target) for disk in plan.disks}
            session = self._session(begun, exports, plan, held)
            begun.watch(session.close)
            achieved = consistency if consistency == "application" and not problem else "crash"
            return self._opened(session, plan, anchor, marked, instant=instant, consistency=achieved)

    def _begin(self, domain: Domain, plan: _Plan, marked: Marked, *, seconds: float) -> tuple[job.Job, _Plan]:
        xml = backup_xml.checkpoint(marked.checkpoint, plan.disks)
        pause, wait = threading.Event(), 0.05
        deadline = self._clock.monotonic() + seconds
        while True:
            try:
                return job.Job.begin(self.vm_id, domain, self._places, plan.disks, plan.since, xml), plan
            except CheckpointBroken as error:
                if not plan.since:
                    raise
                plan = replace(plan, since={}, lost=str(error), doubt=str(error))
            except Busy:
                if self._clock.monotonic() > deadline:
                    raise
                pause.wait(wait)  # for a block job, that is no job of the VM as a whole
                wait = min(wait * 2, 1.0)

    def _open_stopped(
        self,
        domain: Domain,
        disks: list[TrackedDisk],
        anchor: Marked | None,
        marked: Marked,
        consistency: str,
        held: contextlib.ExitStack,
    ) -> LibvirtPoint:
        with held:
            plan = _plan(disks, anchor)
            for disk in plan.disks:
                if not disk.untracked:
                    bitmaps.add(disk, marked.checkpoint)
            now = self._clock.now()
            if (xml := backup_xml.checkpoint(marked.checkpoint, plan.disks, created=now)) is not None:
                domain.checkpoint_create(xml, redefine=True)
            settled = domain.state()[1] == "shutdown"  # the guest itself ended
            served = stopped.StoppedDisks(self.vm_id, domain, self._places, plan.disks, plan.since)
            exports = {disk.id: (served.addresses[disk.id], disk.target) for disk in plan.disks}
            session = self._session(served, exports, plan, held)
            achieved = "application" if consistency == "application" and settled else "crash"
            return self._opened(session, plan, anchor, marked, instant=now, consistency=achieved)

    def _session(
        self, served: Served, exports: Mapping[str, tuple[UnixAddress, str]], plan: _Plan, held: contextlib.ExitStack
    ) -> Session:
        since = {disk.id: plan.since[disk.target] for disk in plan.disks if disk.target in plan.since}
        return Session(self.vm_id, _Held(served, held.pop_all()), exports, since)

    def _opened(
        self,
        session: Session,
        plan: _Plan,
        anchor: Marked | None,
        marked: Marked,
        *,
        instant: float,
        consistency: str,
    ) -> LibvirtPoint:
        with contextlib.ExitStack() as stack:
            stack.callback(session.close)
            sizes = {disk.id: session.size(disk.id) for disk in plan.disks}
            anchor = anchor.seen(sizes) if anchor is not None else None
            changed: dict[str, Bitmap | None] = dict.fromkeys(sizes)
            if anchor is not None and not plan.lost:
                for disk in plan.disks:
                    if disk.target in plan.since:
                        changed[disk.id] = _changed(session, disk.id, sizes[disk.id], anchor.sizes[disk.id])
            pending = Marked(marked.cycle, marked.id, {disk: Size(size, size) for disk, size in sizes.items()})
            self._remember(replace(self._memory(), anchor=anchor, pending=pending))
            point = LibvirtPoint(
                self.vm_id,
                session,
                tuple(DiskGeometry(disk.id, sizes[disk.id], disk.target) for disk in plan.disks),
                changed,
                instant=instant,
                consistency=consistency,
                doubt=plan.doubt,
                lost=bool(plan.lost),
                machine=self._machine(),
            )
            stack.pop_all()
            return point

    def _open_now(self) -> Session:
        with contextlib.ExitStack() as held, self._translated():
            self._hold(held)
            domain = self._domain()
            active = domain.is_active()
            if active:
                job.wait_free(self.vm_id, domain, self._places, self._clock, seconds=self._wait_seconds)
                self._check_space()
            plan = _Plan(self._look(domain), {}, "", "")
            if not active:
                served = stopped.StoppedDisks(self.vm_id, domain, self._places, plan.disks, {})
                exports = {disk.id: (served.addresses[disk.id], disk.target) for disk in plan.disks}
                return self._session(served, exports, plan, held)
            begun = job.Job.begin(self.vm_id, domain, self._places, plan.disks, {}, None)
            session = self._session(begun, {disk.id: (begun.address, disk.target) for disk in plan.disks}, plan, held)
            begun.watch(session.close)
            return session

    def _hold(self, held: contextlib.ExitStack) -> None:
        self._places.make()
        if not held.enter_context(durable.locked(self._places.lock, seconds=1.0)):
            raise SourceUnavailable(self.vm_id, "a point of it is open already, in another process")

    def _check_space(self) -> None:
        free, least = self._places.free(), self._places.all.least_free
        if free < least:
            raise SourceUnavailable(
                self.vm_id,
                f"{self._places.all.scratch} has {free} bytes free for what it overwrites, less than {least}",
            )

    # Checkpoints and bitmaps.

    def _look(self, domain: Domain) -> list[TrackedDisk]:
        return bitmaps.of_running(domain) if domain.is_active() else bitmaps.of_stopped(describe(domain.xml()))

    def _settled_disks(self, domain: Domain, disks: list[TrackedDisk]) -> Memory:
        """A point nobody settled is discarded, and what is of no use goes."""
        known = self._memory()
        if known.pending is not None:
            known = replace(known, pending=None)
            self._remember(known)
        self._drop_strays(domain, disks)
        return known

    def _drop_strays(self, domain: Domain, disks: list[TrackedDisk]) -> None:
        needed = self._memory().checkpoints()
        names = {name for name in domain.checkpoints() if name.startswith(PREFIX)}
        gone = {name for name in names if name not in needed}
        for name in gone:
            _delete(domain, name)
        for disk, name in bitmaps.strays(disks, needed):
            if name not in gone or not disk.bitmaps[name].sound:
                with contextlib.suppress(OSError, TwinsiteError):
                    bitmaps.remove(domain, disk, name)
        if not domain.is_active():
            for disk, name in bitmaps.strays(self._look(domain), needed):
                bitmaps.remove(domain, disk, name)

    def _drop(self, name: str) -> None:
        """What cannot be dropped now is dropped before the next point."""
        if self._point is not None and not self._point.closed:
            return
        with contextlib.suppress(TwinsiteError, OSError):
            domain = self._domain()
            if domain.is_active() and name in domain.checkpoints():
                _delete(domain, name)
            else:
                self._drop_strays(domain, self._look(domain))

    def _undo(self) -> None:
        """The point was not opened."""
        known = self._memory()
        if known.pending is not None:
            self._remember(replace(known, pending=None))
            self._drop(known.pending.checkpoint)

    # What is remembered.

    def _memory(self) -> Memory:
        return memory.read(self._places.memory)

    def _remember(self, known: Memory) -> None:
        try:
            self._places.make()
            memory.write(self._places.memory, known)
        except OSError as error:
            raise SourceUnavailable(self.vm_id, f"what is known of its changes cannot be kept: {error}") from error

    def _seen(self, sizes: dict[str, int]) -> None:
        known = self._memory()
        anchor = known.anchor.seen(sizes) if known.anchor else None
        pending = known.pending.seen(sizes) if known.pending else None
        if (anchor, pending) != (known.anchor, known.pending):
            self._remember(replace(known, anchor=anchor, pending=pending))

    def _note_freezing(self, freezing: bool) -> None:
        """In a file of its own: the thread that asks a guest waits for no point, and no point for it."""
        try:
            if freezing:
                durable.replace(self._places.freezing, b"")
            else:
                self._places.freezing.unlink(missing_ok=True)
        except OSError as error:
            raise SourceUnavailable(self.vm_id, f"a freeze cannot be noted: {error}") from error

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SourceUnavailable, SourceFailed):
            raise
        except Busy as error:
            raise SourceUnavailable(self.vm_id, f"another operation holds it ({error.problem})") from error
        except (TwinsiteError, OSError) as error:
            raise SourceUnavailable(self.vm_id, str(error)) from error


class _Held:
    """What serves, and what is held as long as it does."""

    def __init__(self, served: Served, held: contextlib.ExitStack) -> None:
        self._served, self._held = served, held

    def trouble(self) -> str:
        return self._served.trouble()

    def end(self) -> None:
        with self._held:
            self._served.end()


def _delete(domain: Domain, name: str) -> None:
    try:
        domain.checkpoint_delete(name, metadata_only=not domain.is_active())
    except CheckpointBroken:
        domain.checkpoint_delete(name, metadata_only=True)


def _plan(disks: list[TrackedDisk], anchor: Marked | None) -> _Plan:
    untracked = "; ".join(disk.untracked for disk in disks if disk.untracked)
    if anchor is None:
        return _Plan(disks, {}, "", UNTRACKED)
    if lost := _lost(disks, anchor):
        return _Plan(disks, {}, lost, lost)
    since = {disk.target: anchor.checkpoint for disk in disks if disk.tracking(anchor) is DiskTracking.OK}
    return _Plan(disks, since, "", untracked)


def _lost(disks: list[TrackedDisk], anchor: Marked) -> str:
    """Why what changed since the anchor is not known, a phrase; empty: it is."""
    lost = [disk.target for disk in disks if disk.tracking(anchor) is DiskTracking.LOST]
    if not lost:
        return ""
    return f"QEMU has no sound record of what changed on {', '.join(lost)}: it was killed, or the host lost power"


def _changed(session: Session, disk: str, size: int, since: Size) -> Bitmap:
    count = clusters(size)
    changed = Bitmap(memoryview(bytearray(bytes_for(count))), count)
    for run in session.dirty(disk):
        changed.set_run(run)
    if since.least < max(since.size, size):  # behind that it was cut off or came in since: zeros, or written anew
        start = since.least // CLUSTER
        if start < count:
            changed.set_run(Run(start, count - start))
    return changed
