"""The command `seed_export` at a source host: rules first, then the disks into parts, then the manifest."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog
from cryptography import x509

from hyperv_host_agent import blocking
from hyperv_host_agent.changes.base import ChangeSource
from hyperv_host_agent.commands import Call
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.packing import Packed
from hyperv_host_agent.reading import Reader
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.seeds import exporting, manifest
from hyperv_host_agent.seeds.exporting import PROGRESS, SeedWriteFailed, SeedWriter, Unit
from hyperv_host_agent.seeds.manifest import Manifest
from hyperv_host_agent.seeds.parts import PART_BYTES
from hyperv_host_agent.seeds.paths import PathRules, SeedPathTaken
from hyperv_host_agent.sources import Ongoing, Sources
from hyperv_host_agent.store.base import SeedNotAwaited
from twinsite import keys, signatures, units
from twinsite.api.types.v1.commands_pb2 import SeedExport
from twinsite.clock import Clock
from twinsite.errors import Aborted, InvalidInput, Precondition
from twinsite.extents import clusters

_log = structlog.get_logger()
_WAIT_SECONDS: Final = 60.0  # for the replication to run and the target to answer, after a start
_PLACE_SECONDS: Final = 5.0  # more, for a placeholder that is just on its way
_LOOK_SECONDS: Final = 0.2
_AHEAD: Final = 2  # units on their way: few, so that cycles find the compressors free
_LEVEL: Final = 1  # of zstd: a medium is rarely faster
Answer = TypeVar("Answer")


class NotReplicatedHere(Precondition):
    public = "VM {error.vm_id} is not replicated from this host"
    still_works = "nothing was written"
    next_step = "twinsite vm protect --offline, then export"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class TargetNotAsked(Precondition):
    public = "it is not known which seed the target of VM {error.vm_id} waits for: it has not answered yet"
    still_works = "nothing was written"
    next_step = "twinsite vm show says why replication does not run; export once it does"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class ReplicationEnded(Aborted):
    public = "the replication of VM {error.vm_id} ended while its seed was written"
    still_works = "the VM was not touched; what was written cannot be imported and may be removed"
    next_step = "protect the VM again and export a new seed"

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id


class BadTargetCertificate(InvalidInput):
    public = "the certificate that the seed is to be encrypted to is not that of the VM's target host: {error.why}"
    still_works = "nothing was written"
    next_step = "look at both hosts with twinsite host list, then export again"

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True)
class Exports:
    sources: Sources
    membership: Membership
    rules: PathRules
    clock: Clock
    part_bytes: int = PART_BYTES

    async def seed_export(self, call: Call) -> None:
        """Repeatable: goes on after the last complete part; a seed that is complete is only checked."""
        await (await self._begin(call, call.command.seed_export)).run()

    async def check_seed_export(self, call: Call) -> None:
        """Whether `seed_export` could be done, with the same checks; writes nothing."""
        await (await self._begin(call, call.command.check_seed_export)).check()

    async def _begin(self, call: Call, order: SeedExport) -> "_Export":
        path = Path(order.path)
        host = self.membership.host_name
        await blocking.finish(self.rules.check_export, path, host, list(order.hypervisor_addresses))
        return _Export(self, call, order, await self._awaiting(order.vm_id))

    async def ongoing(self, vm_id: str) -> Ongoing:
        """The replication, once it runs and the target has answered. Raises NotReplicatedHere, TargetNotAsked."""
        for _ in range(int(_WAIT_SECONDS / _LOOK_SECONDS)):
            if not self.sources.assigned(vm_id):
                raise NotReplicatedHere(vm_id)
            ongoing = self.sources.ongoing(vm_id)
            if ongoing is not None and ongoing.seen.asked:
                return ongoing
            await self.clock.sleep(_LOOK_SECONDS)
        raise TargetNotAsked(vm_id)

    async def _awaiting(self, vm_id: str) -> Ongoing:
        """Raises SeedNotAwaited. The first answer may be from before the placeholder came."""
        for _ in range(int(_PLACE_SECONDS / _LOOK_SECONDS)):
            ongoing = await self.ongoing(vm_id)
            if ongoing.seen.seed:
                return ongoing
            await self.clock.sleep(_LOOK_SECONDS)
        raise SeedNotAwaited(vm_id)


class _Export:
    """One execution of the command."""

    def __init__(self, means: Exports, call: Call, order: SeedExport, ongoing: Ongoing) -> None:
        self._means = means
        self._call = call
        self._order = order
        self._vm_id = order.vm_id
        self._name = ongoing.vm_name
        self._seed = ongoing.seen.seed
        self._target = ongoing.target_host
        self._compression = ongoing.reader.compression
        self._path = Path(order.path)
        self._folder = self._path / manifest.folder_name(self._vm_id, self._seed)
        self._percent = -1

    async def check(self) -> None:
        self._target_certificate()
        self._call.result.seed_id = self._seed.hex()
        if await blocking.finish(self._written_before):
            self._call.result.note = f"{self._folder} is complete already; all its parts are whole"
            return
        reader, _, progress = await self._progress()
        with self._writing():
            kept = await blocking.finish(exporting.finished, self._folder, progress)
        needed = await self._needed(reader.source, progress.disks, sum(part.size for part in progress.parts[:kept]))
        await blocking.finish(self._means.rules.check_room, self._path, needed)
        free = await blocking.finish(self._means.rules.free, self._path)
        told = f"about {units.size(needed)} would be written to {self._folder}, {units.size(free)} are free there"
        there = f"; it goes on after the {units.count(kept, 'part')} that an earlier export wrote" if kept else ""
        self._call.result.note = told + there

    async def run(self) -> None:
        target = self._target_certificate()
        self._call.result.seed_id = self._seed.hex()
        if await blocking.finish(self._written_before):
            self._call.result.note = f"{self._folder} was complete already; all its parts are whole"
            return
        reader, file, progress = await self._progress()
        writer = SeedWriter(self._folder, file, progress, self._means.part_bytes)
        try:
            with self._writing():
                await blocking.finish((self._folder / manifest.FILE).unlink, missing_ok=True)
                await blocking.finish(self._folder.mkdir, exist_ok=True)
                await blocking.finish(writer.keep_finished)
            needed = await self._needed(reader.source, progress.disks, sum(part.size for part in progress.parts))
            await blocking.finish(self._means.rules.check_room, self._path, needed)
            await self._disks(writer)
            with self._writing():
                parts = await blocking.finish(writer.finish)
                made = Manifest(
                    vault=self._means.membership.identity.vault,
                    vm_id=self._vm_id,
                    vm_name=self._name,
                    seed=self._seed,
                    source_host=self._means.membership.identity.id,
                    target_host=self._target,
                    started=progress.started,
                    ended=self._means.clock.now(),
                    after_cycle=(await self._ongoing()).seen.opened,
                    disks=progress.disks,
                    key_for=keys.thumbprint(target),
                    sealed_key=b"",
                    parts=parts,
                )
                made = exporting.sealed(made, progress.key, target)
                encoded = made.encode(self._means.membership.watched.credentials)
                self._call.settled = True
                await blocking.finish(exporting.write_manifest, self._folder, encoded)
        finally:
            await blocking.finish(writer.close)
            await blocking.finish(exporting.drop_empty, self._folder)
        await blocking.finish(file.unlink, missing_ok=True)
        total = sum(part.size for part in parts)
        self._call.result.note = (
            f"{self._folder}: {units.count(len(parts), 'part')}, {units.size(total)}, for host {self._target}"
        )
        _log.info("seed_exported", vm_id=self._vm_id, seed=self._seed.hex(), parts=len(parts), bytes=total)

    async def _progress(self) -> tuple[Reader, Path, exporting.Progress]:
        """The disks' reader, and what is kept of an earlier attempt with the file it is kept in."""
        reader = (await self._ongoing()).reader
        disks = await self._run(reader, reader.source.disks)
        file = self._means.sources.state_folder(self._vm_id) / PROGRESS
        progress = await blocking.finish(exporting.begin, file, self._seed, tuple(disks), self._means.clock.now())
        return reader, file, progress

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises SeedMediumFull, SeedWriteFailed, ReplicationEnded."""
        try:
            with exporting.writing(self._path, lambda: self._means.rules.free(self._path)):
                yield
        except SeedWriteFailed:
            if self._means.sources.assigned(self._vm_id):
                raise
            raise ReplicationEnded(self._vm_id) from None  # what is kept of it here went first

    def _target_certificate(self) -> x509.Certificate:
        """Raises BadTargetCertificate."""
        mine = self._means.membership.watched.credentials
        try:
            leaf, *others = signatures.certificates(self._order.target_certificate)
            others += signatures.certificates(mine.chain_pem)
            identity = signatures.vouched(leaf, others, roots_pem=mine.roots_pem, at=self._means.clock.now())
        except signatures.NotGenuine as error:
            raise BadTargetCertificate(error.why) from error
        if (identity.kind, identity.id) != ("host", self._target):
            raise BadTargetCertificate(f"it names {identity}, the target is host/{self._target}")
        return leaf

    def _written_before(self) -> bool:
        """Whether this seed is complete there; one that is not whole any more begins anew. Raises SeedPathTaken."""
        with self._writing():
            for seed, folder in manifest.folders(self._path, self._vm_id).items():
                if seed != self._seed or folder.is_symlink():
                    raise SeedPathTaken(self._path, folder.name)
            if not (self._folder / manifest.FILE).exists():
                return False
            mine = self._means.membership.watched.credentials
            try:
                found = manifest.read(self._folder, vault=mine.identity.vault, roots_pem=mine.roots_pem)
                if found.target_host == self._target and exporting.complete(self._folder, found):
                    return True
            except (manifest.ManifestDamaged, manifest.OtherVault) as error:
                _log.warning("seed_is_not_whole", vm_id=self._vm_id, reason=str(error))
            return False

    async def _needed(self, source: ChangeSource, disks: tuple[DiskGeometry, ...], written: int) -> int:
        """About how many bytes more the seed takes."""
        compressors = self._means.sources.compressors

        def expected() -> int:
            packer = compressors.packer(_LEVEL if self._compression else 0)
            return exporting.expected_bytes(source, packer, exporting.allocated(source, disks))

        return max(0, await asyncio.wrap_future(compressors.pool.submit(expected)) - written)

    async def _disks(self, writer: SeedWriter) -> None:
        """Read, pack and write what is left, in order."""
        disks = writer.progress.disks
        left = exporting.units(disks, writer.progress.place)
        flying: list[tuple[Unit, asyncio.Future[Packed]]] = []
        try:
            while True:
                while len(flying) < _AHEAD and (unit := next(left, None)) is not None:
                    flying.append((unit, await self._content(unit, disks)))
                if not flying:
                    return
                unit, packed = flying.pop(0)
                found = await packed
                with self._writing():
                    await blocking.finish(writer.put, unit, found)
                self._say(disks, unit)
        finally:
            await asyncio.gather(*(packed for _, packed in flying), return_exceptions=True)

    async def _content(self, unit: Unit, disks: Sequence[DiskGeometry]) -> "asyncio.Future[Packed]":
        reader, compressors, disk = (await self._ongoing()).reader, self._means.sources.compressors, disks[unit.disk]
        present = {now.id: clusters(now.size) for now in await self._run(reader, reader.source.disks)}

        def packed() -> Packed:
            packer = compressors.packer(_LEVEL if self._compression else 0)
            return exporting.content(reader.source, packer, unit, disk.id, present.get(disk.id, 0))

        return asyncio.wrap_future(compressors.pool.submit(packed))

    async def _run(self, reader: Reader, call: Callable[[], Answer]) -> Answer:
        try:
            return await reader.run(call)
        except RuntimeError:  # its thread was ended: the replication goes on another way, or not at all
            raise ReplicationEnded(self._vm_id) from None

    async def _ongoing(self) -> Ongoing:
        """As it is now; another one when it was told another way. Raises ReplicationEnded."""
        try:
            ongoing = await self._means.ongoing(self._vm_id)
        except NotReplicatedHere:
            raise ReplicationEnded(self._vm_id) from None
        if ongoing.target_host != self._target or ongoing.seen.seed != self._seed:
            raise ReplicationEnded(self._vm_id)
        return ongoing

    def _say(self, disks: Sequence[DiskGeometry], unit: Unit) -> None:
        done = sum(clusters(disk.size) for disk in disks[: unit.disk]) + unit.run.end
        total = sum(clusters(disk.size) for disk in disks)
        percent = min(99, done * 100 // max(1, total))
        if percent != self._percent:
            self._percent = percent
            self._call.progress(percent, f"disk {unit.disk + 1} of {len(disks)} is being written")
