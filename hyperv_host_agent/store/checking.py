"""What opening a replica makes sure of, and what it clears away once it is sure."""

import re
from collections.abc import Mapping
from pathlib import Path

from hyperv_host_agent.store import files
from hyperv_host_agent.store.base import ReplicaUnreadable
from hyperv_host_agent.store.chains import CHAINS, Chains
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.damage import Damage
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.side_file import side_path
from hyperv_host_agent.store.manifests import POINTS, LayerRef, Manifest
from hyperv_host_agent.store.merging import INTENT, Intent

_OURS = re.compile(r"([0-9]{6,12})\.(?:qcow2|fp|fp\.copy)")
_VIEW = re.compile(r"[0-9]{6,12}\.view\.qcow2")
_TEMPORARY = re.compile(
    r"[0-9]{6,12}\.(?:(?:view\.)?qcow2\.partial|qcow2\.merged|fp\.merged|fp\.mended|fp\.copy\.tmp|fp\.seed|json(?:\.copy)?\.tmp)"
    r"|[a-z]+\.json(?:\.copy)?\.tmp"
)


def read_intent(directory: Path, vm_id: str) -> Intent | None:
    """The merge that was being put in place when the power went. Raises ReplicaUnreadable."""
    path = directory / INTENT
    if not path.exists():
        return None
    try:
        return Intent.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ReplicaUnreadable(vm_id, f"{INTENT} {error}") from error


def served(chains: Chains, manifest: Manifest) -> bool:
    """Whether the layers still hold what the point needs of every disk; not so: its removal was cut short."""
    for disk in manifest.disks:
        layer = chains.covering(disk.geometry.id, disk.at)
        if layer is None or (disk.at != layer.cycle and disk.at not in layer.points):
            return False
    return True


def check_chains(directory: Path, vm_id: str, chains: Chains, manifests: Mapping[int, Manifest]) -> list[Damage]:
    """That the documents fit together, so no chain is a circle. Raises ReplicaUnreadable.

    And which layers are not there, of the size they should have, on the layer they should stand on: a scrub may mend
    them, and nothing has to wait for that.
    """
    damaged: list[Damage] = []
    for disk_id, layers in chains.disks.items():
        cycles = [layer.cycle for layer in layers]
        problem = f"its layers {cycles} are out of order" if cycles != sorted(set(cycles)) else None
        for lower, layer in zip((None, *layers), layers, strict=False):
            if layer.backing is not None and (lower is None or layer.backing != lower.file):
                problem = problem or f"{layer.file} stands on {layer.backing}"
            flaw = _check_layer(directory / disk_id / layer.file, layer)
            if flaw:
                damaged.append(Damage(disk_id, f"{disk_id}/{layer.file}", flaw))
        if problem:
            raise ReplicaUnreadable(vm_id, f"disk {disk_id}: {problem}")
    for manifest in manifests.values():
        for disk in manifest.disks:
            covering = chains.covering(disk.geometry.id, disk.at)
            found = (
                (covering is None and "has no layers")
                or (covering and disk.at not in {covering.cycle, *covering.points} and f"{covering.file} lacks it")
                or (disk.at > manifest.cycle and f"is of the later cycle {disk.at}")
                or (
                    covering
                    and disk.at == covering.cycle
                    and covering.size != disk.geometry.size
                    and f"has {disk.geometry.size} bytes, its newest layer {covering.size}"
                )
            )
            if found:
                raise ReplicaUnreadable(vm_id, f"point {manifest.cycle}, disk {disk.geometry.id}: {found}")
    return damaged


def collect(directory: Path, chains: Chains, *, views: set[Path], partials: set[Path], up_to: int | None) -> None:
    """Remove layers and side files that no chain names, of cycles `up_to` or, None, of all and what was temporary.

    And views but those in `views`. Files that do not look like ours stay. Raises OSError.
    """
    named = {
        path
        for disk_id, layers in chains.disks.items()
        for layer in layers
        for path in _files(directory / disk_id / layer.file)
    }
    for folder in [directory, *(path for path in directory.iterdir() if path.is_dir())]:
        for path in list(folder.iterdir()):
            ours = _OURS.fullmatch(path.name) if folder not in {directory, directory / POINTS} else None
            old = ours is not None and (up_to is None or int(ours[1]) <= up_to)
            temporary = up_to is None and _TEMPORARY.fullmatch(path.name) is not None
            view = up_to is None and _VIEW.fullmatch(path.name) is not None
            if (old and path not in named) or (temporary and path not in partials) or (view and path not in views):
                files.remove_file(path)


def _files(layer: Path) -> tuple[Path, ...]:
    return layer, side_path(layer), copy_path(side_path(layer))


def _check_layer(path: Path, layer: LayerRef) -> str | None:
    try:
        opened = Layer(path)
    except LayerDamaged as error:
        return str(error)
    header = opened.header
    opened.close()
    if header.size != layer.size:
        return f"{path.name} has a disk of {header.size} bytes, {CHAINS} says {layer.size}"
    if header.backing != layer.backing:
        return f"{path.name} stands on {header.backing}, {CHAINS} says {layer.backing}"
    if not side_path(path).is_file():
        return f"{side_path(path).name} is missing"
    return None
