"""What a replica holds, as its documents say: points, chains, pins. Every change is durable before it is seen here."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperv_host_agent.store import chains, checking, copies, files, manifests, merging, rebuilding, repair, seeding
from hyperv_host_agent.store.base import PointInfo, PointMissing, ReplicaUnreadable, WriteFailed
from hyperv_host_agent.store.damage import Damage
from hyperv_host_agent.store.manifests import POINTS, DiskRef, LayerRef, Manifest
from hyperv_host_agent.store.pins import PINS, Pins


class Catalog:
    """`lock` guards everything in it and the names of files. OSErrors of writing pass through."""

    def __init__(self, directory: Path, vm_id: str) -> None:
        """Read it, finish an interrupted merge. Raises ReplicaUnreadable, OSError."""
        self.directory, self.vm_id = directory, vm_id
        self.lock = threading.RLock()
        self._copied: set[int] = set()  # points that have their second copy
        self._sides_copied: set[tuple[str, bytes]] = set()  # disk, digest
        self._limbo: Manifest | None = None  # its commit failed so that nobody knows what a power loss would show
        self._unpublished = checking.read_intent(directory, vm_id)
        for name in (POINTS, PINS):
            if not (directory / name).is_dir():
                raise ReplicaUnreadable(vm_id, f"{name}/ is missing")
        self.manifests, lost = manifests.load(directory, vm_id)
        self.damaged = [Damage("", f"{POINTS}/{cycle:06}.json", problem) for cycle, problem in lost.items()]
        self.rebuilt = False  # the chains were made anew from the files
        self.chains = self._load(lost)
        self._aside = set(manifests.set_aside(directory))  # points that nothing describes any more
        path = directory / chains.CHAINS
        self._chains_data = path.read_bytes() if path.exists() else b""
        self._written = 0  # the newest cycle whose layers the document of the chains is known to name
        if self.rebuilt or (lost and self.manifests):
            self._store(self.chains)  # also layers whose manifest is gone
        newest = self.newest()
        if newest:
            # What is seen here is told to the source as committed, so it must be what a power loss leaves. A sync alone
            # would prove nothing if one failed before: the name is written anew.
            files.replace_file(manifests.point_path(directory, newest.cycle), newest.encode())
        self.publish()
        self.seeded = seeding.read(directory, self.manifests)
        for cycle in [cycle for cycle, found in self.manifests.items() if not checking.served(self.chains, found)]:
            if newest and cycle != newest.cycle:  # its removal was cut short
                copies.remove(manifests.point_path(directory, cycle))
                del self.manifests[cycle]
        self.pins = Pins(directory, self.manifests)
        self.damaged += checking.check_chains(directory, vm_id, self.chains, self.manifests)

    def _load(self, lost: Mapping[int, str]) -> chains.Chains:
        held, problem = chains.read(self.directory)
        if not problem:
            found = chains.load(held or chains.Chains(), self.directory, self.vm_id, self.manifests, lost)
            if held or rebuilding.is_whole(found, self.manifests.values()):
                return found
        self.rebuilt = True
        reason = problem or f"{chains.CHAINS} is missing"
        return rebuilding.rebuilt(self.directory, self.vm_id, self.manifests, self._unpublished, reason)

    def copy(self) -> None:
        """Give what was committed its second copies: not on the way of a commit, but before a merge. Raises OSError."""
        with self.lock:
            new = [cycle for cycle in self.manifests if cycle not in self._copied]
            layers = [(disk, ref) for disk, refs in self.chains.disks.items() for ref in refs]
            for cycle in new:
                path = copies.copy_path(manifests.point_path(self.directory, cycle))
                if not path.exists():
                    files.replace_file(path, self.manifests[cycle].encode())
                self._copied.add(cycle)
        for disk, ref in layers:
            if (disk, ref.digest) not in self._sides_copied:
                repair.copy_side(self.directory / disk / ref.file, ref)
        self._sides_copied = {(disk, ref.digest) for disk, ref in layers}

    def documents(self) -> list[copies.Document]:
        """Every document of the replica that this owns. Under the lock."""
        found = [
            copies.Document(manifests.point_path(self.directory, cycle), manifest.encode(), (cycle,))
            for cycle, manifest in self.manifests.items()
        ]
        aside = manifests.set_aside(self.directory)
        found += [copies.Document(path, None, (cycle,)) for cycle, path in aside.items()]
        if self._chains_data:
            found.append(copies.Document(self.directory / chains.CHAINS, self._chains_data, tuple(self.manifests)))
        if self.seeded:
            seed = files.seal(self.seeded.document())
            found.append(copies.Document(self.directory / seeding.SEED, seed, tuple(self.manifests)))
        return found + self.pins.documents()

    def lost_points(self) -> list[PointInfo]:
        """Under the lock."""
        told: list[PointInfo] = []
        for lost in sorted(self._aside - set(self.manifests)):
            after = next((found for cycle, found in self.manifests.items() if cycle > lost), None)
            if after is None:
                continue  # its number comes again
            before = [found.instant for cycle, found in self.manifests.items() if cycle < lost]
            instant = (before[-1] + after.instant) / 2 if before else after.instant
            told.append(
                PointInfo(
                    *(lost, b"", 0, instant, after.consistency, after.term, b"", (), 0, 0),
                    damaged=1,
                    complete=False,
                    lost=True,
                )
            )
        return told

    def newest(self) -> Manifest | None:
        return self.manifests[max(self.manifests)] if self.manifests else None

    def point(self, cycle: int) -> Manifest:
        """Raises PointMissing."""
        if cycle not in self.manifests:
            raise PointMissing(cycle)
        return self.manifests[cycle]

    def placeholder(self) -> Manifest | None:
        """The point whose content is still to come on media."""
        return seeding.awaited(self.manifests.values(), self.seeded)

    def top(self, disk_id: str) -> LayerRef | None:
        """The layer that the next one of a disk stands on."""
        newest = self.newest()
        disk = newest.disk(disk_id) if newest else None
        return self.chains.covering(disk_id, disk.at) if disk else None

    def stack(self, disk: DiskRef) -> tuple[LayerRef, ...]:
        """The layers a disk stands on at a point, oldest first; `disk.at` may lie inside the newest of them."""
        return self.chains.stack(disk.geometry.id, disk.at)

    def sizes(self, disk_id: str) -> dict[int, int]:
        """The disk's bytes at every cycle whose content a point needs."""
        disks = (manifest.disk(disk_id) for manifest in self.manifests.values())
        return {disk.at: disk.geometry.size for disk in disks if disk}

    def frozen(self, disk_id: str) -> set[str]:
        """Layer files that must stay as they are: a point in use stands on them, or a seed is to take their place."""
        cycles = set(self.pins.cycles())
        if placeholder := self.placeholder():
            cycles.add(placeholder.cycle)
        pinned = [self.manifests[cycle].disk(disk_id) for cycle in cycles if cycle in self.manifests]
        return {layer.file for disk in pinned if disk for layer in self.stack(disk)}

    def commit(self, manifest: Manifest) -> None:
        """Publish a cycle with one rename. Raises WriteFailed when it may or may not last: then it counts as not done.

        Its layers have to stay then: a power loss may bring the manifest back, until `settle`.
        """
        with self.lock:
            path = manifests.point_path(self.directory, manifest.cycle)
            temporary = path.with_name(path.name + ".tmp")
            files.write_file(temporary, manifest.encode())
            temporary.rename(path)
            try:
                files.sync_directory(path.parent)
            except OSError as error:
                self._limbo = manifest
                raise WriteFailed(self.vm_id, f"a commit may not be durable: {error.strerror}") from error
            self.manifests[manifest.cycle] = manifest
            self.chains = self.chains.committed(manifest)

    @property
    def in_limbo(self) -> bool:
        return self._limbo is not None

    def settle(self) -> None:
        """Take back, durably, a commit of which nobody knows whether it lasts. Raises OSError: still nobody knows."""
        with self.lock:
            if self._limbo is None:
                return
            path = manifests.point_path(self.directory, self._limbo.cycle)
            # A name that changes anew, so that this sync has something to say.
            temporary = path.with_name(path.name + ".tmp")
            files.write_file(temporary, self._limbo.encode())
            temporary.rename(path)
            path.unlink()
            files.sync_directory(path.parent)
            self._limbo = None

    def retire(self, keep: Sequence[int]) -> list[int]:
        """Points that nobody needs stop being points; what they stood on is for a merge to give back."""
        with self.lock:
            stay = {*keep, *self.pins.cycles(), max(self.manifests, default=0)}
            if placeholder := self.placeholder():
                stay.add(placeholder.cycle)
            removed = [cycle for cycle in self.manifests if cycle not in stay]
            for cycle, path in manifests.set_aside(self.directory).items() if self._aside else ():
                if cycle in self.manifests or (cycle not in keep and cycle < max(self.manifests, default=0)):
                    files.remove_file(path)
                    self._aside.discard(cycle)
            if not removed:
                return []
            left = [manifest for cycle, manifest in self.manifests.items() if cycle in stay]
            trimmed = self.chains.trimmed(left)
            if max(removed) > self._written:
                self._store(self.chains)  # they name layers that others stand on
            for cycle in removed:
                copies.remove(manifests.point_path(self.directory, cycle))
                del self.manifests[cycle]
            files.sync_directory(self.directory / POINTS)
            if trimmed != self.chains:
                self._store(trimmed)
            return removed

    def publish(self, intent: merging.Intent | None = None) -> None:
        """Put a finished layer in place; first the one, if any, whose turn failed half way."""
        with self.lock:
            for waiting in (self._unpublished, intent):
                if waiting:
                    self._unpublished = waiting
                    self.chains = merging.publish(self.directory, waiting, self.chains)
                    self._stored()
                    self._unpublished = None

    def collect(self, *, views: set[Path], partials: set[Path], everything: bool) -> None:
        """Remove the files that nothing names."""
        with self.lock:
            newest = self.newest()
            up_to = newest.cycle if newest and not everything else None
            checking.collect(self.directory, self.chains, views=views, partials=partials, up_to=up_to)

    def _store(self, changed: chains.Chains) -> None:
        chains.store(self.directory, changed)
        self.chains = changed
        self._stored()

    def _stored(self) -> None:
        self._chains_data, self._written = files.seal(self.chains.document()), self.chains.through
