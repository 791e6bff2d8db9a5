"""A VM whose base comes on media: its placeholder, and its disks as a seed holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hyperv_host_agent.replication.cycle import Batch, DiskGeometry
from hyperv_host_agent.store.base import Replica
from tests.fakes.replicated_machine import Cycle, Machine, batch_of
from twinsite.digest import is_zero
from twinsite.extents import CLUSTER, clusters


def placeholder(machine: Machine) -> Cycle:
    """The initial cycle without its content."""
    cycle = machine.cycle()
    return replace(cycle, header=replace(cycle.header, placeholder=True), batches=[])


def seed(content: Mapping[str, bytes], disks: Sequence[DiskGeometry], *, piece: int = 3) -> list[Batch]:
    """Everything the disks hold, `piece` clusters a batch."""
    batches = []
    for position, disk in enumerate(disks):
        data = bytes(content.get(disk.id, b""))
        held = [x for x in range(clusters(len(data))) if not is_zero(data[x * CLUSTER : (x + 1) * CLUSTER])]
        for start in range(0, len(held), piece):
            batches.append(batch_of(len(batches) + 1, position, data, held[start : start + piece]))
    return batches


def read_in(replica: Replica, batches: Sequence[Batch], *, after: int) -> None:
    """An undisturbed import of a seed that lacks nothing."""
    awaited = replica.awaited()
    assert awaited is not None
    replica.seed_begin(awaited.id)
    for batch in batches:
        replica.seed_put(batch)
    replica.seed_commit(after_cycle=after, lacking=())
