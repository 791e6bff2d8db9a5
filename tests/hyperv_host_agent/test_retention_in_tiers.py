"""Points that the policy's tiers keep, inside packs that the agent made by itself, and a test of one of them."""

from pathlib import Path

from tests.fakes.agent_pair import FIRST, contents, pair, spec
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import read
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.extents import CLUSTER

CYCLES = 20


async def test_every_cycle_of_the_hour_stays_on_few_layers_and_any_of_them_can_be_tested(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine, tiers=[types_pb2.RetentionTier(every_seconds=0, for_seconds=3600)])
        cycle, truth = await two.replicated(machine.id), {}
        for number in range(CYCLES):
            guest.write(FIRST, number % 3 * CLUSTER + 100, b"changed %d" % number)
            cycle = await two.settled(machine.id)
            truth[cycle] = guest.content(FIRST)
        store = tmp_path / "b1"

        def layers() -> int:
            return len(list(store.glob(f"**/{FIRST}/0*.qcow2")))

        await eventually("the layers to become few", lambda: 0 < layers() <= 17)
        points = [point.cycle for point in two.at_target.points[machine.id]]
        assert set(truth) <= set(points)
        held = (await two.target.targets.receptions.get(machine.id)).held
        for cycle in (min(truth), sorted(truth)[CYCLES // 2]):
            attached = await held.run(held.replica.attach, cycle, "look")
            assert read(next(disk for disk in attached if disk.id == FIRST)) == truth[cycle]
            await held.run(held.replica.detach, "look")
        done = await two.provider.order(
            two.target.host_id,
            "test@1",
            test_failover=commands_pb2.TestFailover(vm_id=machine.id, test_id="t1", cycle=min(truth)),
        )
        assert done.ok, done.error
        assert two.there.change_source(done.machine.id).content(FIRST) == truth[min(truth)]
