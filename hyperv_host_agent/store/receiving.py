"""The cycle that is being received: its journal, and a partial layer for each disk it touched."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Self

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, Unfinished
from hyperv_host_agent.store import files, rules
from hyperv_host_agent.store.base import BadBatch
from hyperv_host_agent.store.formats import side_file
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.journal import Entry, Journal
from hyperv_host_agent.store.manifests import LayerRef, layer_name
from twinsite.extents import CLUSTER, Run, runs

JOURNAL: Final = "receiving.journal"
PARTIAL: Final = ".partial"
_CHUNK: Final = 4096  # records


@dataclass(slots=True)
class _Part:
    """One disk's layer while it grows."""

    path: Path
    writer: LayerWriter
    dirty: bool = True
    listed: bool = False  # its directory entry is durable


class Receiving:
    """Not thread-safe. OSErrors of writing pass through; the caller names them."""

    def __init__(self, directory: Path, journal: Journal) -> None:
        self._directory, self._journal = directory, journal
        self.header = journal.header  # as the source says it now: a resumed cycle may be of a newer term
        self._parts: dict[int, _Part] = {}
        self.staged = journal.durable
        self.spoiled = False  # its journal is damaged: it cannot be finished
        self._staged_digest = journal.durable_digest

    @classmethod
    def start(cls, directory: Path, header: CycleHeader) -> Self:
        """Begin a cycle; nothing else may be under way in the directory."""
        receiving = cls(directory, Journal.create(directory / JOURNAL, header))
        try:
            files.sync_directory(directory)
        except OSError:
            receiving.close()
            raise
        return receiving

    @classmethod
    def recover(cls, directory: Path, *, committed: int) -> Self | None:
        """What a crash left of the cycle after `committed`, if it has to be kept; `rewind` before `put`."""
        path = directory / JOURNAL
        journal = Journal.open(path) if path.exists() else None
        if journal:
            with ExitStack() as unless_kept:
                unless_kept.callback(journal.close)
                if journal.header.number == committed + 1:
                    receiving = cls(directory, journal)
                    receiving.take_back()
                    unless_kept.pop_all()
                    return receiving
        files.remove_file(path)
        return None

    @property
    def unfinished(self) -> Unfinished:
        """The part that is durable."""
        return Unfinished(self.header.number, self.header.id, self._journal.durable, self._journal.durable_digest)

    @property
    def durable(self) -> int:
        return self._journal.durable

    @property
    def clusters(self) -> int:
        """Data and zero clusters so far."""
        return sum(part.writer.data_clusters + part.writer.zero_clusters for part in self._parts.values())

    def journal_problem(self) -> str | None:
        """What is wrong with the record of how it came."""
        return None if self.spoiled or self._journal.is_whole() else f"{JOURNAL} is not what was written"

    def brought(self) -> dict[str, list[Run]]:
        """The clusters of each disk so far, in the order they came; before `committed`."""
        found: dict[str, list[Run]] = {disk.id: [] for disk in self.header.disks}
        for entry in self._journal.entries():
            of_disk = found[self.header.disks[entry.disk].id]
            of_disk += runs(entry.clusters)
            of_disk += entry.zero_runs
        return found

    @property
    def stored_bytes(self) -> int:
        return sum(part.writer.position - CLUSTER for part in self._parts.values())

    def partials(self) -> set[Path]:
        """Files of this cycle that may exist."""
        return {self._partial(position) for position in range(len(self.header.disks))} | {self._journal.path}

    def rewind(self, sequence: int) -> bool:
        """Go back, durably, to just after batch `sequence`, and be ready for `put`. False: the data is not there."""
        self._close_parts()
        self._journal.cut(sequence)
        for entry in self._journal.entries():
            part = self._part(entry.disk)
            if entry.position != part.writer.position:
                return False
            part.writer.record(entry.clusters, entry.lengths)
            for run in entry.zero_runs:
                part.writer.record_zeros(run)
        for part in self._parts.values():
            if os.fstat(part.writer.fd).st_size < part.writer.position and part.writer.data_clusters:
                return False
            os.ftruncate(part.writer.fd, part.writer.position)
        self.staged, self._staged_digest = sequence, self._journal.durable_digest
        return True

    def put(self, batch: Batch, digest: bytes) -> None:
        """Stage a batch. Raises BadBatch, OSError: then nothing of it counts."""
        rules.check_batch(self.header, batch, sequence=self.staged + 1)
        part = self._parts.get(batch.disk)
        held = part.writer.held(batch.clusters, batch.zero_runs) if part else None
        if held is not None:
            raise BadBatch(batch.sequence, f"cluster {held} came before")
        part = part or self._part(batch.disk)
        part.writer.write(batch.payload)
        self._journal.append(batch, part.writer.position, digest)
        part.writer.record(batch.clusters, batch.lengths)
        for run in batch.zero_runs:
            part.writer.record_zeros(run)
        part.dirty = True
        self.staged, self._staged_digest = batch.sequence, digest

    def sync(self) -> int:
        """Data first, then the journal's mark: the last durable batch."""
        if self.staged > self._journal.durable:
            for part in self._parts.values():
                if part.dirty:
                    part.writer.flush()
                    files.sync_data(part.writer.fd)
                    part.dirty = False
                if not part.listed:
                    files.sync_directory(part.path.parent)
                    part.listed = True
            self._journal.mark(self.staged, self._staged_digest)
        return self._journal.durable

    def finish_bytes(self) -> int:
        """About how much `finish` writes."""
        return sum(part.writer.tables_bytes() + 24 * part.writer.data_clusters for part in self._parts.values())

    def finish(self, parents: Mapping[str, LayerRef | None]) -> dict[str, LayerRef]:
        """Complete the layers, durably and under their names: those of disks that changed, by disk.

        `parents` has the newest layer so far of every disk, None for a disk that has none.
        """
        finished: dict[str, LayerRef] = {}
        for position, disk in enumerate(self.header.disks):
            parent = parents[disk.id]
            if position in self._parts or parent is None or parent.size != disk.size:
                finished[disk.id] = self._finish_layer(position, parent)
        return finished

    def take_back(self) -> None:
        """Undo the renames of a `finish` that was not followed by a commit."""
        for position in range(len(self.header.disks)):
            partial = self._partial(position)
            with suppress(FileNotFoundError):
                partial.with_suffix("").rename(partial)

    def close(self) -> None:
        self._close_parts()
        self._journal.close()

    def committed(self) -> None:
        """The manifest is durable: forget how it came."""
        self.close()
        files.remove_file(self._journal.path)

    def drop(self) -> None:
        """Remove every trace, as far as the file system lets us: what stays is garbage to the next start."""
        self.close()
        with suppress(OSError):
            files.remove_file(self._journal.path)
            self.take_back()
            for position in range(len(self.header.disks)):
                files.remove_file(self._partial(position))
                files.remove_file(side_file.side_path(self._partial(position).with_suffix("")))

    def _partial(self, position: int) -> Path:
        header = self.header
        return self._directory / header.disks[position].id / (layer_name(header.number) + PARTIAL)

    def _part(self, position: int) -> _Part:
        part = self._parts.get(position)
        if part is None:
            path = self._partial(position)
            files.make_directory(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            part = self._parts[position] = _Part(path, LayerWriter(fd, self.header.disks[position].size))
        return part

    def _finish_layer(self, position: int, parent: LayerRef | None) -> LayerRef:
        part = self._part(position)
        writer, layer = part.writer, part.path.with_suffix("")
        writer.finish(parent.file if parent else None)
        zero_runs = [run for entry in self._entries(position) for run in entry.zero_runs] if parent else []
        dated = [side_file.ZeroRun(run.start, run.end, self.header.number) for run in sorted(zero_runs)]
        digest = side_file.write(side_file.side_path(layer), writer.size, self._records(position), dated)
        part.path.rename(layer)
        files.sync_directory(layer.parent)
        zeros = sum(run.count for run in zero_runs)
        return LayerRef(
            file=layer.name,
            backing=parent.file if parent else None,
            size=writer.size,
            clusters=writer.data_clusters + zeros,
            stored_bytes=writer.position - CLUSTER,
            digest=digest,
        )

    def _entries(self, position: int) -> Iterator[Entry]:
        return (entry for entry in self._journal.entries() if entry.disk == position)

    def _records(self, position: int) -> Iterator[bytes]:
        """Side file records of a disk, ascending. Batches usually come so; otherwise they are sorted in memory."""
        reached = -1
        for entry in self._entries(position):
            if entry.clusters and entry.clusters[0] <= reached:
                break
            reached = entry.clusters[-1] if entry.clusters else reached
        else:
            return (side_file.records(self._held(entry)) for entry in self._entries(position))
        held = sorted(chain.from_iterable(map(self._held, self._entries(position))))
        return (side_file.records(held[at : at + _CHUNK]) for at in range(0, len(held), _CHUNK))

    def _held(self, entry: Entry) -> Iterator[side_file.Entry]:
        """What the side file says of a batch."""
        number = self.header.number
        return side_file.arrived(number, entry.clusters, entry.lengths, entry.position, entry.fingerprints)

    def _close_parts(self) -> None:
        for part in self._parts.values():
            os.close(part.writer.fd)
        self._parts.clear()
