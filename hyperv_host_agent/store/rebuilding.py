"""The chains of a replica made anew from its manifests and layer files, when both copies of their document are lost.

A manifest names what its cycle brought; a layer's header says what the layer stands on; a side file says what the layer
holds. A side file is believed when it is the one a manifest names, equals its second copy, or makes the very tables
that the layer has.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from hyperv_host_agent.store import merging
from hyperv_host_agent.store.base import ReplicaUnreadable
from hyperv_host_agent.store.chains import CHAINS, Chains
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.side_file import side_path
from hyperv_host_agent.store.layer_check import LayerCheck, stand_in
from hyperv_host_agent.store.manifests import LayerRef, Manifest, layer_cycle

_LAYERS: Final = "[0-9]*.qcow2"


def rebuilt(
    directory: Path, vm_id: str, manifests: Mapping[int, Manifest], intent: merging.Intent | None, reason: str
) -> Chains:
    """Every point of `manifests` stands on it. `intent`: a merge whose files were being put in place.

    `reason`: why the document is of no use. Raises ReplicaUnreadable when the files do not tell, OSError.
    """
    if not manifests:
        raise ReplicaUnreadable(vm_id, reason)
    if intent:
        merging.place(directory, intent)
    named: set[tuple[str, str, bytes]] = set()
    needed: dict[str, set[int]] = {}
    for manifest in manifests.values():
        for disk in manifest.disks:
            needed.setdefault(disk.geometry.id, set()).add(disk.at)
            if disk.layer:
                named.add((disk.geometry.id, disk.layer.file, disk.layer.digest))
    newest = max(manifests)
    chains: dict[str, tuple[LayerRef, ...]] = {}
    for disk_id, cycles in needed.items():
        try:
            stacks = _stacks(directory / disk_id, sorted(cycles), newest)
            chains[disk_id] = tuple(_refs(directory / disk_id, disk_id, stacks, sorted(cycles), named))
        except LayerDamaged as error:
            raise ReplicaUnreadable(vm_id, f"{reason}, and {CHAINS} cannot be made anew: {error}") from error
    return Chains(newest, chains)


def is_whole(chains: Chains, manifests: Iterable[Manifest]) -> bool:
    """Whether every point has its layers in it, and every layer stands on the one below it."""
    for layers in chains.disks.values():
        for lower, layer in zip((None, *layers), layers, strict=False):
            if layer.backing is not None and (lower is None or layer.backing != lower.file):
                return False
    for manifest in manifests:
        for disk in manifest.disks:
            holding = chains.covering(disk.geometry.id, disk.at)
            if holding is None or disk.at not in {holding.cycle, *holding.points}:
                return False
    return True


def _stacks(folder: Path, needed: list[int], newest: int) -> list[list[str]]:
    """The files of each chain of a disk, oldest first; together they hold the cycles `needed`. Raises LayerDamaged."""
    backing: dict[str, str | None] = {}
    problem = LayerDamaged(folder / f"{needed[-1]:06}.qcow2", "is missing, and nothing stands in for it")
    for path in folder.glob(_LAYERS):
        if path.name.count(".") == 1 and layer_cycle(path.name) <= newest:
            try:
                with closing(Layer(path)) as opened:
                    backing[path.name] = opened.header.backing
            except LayerDamaged as error:
                problem = error
    stacks: list[list[str]] = []
    left, bound = needed, newest + 1
    while left:
        tops = sorted(name for name in backing if left[-1] <= layer_cycle(name) < bound)
        found = next((stack for name in tops if (stack := _stack(name, backing))), None)
        if found is None and not stacks:
            raise problem
        if found is None:
            left = left[:-1]  # it lies inside the layer above
            continue
        stacks.insert(0, found)
        bound = layer_cycle(found[0])
        left = left[: bisect_left(left, bound)]
    return stacks


def _stack(name: str, backing: Mapping[str, str | None]) -> list[str]:
    """The layer and all it stands on, oldest first; empty: one of them is not there."""
    stack = [name]
    while (lower := backing[stack[0]]) is not None:
        if lower not in backing or layer_cycle(lower) >= layer_cycle(stack[0]):
            return []
        stack.insert(0, lower)
    return stack


def _refs(
    folder: Path,
    disk_id: str,
    stacks: Iterable[Iterable[str]],
    needed: list[int],
    named: Collection[tuple[str, str, bytes]],
) -> Iterable[LayerRef]:
    below = 0
    for stack in stacks:
        for name in stack:
            found = _told(folder / name)
            if (disk_id, name, found.digest) not in named and not _is_sure(folder / name, found):
                raise LayerDamaged(side_path(folder / name), "may not be what was written")
            inside = tuple(cycle for cycle in needed if below < cycle < found.cycle)
            yield replace(found, points=inside)
            below = found.cycle


def _told(layer: Path) -> LayerRef:
    """What the layer and its side file, or that one's second copy, say. Raises LayerDamaged."""
    side = side_path(layer)
    found: list[LayerRef] = []
    problem: LayerDamaged | None = None
    for one in (side, copy_path(side)):
        try:
            found.append(stand_in(layer, one))
        except LayerDamaged as error:
            problem = problem or error
    if len(found) == 2 and found[0].digest != found[1].digest and not _fits(layer, found[0], side):
        return found[1]
    if found:
        return found[0]
    raise problem or LayerDamaged(side, "is missing")


def _is_sure(layer: Path, ref: LayerRef) -> bool:
    side = side_path(layer)
    both = (side, copy_path(side))
    digests = []
    for one in both:
        with suppress(LayerDamaged):
            digests.append(stand_in(layer, one).digest)
    if digests == [ref.digest] * 2:
        return True
    return any(_fits(layer, ref, one) for one in both)


def _fits(layer: Path, ref: LayerRef, side: Path) -> bool:
    """Whether this side file is the one that `ref` was told by, and makes the layer's tables."""
    try:
        if stand_in(layer, side).digest != ref.digest:
            return False
        with LayerCheck(layer, ref, side) as check:
            return check.tables_problem() is None
    except LayerDamaged:
        return False
