"""The command `seed_import` at a target host: what the media hold becomes the base of the replica that waits for it.

What is missing or damaged does not stop it: its clusters are wanted of the source, and come with the next cycles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent import blocking
from hyperv_host_agent.commands import Call
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.replicas import Held, Replicas
from hyperv_host_agent.replication.cycle import DiskGeometry, Wanted
from hyperv_host_agent.seeds import manifest as manifests
from hyperv_host_agent.seeds.manifest import (
    Manifest,
    OlderSeed,
    OtherMachine,
    OtherSource,
    OtherTarget,
    SeedMissing,
)
from hyperv_host_agent.seeds.old_keys import OldKeys
from hyperv_host_agent.seeds.parts import (
    HEADER_BYTES,
    RECORD_BYTES,
    PartCut,
    PartMissing,
    PartReader,
    PartSwapped,
    Place,
    Record,
    RecordDamaged,
    part_name,
)
from hyperv_host_agent.seeds.paths import PathRules, SeedPathDenied
from hyperv_host_agent.store.base import AwaitedSeed, BadBatch, PointInfo, SeedNotAwaited
from hyperv_host_agent.targets import Targets
from twinsite import units
from twinsite.api.types.v1.commands_pb2 import SeedImport
from twinsite.errors import Failed
from twinsite.extents import CLUSTER, Run, clusters

_log = structlog.get_logger()
_TOLD: Final = 5  # problems that are told one by one

Problem = PartMissing | PartCut | PartSwapped | RecordDamaged


class SeedUnreadable(Failed):
    public = "nothing of the seed can be read: {error.problem}"
    still_works = "nothing was changed; the replica waits for its seed still"
    next_step = "copy the part files from the export again, then import again; or export anew"

    def __init__(self, problem: Problem) -> None:
        self.problem = str(problem)


@dataclass(slots=True)
class Coverage:
    """Which clusters of the disks came so far; records come in the order they were written."""

    sizes: Sequence[int]  # of the seed's disks, in clusters
    gaps: list[tuple[int, Run]] = field(default_factory=list)
    place: Place = field(default_factory=Place)

    def came(self, record: Record) -> bool:
        """Note a record; False: it is from before what came already."""
        if (record.disk, record.start) < (self.place.disk, self.place.cluster):
            return False
        self.gap(Place(record.disk, record.start))
        self.place = Place(record.disk, record.end)
        return True

    def gap(self, up_to: Place) -> None:
        """What lies between what came and `up_to` did not come."""
        for disk in range(self.place.disk, min(up_to.disk + 1, len(self.sizes))):
            start = self.place.cluster if disk == self.place.disk else 0
            end = up_to.cluster if disk == up_to.disk else self.sizes[disk]
            if end > start:
                self.gaps.append((disk, Run(start, end - start)))
        self.place = max(self.place, up_to, key=lambda place: (place.disk, place.cluster))


@dataclass(frozen=True, slots=True)
class Imports:
    replicas: Replicas
    targets: Targets
    membership: Membership
    old_keys: OldKeys
    rules: PathRules

    async def seed_import(self, call: Call) -> None:
        """Repeatable: until it is done, the replica waits for its seed and can be given it again."""
        found = await self._begin(call, call.command.seed_import)
        await found.run()
        await self.targets.refresh(call.command.seed_import.vm_id)
        if not await self.old_keys.needed():
            await blocking.finish(self.old_keys.forget)

    async def check_seed_import(self, call: Call) -> None:
        """Whether `seed_import` could be done, with the same checks; reads of the parts their beginnings alone."""
        await (await self._begin(call, call.command.check_seed_import)).check()

    async def _begin(self, call: Call, order: SeedImport) -> "_Import":
        path, host = Path(order.path), self.membership.host_name
        await blocking.finish(self.rules.check_import, path, host, list(order.hypervisor_addresses))
        held = await self.replicas.get(order.vm_id)
        awaited = await held.run(held.replica.awaited)
        if awaited is None:
            raise SeedNotAwaited(order.vm_id)
        folder = await blocking.finish(_folder, path, host, order.vm_id, awaited)
        mine = self.membership.watched.credentials
        found = await blocking.finish(manifests.read, folder, vault=mine.identity.vault, roots_pem=mine.roots_pem)
        self._check(found, order.vm_id, awaited)
        key = await blocking.finish(self.old_keys.open, found, mine)
        call.result.seed_id = found.seed.hex()
        return _Import(call, held, awaited, folder, found, key)

    def _check(self, found: Manifest, vm_id: str, awaited: AwaitedSeed) -> None:
        """Raises OtherMachine, OtherTarget, OtherSource, OlderSeed."""
        if found.vm_id != vm_id:
            raise OtherMachine(found.vm_id, vm_id)
        if found.target_host != self.membership.identity.id:
            raise OtherTarget(found.target_host[:40], self.membership.identity.id)
        if found.seed != awaited.id:
            raise OlderSeed
        source = self.targets.source_of(vm_id)
        if source and found.source_host != source:
            raise OtherSource(found.source_host[:40], source)


class _Import:
    """One execution of the command."""

    def __init__(
        self, call: Call, held: Held, awaited: AwaitedSeed, folder: Path, manifest: Manifest, key: bytes
    ) -> None:
        self._call = call
        self._replica = held.replica
        self._held = held
        self._awaited = awaited
        self._folder = folder
        self._manifest = manifest
        self._key = key
        self._problems: list[Problem] = []
        self._coverage = Coverage([clusters(disk.size) for disk in manifest.disks])
        self._places = {disk.id: place for place, disk in enumerate(awaited.disks)}
        self._good = self._done = 0
        self._percent = -1

    async def check(self) -> None:
        parts = self._manifest.parts
        for number, part in enumerate(parts, 1):
            try:
                reader = await blocking.finish(PartReader, self._file(number), self._manifest.seed, number, self._key)
            except (PartMissing, PartSwapped, RecordDamaged) as error:
                self._trouble(error)
                continue
            await blocking.finish(reader.close)
            if reader.size < part.size:
                self._trouble(PartCut(number, reader.size, part.size))
            self._good += 1
        if self._problems and not self._good:
            raise SeedUnreadable(self._problems[0])
        told = f"{units.count(len(parts), 'part')}, {units.size(sum(part.size for part in parts))}, would be read"
        since = f"points of instants after {units.rfc3339(self._manifest.ended)} could be recovered then"
        missing = ["what is missing comes over the network"] if self._problems else []
        self._call.result.note = "; ".join([told, since, *self._troubles(), *missing])

    async def run(self) -> None:
        await blocking.finish(self._replica.seed_begin, self._awaited.id)
        try:
            for number in range(1, len(self._manifest.parts) + 1):
                await self._part(number)
            if self._problems and not self._good:
                raise SeedUnreadable(self._problems[0])
            self._coverage.gap(Place(len(self._manifest.disks), 0))
            present = await self._held.run(lambda: self._replica.points()[-1].disks)
            lacking = self._lacking(present)
            self._call.settled = True
            await blocking.finish(self._replica.seed_commit, after_cycle=self._manifest.after_cycle, lacking=lacking)
        finally:
            await blocking.finish(self._replica.seed_abandon)
        points = await self._held.run(self._replica.points)
        self._call.result.note = self._note(lacking, points)
        _log.info(
            "seed_imported",
            vm_id=self._manifest.vm_id,
            seed=self._manifest.seed.hex(),
            records=self._good,
            problems=len(self._problems),
        )

    async def _part(self, number: int) -> None:
        size = self._manifest.parts[number - 1].size
        try:
            reader = await blocking.finish(PartReader, self._file(number), self._manifest.seed, number, self._key)
        except (PartMissing, PartSwapped, RecordDamaged) as error:
            self._trouble(error)
            self._say(size)
            return
        try:
            if reader.size < size:
                self._trouble(PartCut(number, reader.size, size))
            for record in range(1, (min(size, reader.size) - HEADER_BYTES) // RECORD_BYTES + 1):
                try:
                    await blocking.finish(self._record, reader, record)
                except (RecordDamaged, BadBatch) as error:
                    self._trouble(
                        error if isinstance(error, RecordDamaged) else RecordDamaged(number, record, error.problem)
                    )
                self._say(RECORD_BYTES)
        finally:
            await blocking.finish(reader.close)

    def _file(self, number: int) -> Path:
        return self._folder / part_name(number)

    def _record(self, reader: PartReader, number: int) -> None:
        """Raises RecordDamaged, BadBatch, NoSpace, WriteFailed, SeedStopped."""
        record = reader.read(number, self._coverage.sizes)
        before = self._coverage.place, len(self._coverage.gaps)
        if not self._coverage.came(record):
            raise RecordDamaged(reader.number, number, "its clusters came before")
        place = self._places.get(self._manifest.disks[record.disk].id)
        try:
            if place is not None:
                self._replica.seed_put(replace(record.batch, disk=place))
        except BadBatch:
            self._coverage.place = before[0]
            del self._coverage.gaps[before[1] :]
            raise
        self._good += 1

    def _lacking(self, present: Sequence[DiskGeometry]) -> list[Wanted]:
        """What the seed should have had of disks that are still there."""
        wanted = []
        awaited = {disk.id: disk for disk in self._awaited.disks}
        names = [disk.id for disk in self._manifest.disks]
        gaps = [(names[disk], run) for disk, run in self._coverage.gaps]
        gaps += [(disk, Run(0, clusters(awaited[disk].size))) for disk in awaited if disk not in names]
        for disk in present:
            end = min(clusters(disk.size), clusters(awaited[disk.id].size)) if disk.id in awaited else 0
            for name, run in gaps:
                if name == disk.id and run.start < end:
                    wanted.append(Wanted(name, Run(run.start, min(run.end, end) - run.start)))
        return wanted

    def _note(self, lacking: Sequence[Wanted], points: Sequence[PointInfo]) -> str:
        parts = len(self._manifest.parts)
        told = [f"{units.count(parts, 'part')} {'was' if parts == 1 else 'were'} read", self._first(points)]
        told += self._troubles()
        if lacking:
            count = sum(want.run.count for want in lacking)
            told.append(
                f"{units.size(count * CLUSTER)} come over the network with the next cycles; until then nothing can be"
                " recovered"
            )
        return "; ".join(told)

    def _first(self, points: Sequence[PointInfo]) -> str:
        """From which instant on the VM can be recovered."""
        first = next((point for point in points if point.recoverable), None)
        if first is not None:
            return f"the first point that can be recovered is {first.cycle}, of {units.rfc3339(first.instant)}"
        number, ended = self._manifest.after_cycle + 1, units.rfc3339(self._manifest.ended)
        return f"the first point that can be recovered comes: {number} or a later one, of an instant after {ended}"

    def _troubles(self) -> list[str]:
        told = [str(problem) for problem in self._problems[:_TOLD]]
        if len(self._problems) > _TOLD:
            told.append(f"and {len(self._problems) - _TOLD} more like these")
        return told

    def _trouble(self, problem: Problem) -> None:
        self._problems.append(problem)
        if len(self._problems) <= _TOLD:
            _log.warning("seed_has_a_fault", vm_id=self._manifest.vm_id, reason=str(problem))

    def _say(self, count: int) -> None:
        self._done += count
        total = sum(part.size for part in self._manifest.parts)
        percent = min(99, self._done * 100 // max(1, total))
        if percent != self._percent:
            self._percent = percent
            self._call.progress(percent, f"{units.size(self._done)} of {units.size(total)} are read")


def _folder(path: Path, host: str, vm_id: str, awaited: AwaitedSeed) -> Path:
    """Where the seed is: the awaited one if it is there, else another of the VM, which then is refused with its reason.

    Raises SeedMissing, OtherMachine, SeedPathDenied.
    """
    try:
        found = manifests.folders(path, vm_id)
    except OSError as error:
        raise SeedPathDenied(path, host, "read", error.strerror or str(error)) from error
    if awaited.id in found:
        return found[awaited.id]
    if found:
        return next(iter(found.values()))
    other = manifests.vm_of(path)
    if other:
        raise OtherMachine(other, vm_id)
    raise SeedMissing(path, vm_id)
