"""What is done about damage in a layer: mended from elsewhere in the replica, or wanted from the source, and told."""

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from hyperv_host_agent.replication.cycle import Wanted
from hyperv_host_agent.store import files, repair
from hyperv_host_agent.store.base import Finding
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.damage import MOST, Damage
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.side_file import Entry, SideFile, side_path
from hyperv_host_agent.store.ground import Ground
from hyperv_host_agent.store.manifests import LayerRef
from twinsite.extents import Run, clusters, runs


class Mender:
    """With `repair` false it only tells. OSErrors of publishing pass through."""

    def __init__(self, ground: Ground, *, repair: bool) -> None:
        self._ground, self._repair = ground, repair
        self.failed: OSError | None = None  # the first second copy that could not be written
        self._too_many: set[tuple[str, LayerRef]] = set()  # layers with more damage than is kept one by one

    def side(self, disk: str, ref: LayerRef) -> tuple[bool, list[Finding]]:
        """Check the layer's side file and its second copy: whether the first can be relied on now. Raises OSError."""
        path = self._ground.layer_path(disk, ref)
        side = side_path(path)
        if repair.is_sound(side, ref):
            copy, problem = copy_path(side), ""
            if copy.exists() and not repair.is_sound(copy, ref):
                problem = f"{copy.name} does not match the digest of its layer"
            if self._repair:
                with self._ground.lock:
                    if self._ground.is_current(disk, ref):
                        self._copy(path, ref)
            return True, [self._of_file(disk, ref, copy.name, problem, repaired=self._repair)] if problem else []
        problem = f"{side.name} does not match the digest of its layer"
        out = repair.mended_side(path, ref) if self._repair else None
        with self._ground.lock:
            if not self._ground.is_current(disk, ref):
                return False, []
            if out is not None:
                out.rename(side)
                files.sync_directory(side.parent)
                return True, [self._of_file(disk, ref, side.name, problem, repaired=True)]
            self._lose(disk, ref, problem)
            return False, [self._of_file(disk, ref, side.name, problem, repaired=False)]

    def note(self, disk: str, ref: LayerRef, place: Run, damaged: Sequence[tuple[Entry, str]], side: SideFile) -> None:
        """The clusters of `place` were looked at, and this is damaged in them. Under the lock."""
        ground, name = self._ground, f"{disk}/{ref.file}"
        known = [one for one in ground.record.damages if one.tried and ground.is_in(one, disk, ref)] if damaged else []
        tried = {(one.cluster, one.cycle) for one in known}
        found = [
            Damage(
                *(disk, name, problem, entry.cluster, entry.cycle),
                until=_next_version([side], entry) or self._next_above(disk, ref, entry),
                fingerprint=entry.fingerprint,
                tried=(entry.cluster, entry.cycle) in tried,
            )
            for entry, problem in damaged
        ]
        ground.record.replace(
            [one for one in found if ground.points(one)],  # what no point shows, the next merge leaves out
            of=lambda one: (
                one.cluster is not None and place.start <= one.cluster < place.end and ground.is_in(one, disk, ref)
            ),
        )
        held = [one for one in ground.record.damages if ground.is_in(one, disk, ref)] if found else []
        if len(held) > MOST:
            self._want(held)
            self._too_many.add((disk, ref))
            ground.record.replace([], of=lambda one: ground.is_in(one, disk, ref))

    def layer(self, disk: str, ref: LayerRef, tables: str | None = None) -> list[Finding]:
        """Mend what is known to be damaged in a layer, and its tables; tells of all of it."""
        ground = self._ground
        with ground.lock:
            if not ground.is_current(disk, ref):
                return []
            damages = [one for one in ground.record.damages if ground.is_in(one, disk, ref)]
        mended: set[tuple[int | None, int]] = set()
        found: set[tuple[int | None, int]] = set()  # elsewhere; without room it is not put in place all the same
        rewritten = False
        if self._repair and (damages or tables):
            with ground.lock:
                places = [(ground.layer_path(name, layer), layer) for name, layer in ground.layers()]
            equals = repair.equal_frames({one.fingerprint for one in damages}, places)
            frames = {
                (one.cluster, one.cycle): equals[one.fingerprint]
                for one in damages
                if one.cluster is not None and one.fingerprint in equals
            }
            found = {*frames}
            if frames or tables:
                rewritten = ground.rewrite(disk, ref, frames)
                mended = {*frames} if rewritten else set()
        findings: list[Finding] = []
        with ground.lock:
            if (disk, ref) in self._too_many:
                tables, rewritten = f"more than {MOST} of its clusters are damaged", False
            whole = Damage(disk, f"{disk}/{ref.file}", tables or "")
            if tables:
                findings.append(self._of_file(disk, ref, ref.file, tables, repaired=rewritten))
            tried = {one: one.tried or (self._repair and (one.cluster, one.cycle) not in found) for one in damages}
            lost = [one for one in damages if (one.cluster, one.cycle) not in mended]
            wanted = self._want(lost)
            findings += [
                Finding(
                    *(one.disk, one.file, one.cluster, one.problem, ground.points(one)),
                    repaired=(one.cluster, one.cycle) in mended,
                    wanted=one in wanted,
                    tried=tried[one] and one in lost,
                )
                for one in damages
            ]
            still = [replace(one, tried=tried[one]) for one in lost]
            ground.record.replace(
                [whole, *still] if tables and not rewritten else still,
                of=lambda one: (one.file == whole.file and one.cluster is None) or one in damages,
            )
            self._count(findings)
        return findings

    def again(self) -> list[Finding]:
        """Try to mend what could not be mended before: a cycle may have brought equal content."""
        with self._ground.lock:
            damages = self._ground.record.damages
            places = [
                (disk, ref)
                for disk, ref in self._ground.layers()
                if any(self._ground.is_in(one, disk, ref) for one in damages)
            ]
        return [finding for disk, ref in places for finding in self.layer(disk, ref) if finding.repaired]

    def _copy(self, layer: Path, ref: LayerRef) -> None:
        """The layer is read all the same when its side file gets no second copy."""
        try:
            repair.copy_side(layer, ref)
        except OSError as error:
            self.failed = self.failed or error

    def _count(self, findings: list[Finding]) -> None:
        count = sum(finding.repaired for finding in findings)
        self._ground.record.repaired += count

    def _lose(self, disk: str, ref: LayerRef, problem: str) -> None:
        """Nobody knows what is in the layer: all that the newest point may show of it is wanted. Under the lock."""
        name = f"{disk}/{ref.file}"
        tried = self._repair or self._ground.record.was_tried(name)
        self._ground.record.replace([Damage(disk, name, problem, tried=tried)], of=lambda one: one.file == name)
        if not self._repair or self._in_newest(disk) is None:
            return
        shown = [Run(0, clusters(ref.size))]
        with suppress(LayerDamaged), closing(Layer(self._ground.layer_path(disk, ref))) as layer:
            shown = list(runs(cluster for cluster, _ in layer.entries()))
        self._ground.want(Wanted(disk, run) for run in shown)

    def _want(self, damages: list[Damage]) -> list[Damage]:
        """Ask the source for those that the newest point shows: them. Under the lock."""
        wanted = []
        if self._repair:
            for one in damages:
                size = self._in_newest(one.disk)
                if one.cluster is not None and not one.until and size is not None and one.cluster < clusters(size):
                    wanted.append(one)
            self._ground.want(Wanted(one.disk, Run(one.cluster or 0, 1)) for one in wanted)
        return wanted

    def _in_newest(self, disk: str) -> int | None:
        """The size of the disk in the newest point, when that has it."""
        manifests = self._ground.manifests()
        held = manifests[max(manifests)].disk(disk) if manifests else None
        return held.geometry.size if held else None

    def _next_above(self, disk: str, ref: LayerRef, entry: Entry) -> int:
        for upper in self._ground.above(disk, ref):
            with suppress(LayerDamaged), closing(SideFile(side_path(self._ground.layer_path(disk, upper)))) as side:
                cycle = _next_version([side], entry)
                if cycle:
                    return cycle
        return 0

    def _of_file(self, disk: str, ref: LayerRef, file: str, problem: str, *, repaired: bool) -> Finding:
        points = self._ground.points(Damage(disk, f"{disk}/{ref.file}", problem))
        tried = not repaired and self._ground.record.was_tried(f"{disk}/{ref.file}")
        return Finding(disk, f"{disk}/{file}", None, problem, points, repaired=repaired, tried=tried)


def _next_version(sides: list[SideFile], entry: Entry) -> int:
    """The first cycle that brought the cluster of a frame anew; 0: none."""
    return min(_versions(sides, entry), default=0)


def _versions(sides: list[SideFile], entry: Entry) -> Iterator[int]:
    for side in sides:
        for other in side.entries(entry.cluster, entry.cluster + 1):
            if other.cycle > entry.cycle:
                yield other.cycle
        for run in side.zeros(entry.cluster, entry.cluster + 1):
            if run.cycle > entry.cycle:
                yield run.cycle
