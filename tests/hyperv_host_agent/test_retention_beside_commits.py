"""Points arrive every second while it is decided what to keep: none goes that the policy keeps."""

import asyncio
import random
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from hyperv_host_agent.hypervisors.memory import MemoryHypervisor
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.promotions import Promotions
from hyperv_host_agent.replicas import Held, Replicas
from hyperv_host_agent.replication.cycle import Kind
from hyperv_host_agent.store.base import MaintainReport, Replica
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.targets import Targets
from tests.fakes.replicated_machine import Cycle, Machine, send
from twinsite import retention
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import MovedClock
from twinsite.extents import CLUSTER

VM = "5f2c7a10-0000-4000-8000-000000000001"
CYCLES = 150
TIERS = ([(0, 3600)], [(0, 20), (5, 100), (30, 600)])


class Late:
    """A replica whose `maintain` begins some commits after it was decided what to keep."""

    def __init__(self, replica: Replica, dice: random.Random) -> None:
        self._replica, self._dice = replica, dice
        self._came = threading.Condition()
        self._count, self._over = 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)

    def came(self, *, over: bool = False) -> None:
        with self._came:
            self._count += 1
            self._over = over
            self._came.notify_all()

    def maintain(self, **order: Any) -> MaintainReport:
        with self._came:
            until = self._count + self._dice.randrange(5)
            self._came.wait_for(lambda: self._over or self._count >= until, timeout=30)
        return self._replica.maintain(**order)


class Host:
    def __init__(self, root: Path, tiers: list[tuple[int, int]], dice: random.Random) -> None:
        self.tiers, self.dice, self.clock = tiers, dice, MovedClock()
        self.replicas = Replicas(ChainStore(root / "store", reserve=1))
        self.targets = Targets(
            self.replicas,
            Promotions(root / "promotions"),
            hypervisor=MemoryHypervisor(),
            outbox=Outbox(),
            clock=self.clock,
            maintain_rate=dice.choice((100_000, 1 << 30)),
        )
        self.instants: dict[int, float] = {}

    async def follow(self) -> None:
        policy = types_pb2.Policy(
            frequency_seconds=1,
            tiers=[types_pb2.RetentionTier(every_seconds=every, for_seconds=lasts) for every, lasts in self.tiers],
        )
        assigned = types_pb2.Assignment(vm_id=VM, role=types_pb2.ROLE_TARGET, term=1, policy=policy)
        await self.targets.apply({VM: assigned})

    async def commits(self, held: Held, late: Late, cycles: list[Cycle]) -> None:
        """One after the other, with house kept at any moment of it; now and then the clock lets a round begin."""
        for cycle in cycles:
            point = await held.run(send, held.replica, cycle)
            self.targets._committed(VM, point)
            self.instants[point.cycle] = point.instant
            late.came()
            for _ in range(self.dice.randrange(4)):
                await asyncio.sleep(0)
            self.clock.advance(self.dice.choice((0.5, 1.0, 2.5)))

    def kept(self) -> set[int]:
        """What the policy keeps of all that ever came: what was chosen once stays chosen."""
        points = [retention.KeptPoint(cycle, instant, recoverable=True) for cycle, instant in self.instants.items()]
        tiers = [retention.Tier(every, lasts) for every, lasts in self.tiers]
        return set(retention.keep(points, additional=0, tiers=tiers, frequency=1))


def history(seed: int) -> list[Cycle]:
    machine = Machine(VM, {"disk-a": bytearray(8 * CLUSTER)}, seed=seed)
    cycles = []
    for _ in range(CYCLES):
        machine.write("disk-a", machine.random.randrange(8) * CLUSTER, machine.random.randbytes(50))
        cycles.append(machine.cycle(Kind.DELTA))
    return cycles


@pytest.mark.parametrize("tiers", TIERS, ids=["all", "tiered"])
@pytest.mark.parametrize("seed", range(2))
async def test_no_point_goes_that_the_policy_keeps(tmp_path: Path, seed: int, tiers: list[tuple[int, int]]) -> None:
    host = Host(tmp_path, tiers, random.Random(seed))
    await host.follow()
    held = await host.replicas.get(VM)
    held.replica = late = cast("Any", Late(held.replica, random.Random(seed + 1)))
    async with asyncio.TaskGroup() as group:
        house = group.create_task(host.targets.run())
        await host.commits(held, late, history(seed))
        late.came(over=True)
        house.cancel()
    left = [point.cycle for point in await held.run(held.replica.points)]
    assert host.kept() <= {*left}
    if tiers is TIERS[0]:
        assert left == [*range(1, CYCLES + 1)]
    assert len(await held.run(lambda: list(held.replica.verify()))) == 0
    await host.replicas.close()
