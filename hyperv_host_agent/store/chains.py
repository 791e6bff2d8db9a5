"""Which layers there are of every disk, and what they stand on.

`chains.json` names them as of a cycle; the layers of later cycles are named by the manifests that committed them. It is
rewritten before a manifest may go and after every merge, and there are two copies of it, as all points need it.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from hyperv_host_agent.store import copies, rules
from hyperv_host_agent.store.base import BadName, ReplicaUnreadable
from hyperv_host_agent.store.formats.qcow2 import LayerDamaged
from hyperv_host_agent.store.layer_check import stand_in
from hyperv_host_agent.store.manifests import FORMAT, LayerRef, Manifest, layer_name

CHAINS: Final = "chains.json"


@dataclass(frozen=True, slots=True)
class Chains:
    """Layers by disk, ascending by cycle.

    A disk that was removed and added again has several chains, one after the other; each begins with a layer that
    stands on nothing.
    """

    through: int = 0  # the newest cycle whose layers are in it
    disks: Mapping[str, tuple[LayerRef, ...]] = field(default_factory=dict)

    def covering(self, disk_id: str, at: int) -> LayerRef | None:
        """The layer that holds what a cycle brought to the disk."""
        layers = self.disks.get(disk_id, ())
        place = bisect_left(layers, at, key=lambda layer: layer.cycle)
        return layers[place] if place < len(layers) else None

    def stack(self, disk_id: str, at: int) -> tuple[LayerRef, ...]:
        """The layers that the content of a cycle stands on, oldest first; the last one is `covering`."""
        layers = self.disks.get(disk_id, ())
        end = bisect_left(layers, at, key=lambda layer: layer.cycle) + 1
        if end > len(layers):
            return ()
        start = max(place for place in range(end) if layers[place].backing is None)
        return layers[start:end]

    def each(self) -> Iterator[tuple[str, tuple[LayerRef, ...]]]:
        """(disk, chain) of every chain there is."""
        for disk_id, layers in self.disks.items():
            starts = [place for place, layer in enumerate(layers) if layer.backing is None]
            for start, end in zip(starts, [*starts[1:], len(layers)], strict=True):
                yield disk_id, layers[start:end]

    def committed(self, manifest: Manifest) -> "Chains":
        """With the layers a newer cycle brought."""
        new = {disk.geometry.id: disk.layer for disk in manifest.disks if disk.layer}
        disks = dict(self.disks) | {disk_id: (*self.disks.get(disk_id, ()), layer) for disk_id, layer in new.items()}
        return Chains(manifest.cycle, disks)

    def merged(self, disk_id: str, group: tuple[str, ...], into: LayerRef) -> "Chains":
        """After the layers of `group` became one; equal to itself when they are not there side by side."""
        layers = self.disks.get(disk_id, ())
        names = [layer.file for layer in layers]
        for start in range(len(names) - len(group) + 1):
            if tuple(names[start : start + len(group)]) == group:
                changed = (*layers[:start], into, *layers[start + len(group) :])
                return replace(self, disks=dict(self.disks) | {disk_id: changed})
        return self

    def trimmed(self, manifests: Iterable[Manifest]) -> "Chains":
        """Without the layers of removed disks that no point stands on any more.

        The newest point keeps a disk's last chain whole, as the cycle after it stands on that.
        """
        needed: dict[str, set[int]] = {}
        for manifest in manifests:
            for disk in manifest.disks:
                needed.setdefault(disk.geometry.id, set()).add(disk.at)
        kept: dict[str, tuple[LayerRef, ...]] = {}
        for disk_id, chain in self.each():
            covering = [self.covering(disk_id, at) for at in needed.get(disk_id, ())]
            end = max((chain.index(layer) + 1 for layer in covering if layer in chain), default=0)
            if end:
                kept[disk_id] = (*kept.get(disk_id, ()), *chain[:end])
        return replace(self, disks=kept)

    def without(self, after: int) -> "Chains":
        """As they were before the cycles after this one, as far as their layers were not merged with older ones."""
        kept = {disk: tuple(ref for ref in layers if ref.cycle <= after) for disk, layers in self.disks.items()}
        return Chains(after, {disk: layers for disk, layers in kept.items() if layers})

    def found(self, directory: Path, vm_id: str, cycle: int) -> "Chains":
        """With the layers of a newer cycle whose manifest is lost, as their files say. Raises ReplicaUnreadable."""
        disks = dict(self.disks)
        for layer in sorted(directory.glob(f"*/{layer_name(cycle)}")):
            try:
                disks[layer.parent.name] = (*disks.get(layer.parent.name, ()), stand_in(layer))
            except LayerDamaged as error:
                raise ReplicaUnreadable(vm_id, str(error)) from error
        return Chains(cycle, disks)

    def document(self) -> dict[str, object]:
        disks = {disk_id: [layer.to_json() for layer in layers] for disk_id, layers in self.disks.items()}
        return {"format": FORMAT, "through": self.through, "disks": disks}

    @classmethod
    def decode(cls, document: Mapping[str, Any]) -> Self:
        """Raises ValueError."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"has format {document['format']}")
            disks = {
                rules.check_id("disk", disk_id): tuple(map(LayerRef.from_json, layers))
                for disk_id, layers in document["disks"].items()
            }
            chains = cls(int(document["through"]), disks)
            copies.as_written(document, chains.document())
            if any(not layers or layers[0].backing is not None for layers in disks.values()):
                raise ValueError("names a disk whose first layer stands on another")
            return chains  # noqa: TRY300  # what as_written raises is meant as well
        except (KeyError, TypeError, AttributeError, BadName) as error:
            raise ValueError(f"is malformed: {error}") from error


def read(directory: Path) -> tuple[Chains | None, str]:
    """The document, if there is one; and, when both copies are damaged, in what way. Raises OSError."""
    documents, problems = copies.read(directory / CHAINS, Chains.decode)
    if not documents:
        return None, "; ".join(problems)
    if problems or len(documents) == 1 or documents[0] != documents[1]:
        store(directory, documents[0])
    return documents[0], ""


def load(
    chains: Chains, directory: Path, vm_id: str, manifests: Mapping[int, Manifest], lost: Collection[int]
) -> Chains:
    """`chains` with the layers of later cycles; of `lost` ones the manifests are unreadable. Raises ReplicaUnreadable.

    Layers of a lost cycle that later ones stand on are known by their files.
    """
    newest = max(manifests, default=0)
    if chains.through > newest:
        if chains.through not in lost:
            raise ReplicaUnreadable(vm_id, f"the manifest of cycle {chains.through} is missing")
        chains = chains.without(newest)
        disks = manifests[newest].disks if newest else ()
        if not all(chains.covering(disk.geometry.id, disk.at) for disk in disks):
            problem = f"the manifest of cycle {chains.through} is lost, and others stand on its layers"
            raise ReplicaUnreadable(vm_id, problem)
    for cycle in sorted({*manifests, *lost}):
        if chains.through < cycle <= newest:
            chains = chains.committed(manifests[cycle]) if cycle in manifests else chains.found(directory, vm_id, cycle)
    return chains


def store(directory: Path, chains: Chains) -> None:
    """Write them down durably. Raises OSError."""
    copies.write(directory / CHAINS, chains.document())
