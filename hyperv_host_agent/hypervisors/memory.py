"""A hypervisor in memory, for tests: the twin of `embedded`."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hyperv_host_agent.changes.memory import MemoryChangeSource
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
from hyperv_host_agent.hypervisors.description import to_proto
from hyperv_host_agent.store.base import AttachedDisk
from twinsite.clock import Clock, SystemClock


@dataclass(slots=True)
class _Machine:
    spec: MachineSpec
    purpose: Purpose
    power: Power
    source: MemoryChangeSource
    fenced: int | None = None
    native: Native | None = None
    wanted: bool = True  # to run: not stopped on purpose

    def state(self) -> MachineState:
        wanted = self.purpose is Purpose.ORDINARY and self.wanted and self.fenced is None
        return MachineState(self.spec, self.power, self.purpose, autostart=wanted)


def _zeros(disk: AttachedDisk) -> bytes:
    return bytes(disk.size)


class MemoryHypervisor:
    """`content` says what a defined VM's disk holds, because there are no layers to read here."""

    def __init__(self, *, clock: Clock | None = None, content: Callable[[AttachedDisk], bytes] = _zeros) -> None:
        self._clock = clock or SystemClock()
        self._content = content
        self._machines: dict[str, _Machine] = {}
        self.guests: dict[str, Guest] = {}  # by VM, what its guest says: for a test to say
        self.examined: list[Finding] = []  # what `examine` and `preflight` find, for a test to say
        self.preflown: list[Finding] = []
        self._lock = threading.RLock()

    # What a test does.

    def add(
        self, spec: MachineSpec, *, contents: Mapping[str, bytes] | None = None, native: Native | None = None
    ) -> MemoryChangeSource:
        """A running, ordinary VM; its source is where the test writes as the guest."""
        with self._lock:
            machine = self._insert(spec, Purpose.ORDINARY, Power.RUNNING, contents or {})
            machine.native = native
            self._describe(machine)
            return machine.source

    def change_disks(self, vm_id: str, change: Callable[[MemoryChangeSource], None]) -> None:
        """Grow, shrink, add or remove disks of its source; the VM's description follows."""
        with self._lock:
            machine = self._find(vm_id)
            change(machine.source)
            machine.spec = replace(machine.spec, disks=machine.source.disks())
            self._describe(machine)

    def lose(self, vm_id: str) -> None:
        """As when somebody removes the VM from its host."""
        with self._lock:
            del self._machines[vm_id]

    def lose_power(self) -> None:
        """As when the host goes down: nothing runs, and nobody stopped it on purpose."""
        with self._lock:
            for machine in self._machines.values():
                machine.power = Power.STOPPED

    # The port.

    def name(self) -> str:
        return "memory"

    def machines(self) -> list[MachineState]:
        with self._lock:
            return [self.machine(vm_id) for vm_id in sorted(self._machines)]

    def machine(self, vm_id: str) -> MachineState:
        return self._find(vm_id).state()

    def change_source(self, vm_id: str) -> MemoryChangeSource:
        return self._find(vm_id).source

    def describe(self, vm_id: str) -> Native | None:
        return self._find(vm_id).native

    def examine(self, vm_id: str) -> tuple[Finding, ...]:
        self._find(vm_id)
        return tuple(self.examined)

    def preflight(self, spec: MachineSpec, native: Native | None) -> tuple[Finding, ...]:  # noqa: ARG002  # a test says it
        return tuple(self.preflown)

    def define(
        self, spec: MachineSpec, disks: tuple[AttachedDisk, ...], *, purpose: Purpose, native: Native | None = None
    ) -> None:
        with self._lock:
            if any(found.severity is Severity.OBSTACLE for found in self.preflown):
                raise Obstacles(spec.name, self.preflown)
            if purpose is Purpose.TEST:
                others = [machine.spec for machine in self._machines.values()]
                spec = replace(spec, name=test_name(spec.name, spec.id, others))
            present = self._machines.get(spec.id)
            if present is not None:
                if (present.spec, present.purpose) != (spec, purpose):
                    raise MachineExists(present.spec.name)
                return
            if any(other.spec.name == spec.name for other in self._machines.values()):
                raise MachineExists(spec.name)
            made = self._insert(spec, purpose, Power.STOPPED, {disk.id: self._content(disk) for disk in disks})
            made.native = native
            self._describe(made)

    def start(self, vm_id: str) -> None:
        with self._lock:
            machine = self._find(vm_id)
            if machine.fenced is not None:
                raise MachineFenced(vm_id, machine.fenced)
            self._power(machine, Power.RUNNING)

    def stop(self, vm_id: str, *, timeout: float) -> None:  # noqa: ARG002  # it stops at once
        with self._lock:
            self._power(self._find(vm_id), Power.STOPPED)

    def undefine(self, vm_id: str) -> None:
        with self._lock:
            machine = self._machines.get(vm_id)
            if machine is None:
                return
            if machine.purpose is Purpose.ORDINARY:
                raise MachineFailed(vm_id, "it was not defined by Twinsite and is not removed")
            if machine.power is not Power.STOPPED:
                raise MachineFailed(vm_id, "it runs, stop it first")
            del self._machines[vm_id]

    def disk_path(self, vm_id: str, disk: str) -> Path:
        if disk not in {known.id for known in self._find(vm_id).spec.disks}:
            raise MachineFailed(vm_id, f"it has no disk {disk}")
        return Path("/memory", vm_id, disk)

    def fence(self, vm_id: str, term: int) -> None:
        with self._lock:
            machine = self._find(vm_id)
            machine.fenced = max(term, machine.fenced or 0)
            self._power(machine, Power.STOPPED)

    def unfence(self, vm_id: str) -> None:
        with self._lock:
            self._find(vm_id).fenced = None

    def guest(self, vm_id: str) -> Guest | None:
        self._find(vm_id)
        return self.guests.get(vm_id)

    def set_address(self, vm_id: str, address: Address) -> None:
        present = self.guests[vm_id]
        self.guests[vm_id] = replace(present, addresses=(*present.addresses, address.address))

    def guard(self, vm_id: str) -> None:
        self._find(vm_id)

    def unguard(self, vm_id: str) -> None:
        self._find(vm_id)

    def close(self) -> None:
        """It lives as long as the test."""

    def _find(self, vm_id: str) -> _Machine:
        try:
            return self._machines[vm_id]
        except KeyError:
            raise MachineMissing(vm_id) from None

    def _insert(self, spec: MachineSpec, purpose: Purpose, power: Power, contents: Mapping[str, bytes]) -> _Machine:
        source = MemoryChangeSource(spec.id, spec.disks, contents=contents, clock=self._clock)
        machine = self._machines[spec.id] = _Machine(spec, purpose, power, source)
        self._power(machine, power)
        return machine

    def _power(self, machine: _Machine, power: Power) -> None:
        machine.power = power
        machine.wanted = power is Power.RUNNING
        self._describe(machine)

    def _describe(self, machine: _Machine) -> None:
        described = to_proto(machine.state(), machine.native)
        machine.source.machine = described.SerializeToString(deterministic=True)
