"""A VM as it travels: `types.v1.Machine` made from a hypervisor's words, and back."""

import zlib
from typing import Final

from hyperv_host_agent.hypervisors.base import MachineSpec, MachineState, Native, Power
from hyperv_host_agent.replication.cycle import DiskGeometry
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput
from twinsite.units import MiB

_MAX_FILE: Final = 16 * MiB  # firmware variables are 528 KiB

_POWER: Final = {
    Power.RUNNING: types_pb2.POWER_STATE_RUNNING,
    Power.STOPPED: types_pb2.POWER_STATE_STOPPED,
    Power.UNKNOWN: types_pb2.POWER_STATE_UNKNOWN,
}


class BadDescription(InvalidInput):
    public = "the description of a VM is not usable: {error.problem}"
    still_works = "nothing was defined"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, problem: str) -> None:
        self.problem = problem


def to_proto(state: MachineState, native: Native | None = None) -> types_pb2.Machine:
    """With `native` all a target needs; without it what everybody else wants to know."""
    spec = state.spec
    return types_pb2.Machine(
        id=spec.id,
        name=spec.name,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        disks=[types_pb2.Disk(id=disk.id, name=disk.name, size_bytes=disk.size) for disk in spec.disks],
        nics=[types_pb2.Nic(mac=mac, network=network) for mac, network in spec.nics],
        power=_POWER[state.power],
        purpose=state.purpose.value,
        native=native_to_proto(native) if native is not None else None,
    )


def native_to_proto(native: Native) -> types_pb2.NativeDescription:
    files = [types_pb2.NativeDescription.File(name=name, zlib=zlib.compress(content)) for name, content in native.files]
    return types_pb2.NativeDescription(format=native.format, document=native.document, files=files)


def native_of(machine: types_pb2.Machine) -> Native | None:
    """Raises BadDescription."""
    if not machine.HasField("native"):
        return None
    told = machine.native
    return Native(told.format, told.document, tuple((file.name, _unpack(file.zlib)) for file in told.files))


def _unpack(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, _MAX_FILE)
    except zlib.error as error:
        raise BadDescription(f"a file of it is damaged: {error}") from None
    if not unpacking.eof:
        raise BadDescription("a file of it is too large or cut off")
    return content


def from_proto(machine: types_pb2.Machine) -> MachineSpec:
    """What a target needs to define the VM. Raises BadDescription."""
    if not machine.id or not machine.name:
        raise BadDescription("it has no id or no name")
    ids = [disk.id for disk in machine.disks]
    if not all(ids) or len(set(ids)) != len(ids):
        raise BadDescription("its disks are not told apart by their ids")
    if any(disk.size_bytes == 0 for disk in machine.disks):
        raise BadDescription("one of its disks has no size")
    return MachineSpec(
        id=machine.id,
        name=machine.name,
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        disks=tuple(DiskGeometry(disk.id, disk.size_bytes, disk.name) for disk in machine.disks),
        nics=tuple((nic.mac, nic.network) for nic in machine.nics),
    )
