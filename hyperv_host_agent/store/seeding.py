"""A base that comes on media: what a replica awaits, the layers of it while they are read in, and what came of it.

A placeholder commits empty base layers; cycles of changes are put on them as on any. Reading a seed in writes full
layers beside the empty ones and puts them in place with the machinery of a merge of one layer. `seed.json` says at
last that the base is there: until it does, the replica waits, and reading in may be repeated.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

from hyperv_host_agent.replication.cycle import Batch, CycleHeader, Kind, Wanted
from hyperv_host_agent.store import copies, files, rules
from hyperv_host_agent.store.base import AwaitedSeed, BadBatch
from hyperv_host_agent.store.formats import side_file
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.manifests import LayerRef, Manifest, layer_cycle, layer_name
from hyperv_host_agent.store.merging import temporary_paths
from hyperv_host_agent.store.wanted import minus
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.extents import CLUSTER, Run, clusters

SEED: Final = "seed.json"
RECORDS: Final = ".seed"  # fingerprints as they come, before they are a side file
_READ: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Seeded:
    """What is known of a base that came on media."""

    id: bytes
    cycle: int  # of its placeholder
    after: int  # points up to this cycle are older than the seed
    lacking: tuple[Wanted, ...] = ()  # not in the seed and not come since
    whole_at: int = 0  # first point from which on nothing lacks

    def complete(self, cycle: int) -> bool:
        """Whether a point stands on everything it needs."""
        return cycle < self.cycle or (not self.lacking and cycle > self.after and cycle >= self.whole_at)

    def came(self, cycle: int, brought: Mapping[str, Iterable[Run]], sizes: Mapping[str, int]) -> Self:
        """After a cycle was committed with these clusters of each disk; `sizes` in clusters of the disks it has."""
        taken = {disk: sorted(runs) for disk, runs in brought.items()}
        left = tuple(
            Wanted(want.disk, run)
            for want in self.lacking
            for run in minus([_cut(want.run, sizes.get(want.disk, 0))], taken.get(want.disk, ()))
        )
        return replace(self, lacking=left, whole_at=self.whole_at if left or not self.lacking else cycle)

    def document(self) -> dict[str, object]:
        return {
            "id": self.id.hex(),
            "cycle": self.cycle,
            "after": self.after,
            "lacking": [[want.disk, want.run.start, want.run.count] for want in self.lacking],
            "whole_at": self.whole_at,
        }

    @classmethod
    def decode(cls, document: Mapping[str, Any]) -> Self:
        """Raises ValueError, KeyError, TypeError."""
        seeded = cls(
            id=bytes.fromhex(document["id"]),
            cycle=int(document["cycle"]),
            after=int(document["after"]),
            lacking=tuple(Wanted(str(disk), Run(int(start), int(count))) for disk, start, count in document["lacking"]),
            whole_at=int(document["whole_at"]),
        )
        if any(want.run.start < 0 or want.run.count < 1 for want in seeded.lacking):
            raise ValueError("names clusters that cannot be")
        copies.as_written(document, seeded.document())
        return seeded


def read(directory: Path, manifests: Mapping[int, Manifest]) -> Seeded | None:
    """What came of the replica's seed; None: it has or had none, or waits for it. Raises OSError."""
    documents, problems = copies.read(directory / SEED, Seeded.decode)
    if not documents:
        if not problems or not manifests:
            return None
        seeded = _lost(manifests)
        write(directory, seeded)
        return seeded
    seeded = documents[0]
    if len(documents) == 1 or documents[0] != documents[1]:
        write(directory, seeded)
    return seeded


def _lost(manifests: Mapping[int, Manifest]) -> Seeded:
    """Both copies are damaged. There was a base, but how much of it came is not known: all of the newest point is
    wanted anew, and the points after that are whole for certain.
    """
    newest, placeholder = manifests[max(manifests)], awaited(manifests.values(), None)
    lacking = tuple(Wanted(disk.geometry.id, Run(0, clusters(disk.geometry.size))) for disk in newest.disks)
    of_seed = (placeholder.id, placeholder.cycle) if placeholder else (b"", 0)
    return Seeded(*of_seed, newest.cycle, lacking)


def write(directory: Path, seeded: Seeded) -> None:
    """Durably. Raises OSError."""
    copies.write(directory / SEED, seeded.document())


def awaited(manifests: Iterable[Manifest], seeded: Seeded | None) -> Manifest | None:
    """The placeholder whose content did not come yet."""
    for manifest in manifests:
        if manifest.placeholder and (seeded is None or seeded.id != manifest.id):
            return manifest
    return None


def called_off(awaited: AwaitedSeed, cycle: int) -> Seeded:
    """A whole copy over the network took the seed's place; points after it stand on that."""
    return Seeded(awaited.id, awaited.cycle, cycle, whole_at=cycle + 1)


def of(manifest: Manifest) -> AwaitedSeed:
    """What a placeholder waits for."""
    return AwaitedSeed(manifest.id, manifest.cycle, manifest.instant, tuple(disk.geometry for disk in manifest.disks))


