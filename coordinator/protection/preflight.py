"""Asking both hosts whether a VM can be protected and would run at the target, before anything is changed."""

from dataclasses import dataclass
from typing import Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory.model import machine_is_good
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.service import HostView
from coordinator.jobs import Jobs, TaskContext, TaskPlan
from coordinator.protection.errors import MachineIsMissing, NoDisks
from coordinator.protection.hosts import tell
from coordinator.protection.views import VmView
from twinsite.api.types.v1 import commands_pb2, types_pb2

CHECK: Final = "vm.check"
_CHECK_SECONDS: Final = 60.0


def register(jobs: Jobs) -> None:
    jobs.handler(CHECK, _check)


async def submit(jobs: Jobs, connection: AsyncConnection, by: Mutation, vm: VmView, target: HostView) -> str:
    """A job that asks; it changes nothing. Its result's `note` is what they found."""
    source = vm.machine.host
    args = {"vm": vm.id, "name": vm.name, "source": source.id, "target": target.id}
    return await jobs.submit(
        connection,
        kind=CHECK,
        target=f"vm/{vm.name}",
        tasks=[TaskPlan(name=f"Ask {source.name} and {target.name}", kind=CHECK, args=args, stage=1)],
        created_by=by.actor,
        request_id=by.request_id,
        result={"vm": vm.id, "target_host": target.name},
    )


class Asked(Protocol):
    """A VM and the host it is on."""

    @property
    def vm_id(self) -> str: ...
    @property
    def vm_name(self) -> str: ...
    @property
    def source_host(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Vm:
    vm_id: str
    vm_name: str
    source_host: str


async def ask_source(context: TaskContext, vm: Asked, *, timeout: float) -> tuple[types_pb2.Machine, str]:
    """The VM with its native description, and what its host found. Raises MachineIsMissing, NoDisks."""
    check = commands_pb2.CheckSource(vm_id=vm.vm_id)
    order = commands_pb2.HostCommand(host_id=vm.source_host, check_source=check)
    answer = await tell(context, order, timeout=timeout, label="source")
    if answer.machine.id != vm.vm_id or not machine_is_good(answer.machine):
        raise MachineIsMissing(vm.vm_name, vm.source_host)
    if not answer.machine.disks:
        raise NoDisks(vm.vm_name)
    return answer.machine, answer.note


async def _check(context: TaskContext) -> None:
    vm = _Vm(str(context.args["vm"]), str(context.args["name"]), str(context.args["source"]))
    machine, of_source = await ask_source(context, vm, timeout=_CHECK_SECONDS)
    order = commands_pb2.HostCommand(
        host_id=str(context.args["target"]), check_target=commands_pb2.CheckTarget(machine=machine)
    )
    of_target = (await tell(context, order, timeout=_CHECK_SECONDS, label="target")).note
    note = "; ".join(filter(None, (of_source, of_target)))
    await context.set_result(note=note or "both hosts find nothing in the way")
