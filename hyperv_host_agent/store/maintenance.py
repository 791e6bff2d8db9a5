"""Merging in the background: what is planned, how far it came, what is left for the next round."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from hyperv_host_agent.store import files, merge_plan, merging, repair, seeding
from hyperv_host_agent.store.base import Budget, MaintainReport, NoSpace, StoreDamaged
from hyperv_host_agent.store.catalog import Catalog
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from hyperv_host_agent.store.manifests import LayerRef, layer_cycle

_STEP_COST = 4096  # bytes that a step counts as, even when it writes nothing
_TRY_AGAIN = 100  # rounds, after which layers that could not be read are tried again
_RESCAN = 0.1  # of a pack's points gone since it was looked at, before it is looked at again

Group = tuple[str, tuple[str, ...]]  # disk, layer files


class Maintenance:
    """One thread at a time. A merge that a round did not finish waits, with its files open, for the next one."""

    def __init__(
        self, catalog: Catalog, space: files.Space, room: Callable[[int], None], stop: threading.Event
    ) -> None:
        """`room` raises NoSpace unless that many bytes may be written; `stop`, once set, ends a round early."""
        self._catalog, self._space, self._room, self._stop = catalog, space, room, stop
        self._queue: list[Group] = []
        self._work: _Work | None = None
        self._unreadable: set[tuple[str, str]] = set()  # disk, layer: merged around until a scrub had its time
        self._runs = 0
        self._scanned: dict[tuple[str, bytes], tuple[int, int]] = {}  # points that were gone, dead bytes

    def run(self, report: MaintainReport, budget: Budget) -> None:
        """Do what is due. Raises OSError, and StoreDamaged for layers that cannot be merged, after the others."""
        self._runs += 1
        if not self._runs % _TRY_AGAIN:
            self._unreadable.clear()
        self._queue = [group for group in self._queue if self._possible(group)]
        if self._work and not self._possible(self._work.group):
            self.abandon()
        damaged: LayerDamaged | None = None
        failed: list[Group] = []
        while not (budget.exhausted or self._stop.is_set()):
            self._queue = self._queue or ([] if self._work else [x for x in self._plan() if x not in failed])
            if not self._queue and not self._work:
                break
            group = self._work.group if self._work else self._queue.pop(0)
            try:
                if self._merge(group, budget):
                    report.merged.append(tuple(map(layer_cycle, group[1])))
            except NoSpace as error:
                self.abandon()
                failed.append(group)
                report.no_room = report.no_room or error
            except LayerDamaged as error:
                self.abandon()
                self._queue.clear()
                self._unreadable.update((group[0], name) for name in _named(group[1], error))
                damaged = damaged or error
        if not self._queue and not self._work and (budget.exhausted or self._stop.is_set()):
            self._queue = [x for x in self._plan() if x not in failed]
        report.left_bytes = sum(map(self._stored_bytes, self._queue)) + (self._work.left() if self._work else 0)
        if damaged:
            raise StoreDamaged(self._catalog.vm_id, str(damaged)) from damaged

    def rewrite(self, disk_id: str, ref: LayerRef, frames: Mapping[tuple[int, int], bytes]) -> bool:
        """Write one layer anew with these frames, by (cluster, cycle), in place of damaged ones, and with right tables.

        Also a layer that a point in use stands on: what it shows is the same, and who has it open keeps the old file.
        False: it was replaced meanwhile, or there is no room. Raises OSError.
        """
        if self._work and self._work.group[0] == disk_id and ref.file in self._work.group[1]:
            self.abandon()
        if self._awaited(disk_id, ref):
            return False
        layer = self._catalog.directory / disk_id / ref.file
        try:
            self._room(ref.stored_bytes + sum(map(len, frames.values())))
            into = repair.rewrite(layer, ref, frames, lambda: not self._stop.is_set())
        except (NoSpace, LayerDamaged, repair.Cancelled):
            return False
        with self._catalog.lock:
            if ref not in self._catalog.chains.disks.get(disk_id, ()):
                merging.discard(layer)
                return False
            self._catalog.publish(merging.Intent(disk_id, (ref.file,), into))
            repair.copy_side(layer, into)
        return True

    def abandon(self) -> None:
        """Drop the merge that is under way."""
        if self._work:
            work, self._work = self._work, None
            work.close()
            merging.discard(self._catalog.directory / work.group[0] / work.group[1][-1])

    def _merge(self, group: Group, budget: Budget) -> bool:
        """Go on with it until it is done or the budget is. False: not done, or not possible any more."""
        if not self._work:
            self._room(self._stored_bytes(group) - self._known_dead(group))
            self._work = self._start(group)
        work = self._work
        with files.writing(self._catalog.vm_id, self._catalog.directory, self._space):
            while not budget.exhausted and not self._stop.is_set():
                self._room(0)
                before = work.written
                try:
                    more = work.advance()
                except OSError:  # what failed is not gone on with: the next round begins it anew
                    with suppress(OSError):
                        self.abandon()
                    raise
                if not more:
                    self._work = None
                    return self._put_in_place(work)
                budget.spend(max(work.written - before, _STEP_COST))
        return False

    def _start(self, group: Group) -> "_Work":
        disk_id, names = group
        with self._catalog.lock:
            stack = self._catalog.chains.stack(disk_id, layer_cycle(names[-1]))
            sizes = self._catalog.sizes(disk_id)
        merge = merging.Merge(self._catalog.directory / disk_id, stack, len(names), sizes)
        return _Work(group, merge, sum(layer.stored_bytes for layer in stack[-len(names) :]))

    def _put_in_place(self, work: "_Work") -> bool:
        disk_id, names = work.group
        with self._catalog.lock:
            if not self._possible(work.group):  # pinned while it was merged
                merging.discard(self._catalog.directory / disk_id / names[-1])
                return False
            self._catalog.publish(merging.Intent(disk_id, names, work.merge.result))
        return True

    def _plan(self) -> list[Group]:
        with self._catalog.lock:
            chains = list(self._catalog.chains.each())
            awaiting = self._catalog.placeholder() is not None
            frozen = {disk_id: self._catalog.frozen(disk_id) for disk_id, _ in chains}
            sizes = {disk_id: self._catalog.sizes(disk_id) for disk_id, _ in chains}
        planned: list[Group] = []
        for disk_id, chain in chains:
            if awaiting and seeding.shrank(chain):
                continue
            needed = sorted(sizes[disk_id])
            candidates = [
                merge_plan.Candidate(
                    file=layer.file,
                    stored_bytes=layer.stored_bytes,
                    pinned=layer.file in frozen[disk_id] or (disk_id, layer.file) in self._unreadable,
                    needed=_any_within(needed, layer.cycle, above.cycle) if above else True,
                    dead_bytes=self._dead_bytes(disk_id, chain[: place + 1], sizes[disk_id]),
                )
                for place, (layer, above) in enumerate(zip(chain, (*chain[1:], None), strict=True))
            ]
            planned += [(disk_id, group) for group in merge_plan.groups(candidates)]
        return planned

    def _dead_bytes(self, disk_id: str, stack: Sequence[LayerRef], sizes: Mapping[int, int]) -> int:
        """Of a pack, what no point needs any more; known only about, as looking costs a read of its side file."""
        pack = stack[-1]
        gone = sum(point not in sizes for point in pack.points)
        seen, dead = self._scanned.get((disk_id, pack.digest), (0, 0))
        if gone and gone - seen >= _RESCAN * len(pack.points):
            try:
                dead = merging.Merge(self._catalog.directory / disk_id, stack, 1, sizes).dead_bytes()
            except LayerDamaged:  # for the merge to tell, or the scrub
                dead = 0
            self._scanned[disk_id, pack.digest] = (gone, dead)
        return dead

    def _known_dead(self, group: Group) -> int:
        """What of it a merge leaves out, as far as was looked."""
        layers = self._catalog.chains.disks.get(group[0], ())
        return sum(self._scanned.get((group[0], x.digest), (0, 0))[1] for x in layers if x.file in group[1])

    def _awaited(self, disk_id: str, ref: LayerRef) -> bool:
        """Whether a seed takes the layer's place, whose files while they are read in have the same names."""
        with self._catalog.lock:
            placeholder = self._catalog.placeholder()
            disk = placeholder.disk(disk_id) if placeholder else None
            return disk is not None and disk.at == ref.cycle

    def _possible(self, group: Group) -> bool:
        disk_id, names = group
        with self._catalog.lock:
            files_now = [layer.file for layer in self._catalog.chains.disks.get(disk_id, ())]
            at = files_now.index(names[0]) if names[0] in files_now else 0
            return tuple(files_now[at : at + len(names)]) == names and self._catalog.frozen(disk_id).isdisjoint(names)

    def _stored_bytes(self, group: Group) -> int:
        layers = self._catalog.chains.disks.get(group[0], ())
        return max(1, sum(layer.stored_bytes for layer in layers if layer.file in group[1]))


class _Work:
    """A merge under way."""

    def __init__(self, group: Group, merge: merging.Merge, expected: int) -> None:
        self.group, self.merge = group, merge
        self.steps = merge.steps()
        self.written = 0
        self._expected = expected

    def advance(self) -> bool:
        """One step; False: it is done."""
        written = next(self.steps, None)
        if written is not None:
            self.written = written
        return written is not None

    def left(self) -> int:
        return max(1, self._expected - self.written)

    def close(self) -> None:
        self.steps.close()


def _named(names: tuple[str, ...], error: LayerDamaged) -> tuple[str, ...]:
    """The layer an error is about, if it says; otherwise all of them."""
    return tuple(name for name in names if name.split(".")[0] == error.file.split(".")[0]) or names


def _any_within(ascending: Sequence[int], start: int, end: int) -> bool:
    """Whether any of them is at least `start` and below `end`."""
    at = bisect_left(ascending, start)
    return at < len(ascending) and ascending[at] < end