def check(vm_id: str, awaited: AwaitedSeed, batch: Batch) -> Batch:
    """What of a batch belongs in the base, once it keeps the rules: no zeros, which a base need not name, and nothing
    of what a disk that has grown since holds past its end. Raises BadBatch.
    """
    if 0 <= batch.disk < len(awaited.disks):
        batch = _fitting(batch, clusters(awaited.disks[batch.disk].size))
    header = CycleHeader(
        vm_id=vm_id,
        id=awaited.id,
        number=awaited.cycle,
        parent=0,
        term=0,
        kind=Kind.INITIAL,
        instant=awaited.instant,
        consistency="none",
        disks=awaited.disks,
    )
    rules.check_batch(header, batch, sequence=batch.sequence)
    return batch


def _fitting(batch: Batch, end: int) -> Batch:
    if not batch.clusters or batch.clusters[-1] < end:
        return replace(batch, zero_runs=())
    count = next(place for place, cluster in enumerate(batch.clusters) if cluster >= end)
    return replace(
        batch,
        clusters=batch.clusters[:count],
        lengths=batch.lengths[:count],
        fingerprints=batch.fingerprints[: count * FINGERPRINT_BYTES],
        zero_runs=(),
        payload=batch.payload[: sum(batch.lengths[:count])],
    )


def shrank(chain: Sequence[LayerRef]) -> bool:
    """Whether the disk ended inside a cluster after it shrank: joining such layers reads the base under them."""
    sizes = [layer.size for layer in chain]
    return any(upper < lower and upper % CLUSTER for lower, upper in pairwise(sizes))


def _cut(run: Run, end: int) -> Run:
    return Run(run.start, max(0, min(run.end, end) - run.start))


class _Base:
    """One disk's base layer while it grows."""

    def __init__(self, layer: Path, size: int) -> None:
        self.layer = layer
        self.reached = -1
        side = side_file.side_path(layer)
        self.out, self.side_out = temporary_paths(layer)
        self.records = side.with_name(side.name + RECORDS)
        self.fd = self.records_fd = -1
        self.records_end = 0
        try:
            self.fd, self.records_fd = _create(self.out), _create(self.records)
        except OSError:
            self.close()
            raise
        self.writer = LayerWriter(self.fd, size)

    def put(self, batch: Batch) -> None:
        self.writer.write(batch.payload)
        arrived = side_file.arrived(
            layer_cycle(self.layer.name), batch.clusters, batch.lengths, self.writer.position, batch.fingerprints
        )
        records = side_file.records(arrived)
        files.write_all(self.records_fd, records, self.records_end)
        self.writer.record(batch.clusters, batch.lengths)
        self.records_end += len(records)
        self.reached = batch.clusters[-1]

    def finish(self) -> LayerRef:
        writer = self.writer
        writer.finish(None)
        digest = side_file.write(self.side_out, writer.size, self._records(), ())
        files.sync_directory(self.out.parent)
        return LayerRef(
            file=self.layer.name,
            backing=None,
            size=writer.size,
            clusters=writer.data_clusters,
            stored_bytes=writer.position - CLUSTER,
            digest=digest,
        )

    def close(self) -> None:
        for fd in (self.fd, self.records_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.records_fd = -1

    def remove(self) -> None:
        for path in (self.out, self.side_out):
            files.remove_file(path)

    def _records(self) -> Iterator[bytes]:
        for start in range(0, self.records_end, _READ):
            yield os.pread(self.records_fd, min(_READ, self.records_end - start), start)


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


class Seeding:
    """The base layers of one attempt. Not thread-safe. OSErrors pass through; the caller names them."""

    def __init__(self, directory: Path, placeholder: Manifest) -> None:
        self._placeholder = placeholder
        self._bases: list[_Base] = []
        self._finished: dict[str, LayerRef] = {}
        self._awaited = of(placeholder)
        try:
            for disk in placeholder.disks:
                layer = directory / disk.geometry.id / layer_name(disk.at)
                self._bases.append(_Base(layer, disk.geometry.size))
        except OSError:
            self.drop()
            raise

    def put(self, batch: Batch) -> None:
        """Raises BadBatch, OSError: then nothing of it counts."""
        batch = check(self._placeholder.vm_id, self._awaited, batch)
        base = self._bases[batch.disk]
        if batch.clusters and batch.clusters[0] <= base.reached:
            raise BadBatch(batch.sequence, f"cluster {batch.clusters[0]} after {base.reached}")
        if batch.clusters:
            base.put(batch)

    def finish_bytes(self) -> int:
        """About how much `finish` writes."""
        return sum(base.writer.tables_bytes() + 24 * base.writer.data_clusters for base in self._bases)

    def finish(self) -> dict[str, LayerRef]:
        """The layers, complete and durable under their temporary names, by disk. Repeatable.

        From then on they are the caller's: `drop` leaves them, because a start after a crash may look for them.
        """
        if not self._finished:
            self._finished = {
                disk.geometry.id: base.finish() for disk, base in zip(self._placeholder.disks, self._bases, strict=True)
            }
        return self._finished

    def seeded(self, after_cycle: int, lacking: Sequence[Wanted]) -> Seeded:
        """What is to be remembered once the layers are in place."""
        cycle = self._placeholder.cycle
        return Seeded(self._placeholder.id, cycle, after_cycle, tuple(lacking), cycle + 1)

    def drop(self) -> None:
        """Raises OSError; what stays then is garbage to the next start."""
        for base in self._bases:
            base.close()
        for base in self._bases:
            files.remove_file(base.records)
            if not self._finished:
                base.remove()
