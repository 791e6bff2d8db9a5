"""The hypervisor port over libvirt."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent.changes.base import ChangeSource
from hyperv_host_agent.hypervisors.base import (
    Address,
    Finding,
    Guest,
    MachineExists,
    MachineFailed,
    MachineFenced,
    MachineMissing,
    MachineSpec,
    MachineState,
    Native,
    Obstacles,
    Power,
    Purpose,
    Severity,
    test_name,
)
from hyperv_host_agent.hypervisors.description import BadDescription, to_proto
from hyperv_host_agent.hypervisors.libvirt import (
    capabilities,
    describe,
    examination,
    guest,
    preflight,
    rewrite,
    stopping,
)
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.cabling import Cabling
from hyperv_host_agent.hypervisors.libvirt.decisions import Decisions
from hyperv_host_agent.hypervisors.libvirt.describe import Description, DomainDisk
from hyperv_host_agent.hypervisors.libvirt.domain import Domain, State
from hyperv_host_agent.hypervisors.libvirt.errors import LibvirtFailed, NotThere
from hyperv_host_agent.hypervisors.libvirt.events import Event, Happening
from hyperv_host_agent.hypervisors.libvirt.geometry import disk_size
from hyperv_host_agent.hypervisors.libvirt.identity import libvirt_name, libvirt_uuid
from hyperv_host_agent.hypervisors.libvirt.images import zstd_problem
from hyperv_host_agent.hypervisors.libvirt.machine_files import NVRAM, MachineFiles
from hyperv_host_agent.hypervisors.libvirt.mark import Mark
from hyperv_host_agent.hypervisors.libvirt.rewrite import Cable, Placement
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.store.base import AttachedDisk
from twinsite.errors import TwinsiteError

_ARCH: Final = "x86_64"  # of a VM whose source does not say
_FENCE_SECONDS: Final = 10.0  # the guest may shut down by itself before its power is cut
_RUNS: Final = frozenset({Happening.STARTED, Happening.RESUMED, Happening.MIGRATED_IN})
_POWER: Final = {State.OFF: Power.STOPPED, State.CRASHED: Power.STOPPED, State.NONE: Power.UNKNOWN}

log = structlog.get_logger()

Sources = Callable[["LibvirtHypervisor", str], ChangeSource]


class LibvirtHypervisor:
    """`vms` is for the VMs it defines, `state` for what it decided about VMs, `source` makes a VM's change source.

    `networks` maps a network's name at the source to one here; `test_network` is where test copies are plugged in.
    Close it at the end.
    """

    def __init__(
        self,
        connection: Connection,
        vms: Path,
        state: Path,
        *,
        source: Sources,
        networks: Mapping[str, str] | None = None,
        test_network: str = "",
    ) -> None:
        self._connection = connection
        self._files = MachineFiles(vms)
        self._decisions = Decisions(state)
        self._source = source
        self._cabling = Cabling(connection, networks or {})
        self._test_network = test_network
        self._lock = threading.Lock()  # guards what follows, and everything that looks at all names
        self._machine_locks: dict[str, threading.RLock] = {}
        connection.listen(self._heard)

    def name(self) -> str:
        return "libvirt"

    def machines(self) -> list[MachineState]:
        found: list[MachineState] = []
        for domain in self._connection.domains():
            try:
                found.append(self._state(domain))
            except NotThere:
                continue  # undefined in this moment
            except (BadDescription, LibvirtFailed) as error:
                log.warning("vm unreadable", vm=domain.uuid, problem=str(error))
        return sorted(found, key=lambda state: state.spec.name)

    def machine(self, vm_id: str) -> MachineState:
        try:
            return self._state(self._domain(vm_id))
        except NotThere:
            raise MachineMissing(vm_id) from None
        except (BadDescription, LibvirtFailed) as error:
            raise MachineFailed(vm_id, str(error)) from error

    def change_source(self, vm_id: str) -> ChangeSource:
        self._domain(vm_id)
        return self._source(self, vm_id)

    def description(self, vm_id: str) -> Description:
        """As it is now: of the running VM when it runs. Raises MachineMissing, BadDescription."""
        try:
            return describe.describe(self._domain(vm_id).xml())
        except NotThere:
            raise MachineMissing(vm_id) from None

    def travelling(self, vm_id: str) -> bytes:
        """What a recovery point says of the VM: a serialized types.v1.Machine. Raises MachineMissing, MachineFailed."""
        return to_proto(self.machine(vm_id), self.describe(vm_id)).SerializeToString(deterministic=True)

    def describe(self, vm_id: str) -> Native:
        domain = self._domain(vm_id)
        document = domain.xml(inactive=True, migratable=True)
        nvram = describe.describe(document).nvram
        files: tuple[tuple[str, bytes], ...] = ()
        if nvram is not None:
            with suppress(FileNotFoundError):  # it never ran: the firmware makes its variables at the first start
                files = ((NVRAM, nvram.read_bytes()),)
        return Native(preflight.FORMAT, document, files)

    def examine(self, vm_id: str) -> tuple[Finding, ...]:
        return tuple(examination.findings(self._domain(vm_id)))

    def preflight(self, spec: MachineSpec, native: Native | None) -> tuple[Finding, ...]:
        return tuple(preflight.findings(self._connection, self._cabling, spec, native, zstd_problem))

    def define(
        self, spec: MachineSpec, disks: tuple[AttachedDisk, ...], *, purpose: Purpose, native: Native | None = None
    ) -> None:
        with self._lock:
            present = self.machines()
            if purpose is Purpose.TEST:
                spec = replace(spec, name=test_name(spec.name, spec.id, (other.spec for other in present)))
            uuid = libvirt_uuid(spec.id)
            mark = Mark(
                spec.id,
                spec.name,
                purpose,
                tuple((disk.name, disk.id) for disk in disks),
                _fingerprint(spec, disks, native),
            )
            if self._is_defined(uuid, mark, present):
                return
            obstacles = [found for found in self.preflight(spec, native) if found.severity is Severity.OBSTACLE]
            if obstacles:
                raise Obstacles(spec.name, obstacles)
            document = native.document if native is not None else rewrite.blank(spec.cpus, spec.memory_bytes, _ARCH)
            placement = Placement(
                uuid=uuid,
                name=libvirt_name(spec.name),
                mark=mark,
                kind=self._kind(document),
                disks=tuple((disk.name, self._files.disk(uuid, disk.name)) for disk in disks),
                cables=tuple(self._cable(mac, network, purpose) for mac, network in spec.nics),
                folder=self._files.folder(uuid),
                nvram=self._files.nvram(uuid, native),
            )
            self._files.create(spec.id, uuid, disks, native)
            try:
                self._connection.define(rewrite.rewrite(document, placement))
            except LibvirtFailed as error:
                self._files.remove(uuid)
                raise MachineFailed(spec.id, f"libvirt does not take its definition: {error.problem}") from error

    def start(self, vm_id: str) -> None:
        with self._changing(vm_id):
            domain = self._domain(vm_id)
            decision = self._decisions.get(vm_id)
            if decision.fenced is not None:
                raise MachineFenced(vm_id, decision.fenced)
            self._decisions.stopped(vm_id, False)
            if domain.state() == (State.PAUSED, "ioerror"):
                domain.resume()
            elif not domain.is_active():
                try:
                    domain.create()
                except LibvirtFailed as error:
                    raise MachineFailed(vm_id, f"it does not start: {error.problem}") from error
            self._decisions.runs(vm_id)

    def stop(self, vm_id: str, *, timeout: float) -> None:
        with self._changing(vm_id):
            domain = self._domain(vm_id)
            self._take_autostart(vm_id, domain)
            self._decisions.stopped(vm_id, True)
            stopping.stop(domain, timeout)

    def undefine(self, vm_id: str) -> None:
        with self._changing(vm_id):
            uuid = libvirt_uuid(vm_id)
            try:
                domain = self._domain(vm_id)
                if describe.describe(domain.xml(inactive=True)).purpose is Purpose.ORDINARY:
                    raise MachineFailed(vm_id, "it was not defined by Twinsite and is not removed")
                if domain.is_active():
                    raise MachineFailed(vm_id, "it runs, stop it first")
                domain.undefine()
            except (MachineMissing, NotThere):
                pass  # it was undefined before, perhaps not to the end
            self._files.remove(uuid)
            self._decisions.forget(vm_id)

    def disk_path(self, vm_id: str, disk: str) -> Path:
        for known in self.description(vm_id).replicated():
            if known.id == disk and known.path is not None:
                return known.path
        raise MachineFailed(vm_id, f"it has no disk {disk}")

    def guest(self, vm_id: str) -> Guest | None:
        return guest.look(self._domain(vm_id))

    def set_address(self, vm_id: str, address: Address) -> None:
        guest.set_address(self._domain(vm_id), address)

    def guard(self, vm_id: str) -> None:
        self._take_autostart(vm_id, self._domain(vm_id))

    def unguard(self, vm_id: str) -> None:
        domain = self._domain(vm_id)
        decision = self._decisions.get(vm_id)
        if decision.autostart and decision.fenced is None:
            domain.set_autostart(True)
            self._decisions.autostart(vm_id, False)

    def fence(self, vm_id: str, term: int) -> None:
        with self._changing(vm_id):
            domain = self._domain(vm_id)
            self._decisions.fence(vm_id, term)
            self._take_autostart(vm_id, domain)
            stopping.stop(domain, _FENCE_SECONDS)

    def unfence(self, vm_id: str) -> None:
        with self._changing(vm_id):
            self._domain(vm_id)
            self._decisions.unfence(vm_id)

    def close(self) -> None:
        self._connection.close()

    def _domain(self, vm_id: str) -> Domain:
        try:
            return self._connection.domain(libvirt_uuid(vm_id))
        except NotThere:
            raise MachineMissing(vm_id) from None

    def _changing(self, vm_id: str) -> threading.RLock:
        """One start, stop, fence or removal of a VM at a time."""
        with self._lock:
            return self._machine_locks.setdefault(vm_id, threading.RLock())

    def _state(self, domain: Domain) -> MachineState:
        told = describe.describe(domain.xml())
        power = _POWER.get(domain.state()[0], Power.RUNNING)
        spec = MachineSpec(
            id=told.id,
            name=told.shown_name,
            cpus=told.cpus,
            memory_bytes=told.memory_bytes,
            disks=tuple(DiskGeometry(disk.id, _size(domain, disk), disk.target) for disk in told.replicated()),
            nics=tuple((nic.mac, nic.network) for nic in told.nics),
        )
        return MachineState(spec, power, told.purpose, self._autostarts(told, domain, power))

    def _autostarts(self, told: Description, domain: Domain, power: Power) -> bool:
        decision = self._decisions.get(told.id)
        if told.purpose is not Purpose.ORDINARY or decision.stopped or decision.fenced is not None:
            return False
        if power is Power.RUNNING:
            self._decisions.runs(told.id)
        elif decision.autostart and self._decisions.ran(told.id):
            return False  # who shut it down since the boot meant it
        return decision.autostart or domain.autostart()

    def _take_autostart(self, vm_id: str, domain: Domain) -> None:
        """The host must not start it with the host: whether it may run is known only when the agent has asked."""
        if domain.autostart():
            self._decisions.autostart(vm_id, True)
            domain.set_autostart(False)

    def _is_defined(self, uuid: str, mark: Mark, present: Iterable[MachineState]) -> bool:
        """Raises MachineExists for another VM of the name or the id."""
        with suppress(NotThere):
            told = describe.describe(self._connection.domain(uuid).xml(inactive=True))
            if told.mark != mark:
                raise MachineExists(told.shown_name)
            return True
        if any(other.spec.name == mark.name for other in present):
            raise MachineExists(mark.name)
        return False

    def _kind(self, document: str) -> str:
        told = describe.describe(document)
        arch = capabilities.host(self._connection.capabilities()).get(told.arch)
        accelerated = arch is not None and arch.accelerated
        return "kvm" if accelerated and told.kind != "qemu" else "qemu"

    def _cable(self, mac: str, network: str, purpose: Purpose) -> Cable:
        if purpose is Purpose.TEST and not network:
            return self._cabling.cable(mac, self._test_network)
        return self._cabling.cable(mac, network)

    def _heard(self, event: Event) -> None:
        """A fenced VM that somebody starts is stopped again at once, however it was started."""
        if event.happening is Happening.CONNECTED:
            running = self._connection.domains()
        elif event.happening in _RUNS:
            running = [Domain(self._connection, event.vm_id)]
        else:
            return
        for domain in running:
            term = self._decisions.get(domain.uuid).fenced  # only VMs of libvirt's own ids are fenced
            if term is None:
                continue
            with suppress(NotThere):
                if domain.is_active():
                    log.warning("fenced vm runs", vm=domain.uuid, term=term)
                    try:
                        stopping.cut(domain)
                    except TwinsiteError as error:
                        log.warning("fenced vm not stopped", vm=domain.uuid, problem=str(error))


def _size(domain: Domain, disk: DomainDisk) -> int:
    """Raises LibvirtFailed when nobody can say."""
    try:
        if disk.path is not None:
            return disk_size(disk.path, disk.format)
    except OSError as error:  # not for this user's eyes, or not there now
        log.debug("disk not read", disk=str(disk.path), problem=str(error))
    return domain.block_info(disk.target).capacity


def _fingerprint(spec: MachineSpec, disks: tuple[AttachedDisk, ...], native: Native | None) -> str:
    """Of all that was asked for, so that a repetition is told from another wish."""
    return hashlib.blake2b(repr((spec, disks, native)).encode(), digest_size=16).hexdigest()
