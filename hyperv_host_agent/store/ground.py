"""A replica as its check and its repair see it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from hyperv_host_agent.replication.cycle import Wanted
from hyperv_host_agent.store.chains import Chains
from hyperv_host_agent.store.copies import Document
from hyperv_host_agent.store.damage import Damage, Record
from hyperv_host_agent.store.manifests import LayerRef, Manifest


@dataclass(frozen=True, slots=True)
class Ground:
    """What is behind it may change whenever `lock` is not held. The callables are called with it, unless they say."""

    directory: Path
    lock: AbstractContextManager[object]
    record: Record
    chains: Callable[[], Chains]
    manifests: Callable[[], Mapping[int, Manifest]]
    documents: Callable[[], list[Document]]
    rewrite: Callable[[str, LayerRef, Mapping[tuple[int, int], bytes]], bool]  # without the lock; False: not now
    want: Callable[[Iterable[Wanted]], object]
    is_open: Callable[[], bool]  # without the lock
    journal_problem: Callable[[], str | None]
    drop_unfinished: Callable[[], None]  # the cycle that is being received is sent anew

    def layers(self) -> Iterator[tuple[str, LayerRef]]:
        """(disk, layer) in the order they are checked."""
        disks = self.chains().disks
        for disk in sorted(disks):
            for ref in disks[disk]:
                yield disk, ref

    def is_current(self, disk: str, ref: LayerRef) -> bool:
        """Whether the layer was not replaced meanwhile."""
        return ref in self.chains().disks.get(disk, ())

    def layer_path(self, disk: str, ref: LayerRef) -> Path:
        return self.directory / disk / ref.file

    def above(self, disk: str, ref: LayerRef) -> list[LayerRef]:
        """The layers that stand on this one, the nearest first."""
        chain = next(chain for name, chain in self.chains().each() if name == disk and ref in chain)
        return list(chain[chain.index(ref) + 1 :])

    def is_in(self, damage: Damage, disk: str, ref: LayerRef) -> bool:
        """Whether a damaged frame is in this layer by now."""
        if damage.disk != disk or damage.cluster is None:
            return False
        holding = self.chains().covering(disk, damage.cycle)
        return holding is not None and holding.file == ref.file

    def points(self, damage: Damage) -> tuple[int, ...]:
        """Cycles of the points that stand on something damaged."""
        return tuple(cycle for cycle, manifest in self.manifests().items() if self.concerns(damage, manifest))

    def concerns(self, damage: Damage, manifest: Manifest) -> bool:
        """Whether a point stands on something damaged."""
        disk = manifest.disk(damage.disk)
        if disk is None:
            return False
        chains = self.chains()
        stack = chains.stack(damage.disk, disk.at)
        if damage.cluster is None:
            return any(f"{damage.disk}/{ref.file}" == damage.file for ref in stack)
        return damage.shown_at(disk.at) and chains.covering(damage.disk, damage.cycle) in stack
