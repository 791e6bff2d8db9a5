"""Points in use: pinned, and with a view over the pack where a point lies inside one."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from hyperv_host_agent.store import files, views
from hyperv_host_agent.store.base import AttachedDisk, StoreDamaged
from hyperv_host_agent.store.catalog import Catalog
from hyperv_host_agent.store.manifests import DiskRef

MAX_DEPTH: Final = 200  # libvirt refuses longer chains


class Attachments:
    """OSErrors of writing pass through."""

    def __init__(self, catalog: Catalog, room: Callable[[int], None]) -> None:
        """`room` raises NoSpace unless that many bytes may be written."""
        self._catalog, self._room = catalog, room
        self._building = threading.Lock()
        # What is found at the start was finished under a pin that is still there, so its pack was not touched since.
        self._views = {(disk.geometry.id, disk.at) for disk in self._inside() if self._is_sound(disk)}

    def views(self) -> set[Path]:
        """Files that must stay."""
        return {self._catalog.directory / disk_id / views.view_name(at) for disk_id, at in set(self._views)}

    def attach(self, cycle: int, owner: str) -> tuple[AttachedDisk, ...]:
        """Raises PointMissing, NoSpace, LayerDamaged; then the point is pinned no more than before."""
        catalog = self._catalog
        with self._building:
            with catalog.lock:
                manifest = catalog.point(cycle)
                catalog.publish()
                fresh = owner not in catalog.pins.owners(cycle)
                catalog.pins.add(owner, cycle)
            with ExitStack() as unless_whole:
                if fresh:
                    unless_whole.callback(self._take_back, cycle, owner)
                attached = tuple(self._attached(disk) for disk in manifest.disks)
                unless_whole.pop_all()
            return attached

    def _take_back(self, cycle: int, owner: str) -> None:
        with suppress(OSError):
            self._catalog.pins.drop(owner, cycle)
            self._tidy()

    def detach(self, owner: str) -> None:
        with self._building:
            with self._catalog.lock:
                self._catalog.pins.remove(owner)
            self._tidy()

    def _attached(self, disk: DiskRef) -> AttachedDisk:
        geometry, stack = disk.geometry, self._catalog.stack(disk)
        directory = self._catalog.directory / geometry.id
        layers = [directory / layer.file for layer in stack]
        if disk.at != stack[-1].cycle:
            if (geometry.id, disk.at) not in self._views:
                views.build(directory, stack, disk.at, geometry.size, self._room)
                self._views.add((geometry.id, disk.at))
            layers.append(directory / views.view_name(disk.at))
        if len(layers) > MAX_DEPTH:
            problem = f"{len(layers)} layers of disk {geometry.id} wait to be merged, more than a hypervisor opens"
            raise StoreDamaged(self._catalog.vm_id, problem)
        return AttachedDisk(id=geometry.id, name=geometry.name, size=geometry.size, layers=tuple(layers))

    def _inside(self) -> list[DiskRef]:
        """Disks of pinned points that lie inside packs."""
        catalog = self._catalog
        pinned = [catalog.manifests[cycle] for cycle in catalog.pins.cycles() if cycle in catalog.manifests]
        return [disk for point in pinned for disk in point.disks if catalog.stack(disk)[-1].cycle != disk.at]

    def _is_sound(self, disk: DiskRef) -> bool:
        directory, pack = self._catalog.directory / disk.geometry.id, self._catalog.stack(disk)[-1]
        return views.is_sound(directory, pack, disk.at, disk.geometry.size)

    def _tidy(self) -> None:
        """Remove the views that nobody uses any more, before their packs may change."""
        with self._catalog.lock:
            used = {(disk.geometry.id, disk.at) for disk in self._inside()}
        for disk_id, at in self._views - used:
            files.remove_durably(self._catalog.directory / disk_id / views.view_name(at))
            self._views.discard((disk_id, at))
