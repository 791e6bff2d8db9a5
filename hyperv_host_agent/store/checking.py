"""What opening a replica makes sure of, and what it clears away once it is sure."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hyperv_host_agent.store import files
from hyperv_host_agent.store.base import StoreDamaged
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.side_file import side_path
from hyperv_host_agent.store.manifests import POINTS, DiskRef, LayerRef, Manifest, layer_name
from hyperv_host_agent.store.merging import INTENT, Intent

MAX_DEPTH: Final = 200  # libvirt refuses longer chains
_OURS = re.compile(r"([0-9]{6,12})\.(?:qcow2|fp)")
_TEMPORARY = re.compile(
    r"[0-9]{6,12}\.(?:qcow2\.partial|qcow2\.merged|fp\.merged|fp\.seed|json\.tmp)|[a-z]+\.json\.tmp"
)


def read_intent(directory: Path, vm_id: str) -> Intent | None:
    """The merge that was being put in place when the power went. Raises StoreDamaged."""
    path = directory / INTENT
    if not path.exists():
        return None
    try:
        return Intent.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreDamaged(vm_id, f"{INTENT} {error}") from error


def check_chains(directory: Path, vm_id: str, manifests: Mapping[int, Manifest]) -> None:
    """That every layer a manifest names is there, of the size it says, on the layer it says. Raises StoreDamaged.

    So no chain can be a circle, and none is longer than hypervisors take.
    """
    seen: dict[tuple[str, str], tuple[LayerRef, str | None]] = {}
    for manifest in manifests.values():
        for disk in manifest.disks:
            problem = _shape(disk)
            if problem:
                raise StoreDamaged(vm_id, f"point {manifest.cycle}, disk {disk.geometry.id}: {problem}")
            backing = None
            for layer in disk.layers:
                key = (disk.geometry.id, layer.file)
                if seen.setdefault(key, (layer, backing)) != (layer, backing):
                    raise StoreDamaged(vm_id, f"point {manifest.cycle} and another differ about {'/'.join(key)}")
                backing = layer.file
    for (disk_id, file), (layer, backing) in seen.items():
        problem = _check_layer(directory / disk_id / file, layer, backing)
        if problem:
            raise StoreDamaged(vm_id, f"disk {disk_id}: {problem}")


def collect(directory: Path, manifests: Iterable[Manifest], *, partials: set[Path], up_to: int | None) -> None:
    """Remove layers and side files that no manifest names, of cycles `up_to` or, None, of all and what was temporary.

    Files that do not look like ours stay. Raises OSError.
    """
    named = {
        path
        for manifest in manifests
        for disk in manifest.disks
        for layer in disk.layers
        for path in _files(directory / disk.geometry.id / layer.file)
    }
    for folder in [path for path in directory.iterdir() if path.is_dir()]:
        for path in list(folder.iterdir()):
            ours = _OURS.fullmatch(path.name) if folder.name != POINTS else None
            old = ours is not None and (up_to is None or int(ours[1]) <= up_to)
            temporary = up_to is None and _TEMPORARY.fullmatch(path.name) is not None
            if (old and path not in named) or (temporary and path not in partials):
                files.remove_file(path)


def _files(layer: Path) -> tuple[Path, Path]:
    return layer, side_path(layer)


def _shape(disk: DiskRef) -> str | None:
    names = [layer.file for layer in disk.layers]
    if not names:
        return "has no layers"
    if len(names) > MAX_DEPTH:
        return f"has {len(names)} layers"
    cycles = [layer.cycle for layer in disk.layers]
    if cycles != sorted(set(cycles)) or names != list(map(layer_name, cycles)):
        return f"its layers {', '.join(names)} are out of order"
    if disk.layers[-1].size != disk.geometry.size:
        return f"has {disk.geometry.size} bytes, its newest layer {disk.layers[-1].size}"
    return None


def _check_layer(path: Path, layer: LayerRef, backing: str | None) -> str | None:
    try:
        opened = Layer(path)
    except LayerDamaged as error:
        return str(error)
    header = opened.header
    opened.close()
    if header.size != layer.size:
        return f"{path.name} has a disk of {header.size} bytes, its manifest says {layer.size}"
    if header.backing != backing:
        return f"{path.name} stands on {header.backing}, its manifest says {backing}"
    if not side_path(path).is_file():
        return f"{side_path(path).name} is missing"
    return None
