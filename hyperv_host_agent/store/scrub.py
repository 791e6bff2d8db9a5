"""Checking all that a replica holds, document by document, layer by layer, frame by frame, and having it mended."""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from hyperv_host_agent.store.base import Checked, Finding
from hyperv_host_agent.store.copies import Document
from hyperv_host_agent.store.damage import Damage, Position
from hyperv_host_agent.store.formats.side_file import side_path
from hyperv_host_agent.store.ground import Ground
from hyperv_host_agent.store.layer_check import LayerCheck
from hyperv_host_agent.store.manifests import LayerRef, Manifest
from hyperv_host_agent.store.mending import Mender
from hyperv_host_agent.store.receiving import JOURNAL
from twinsite.extents import Run

_RECORD_BYTES: Final = 36  # that a side file has for a cluster, about


class Check:
    """One pass. `position` says where it is, `done` how many bytes were read."""

    def __init__(
        self, ground: Ground, *, repair: bool, position: Position | None = None, point: Manifest | None = None
    ) -> None:
        """`point`: only what it stands on."""
        self._ground, self._repair = ground, repair
        self._mender = Mender(ground, repair=repair)
        self.position = position or Position()
        self.done = 0
        self.failed: OSError | None = None  # the first of the writes that could not be done
        with ground.lock:
            self._only = _standing(ground, point) if point else None
            self.total = sum(_bytes(ref) for _, ref in self._layers())

    def steps(self) -> Iterator[Checked]:
        """Go on, some MiB at a time. What cannot be written stops no layer after it: its OSError comes at the end."""
        if self.position == Position():
            yield self._told(self._documents())
        yield self._told(self._again() if self._repair else [])
        seen: set[tuple[str, int]] = set()
        while self._ground.is_open():
            with self._ground.lock:
                found = next(
                    (one for one in self._layers() if not self.position.passed(one[0], one[1].cycle)),
                    None,
                )
            if found is None:
                self.failed = self.failed or self._mender.failed
                if self.failed:
                    raise self.failed
                return
            disk, ref = found
            if (disk, ref.cycle) != (self.position.disk, self.position.layer):
                self.position = Position(disk, ref.cycle)
            try:
                yield from self._layer(disk, ref)
            except OSError as error:
                self.failed = self.failed or error
            with self._ground.lock:
                replaced = not self._ground.is_current(disk, ref)
            if replaced and (disk, ref.cycle) not in seen:
                self.position = Position(disk, ref.cycle)  # by a merge or a repair: it is looked at once more
            else:
                self.position = Position(disk, ref.cycle + 1)
            seen.add((disk, ref.cycle))

    def _layers(self) -> Iterator[tuple[str, LayerRef]]:
        """Those to be checked. Under the lock."""
        return (one for one in self._ground.layers() if self._only is None or one in self._only)

    def _documents(self) -> list[Finding]:
        ground, found = self._ground, []
        with ground.lock:
            for document in ground.documents():
                problem = document.problem()
                mended = self._repair and self._restored(document)
                if problem:
                    name = os.path.relpath(document.path, ground.directory)
                    tried = not mended and (self._repair or ground.record.was_tried(name))
                    found.append(Finding("", name, None, problem, document.points, repaired=mended, tried=tried))
            problem = ground.journal_problem()
            if problem:
                if self._repair:
                    ground.drop_unfinished()
                found.append(Finding("", JOURNAL, None, problem, repaired=self._repair))
            lost = [Damage("", one.file, one.problem, tried=one.tried) for one in found if not one.repaired]
            ground.record.replace(lost, of=lambda one: not one.disk)
            ground.record.repaired += len(found) - len(lost)
        return found

    def _restored(self, document: Document) -> bool:
        try:
            return document.restore()
        except OSError as error:
            self.failed = self.failed or error
            return False

    def _again(self) -> list[Finding]:
        try:
            return self._mender.again()
        except OSError as error:
            self.failed = self.failed or error
            return []

    def _layer(self, disk: str, ref: LayerRef) -> Iterator[Checked]:
        ground = self._ground
        sound, findings = self._mender.side(disk, ref)
        self.done += ref.clusters * _RECORD_BYTES
        yield self._told(findings)
        if not sound:
            return
        path = ground.layer_path(disk, ref)
        with ground.lock:
            if not ground.is_current(disk, ref):
                return
            layer = LayerCheck(path, ref, side_path(path))
        with layer:
            for piece in layer.frames(self.position.cluster):
                with ground.lock:
                    if not ground.is_current(disk, ref):
                        return
                    start = self.position.cluster
                    self._mender.note(disk, ref, Run(start, piece.end - start), piece.damaged, layer.side)
                self.position = replace(self.position, cluster=piece.end)
                self.done += piece.checked_bytes
                yield self._told([])
            tables = layer.tables_problem()
        yield self._told(self._mender.layer(disk, ref, tables))

    def _told(self, findings: list[Finding]) -> Checked:
        return Checked(min(self.done, self.total), self.total, tuple(findings))


def _standing(ground: Ground, point: Manifest) -> frozenset[tuple[str, LayerRef]]:
    chains = ground.chains()
    return frozenset((disk.geometry.id, ref) for disk in point.disks for ref in chains.stack(disk.geometry.id, disk.at))


def _bytes(ref: LayerRef) -> int:
    return ref.stored_bytes + ref.clusters * _RECORD_BYTES


def round_bytes(ground: Ground) -> int:
    """What one pass over everything reads, about. Under the lock."""
    return sum(_bytes(ref) for _, ref in ground.layers())
