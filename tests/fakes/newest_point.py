"""Reading a replica as the next owner of its VM would."""

from contextlib import closing

from hyperv_host_agent.app import Agent
from hyperv_host_agent.store.base import AttachedDisk
from hyperv_host_agent.store.formats.qcow2 import ChainReader


async def newest(agent: Agent, vm_id: str) -> tuple[int, dict[str, bytes]]:
    """The newest recovery point and every disk's content there."""
    held = (await agent.targets.receptions.get(vm_id)).held
    cycle = [point for point in await held.run(held.replica.points) if point.recoverable][-1].cycle
    attached = await held.run(held.replica.attach, cycle, "look")
    try:
        return cycle, {disk.id: read(disk) for disk in attached}
    finally:
        await held.run(held.replica.detach, "look")


def read(disk: AttachedDisk) -> bytes:
    with closing(ChainReader(disk.layers)) as reader:
        return reader.read(0, disk.size)
