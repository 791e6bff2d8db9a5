"""Statistics on their way through the provider: acknowledged by the coordinator alone."""

from provider_agent.outbox import Outbox
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.host import FakeHost
from tests.provider_agent.conftest import Lab, Until
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import types_pb2


def batch(number: int, *, count: int = 2, vm_id: str = "vm-1") -> pb.SampleBatch:
    samples = [types_pb2.Sample(vm_id=vm_id, start_unix=60 * number + 60 * one, cycles=3) for one in range(count)]
    return pb.SampleBatch(id=number, samples=samples)


def acked(host: FakeHost) -> list[int]:
    return [stored.id for stored in host.kind("samples_stored")]


def told(coordinator: FakeCoordinator) -> list[link_pb2.HostSamples]:
    return [samples for link in coordinator.links for samples in link.kind("samples")]


async def test_a_batch_goes_up_as_it_came_and_is_acknowledged_when_it_is_stored(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            await host.say(pb.FromHost(samples=batch(7)))
            await until(lambda: acked(host) == [7])
            await host.say(pb.FromHost(samples=batch(9)))
            await until(lambda: acked(host) == [7, 9])
        assert told(coordinator)[0] == link_pb2.HostSamples(host_id=host.id, id=7, samples=batch(7).samples)


async def test_without_a_coordinator_nothing_is_acknowledged_and_nothing_is_forgotten(lab: Lab, until: Until):
    async with lab.coordinator.serving():
        await lab.register()
    async with lab.serving():
        async with lab.coordinator.serving():
            await until(lambda: lab.coordinator.links)
            host = lab.invite("hv1")
            await host.join()
        async with host.connected():
            await host.say(pb.FromHost(samples=batch(1)))
            await until(lambda: host.kind("welcome"))
            lab.coordinator.store_samples = False  # it takes them and does not get to storing them
            async with lab.coordinator.serving():
                await until(lambda: len(told(lab.coordinator)) == 1)
            assert not acked(host)
            lab.coordinator.store_samples = True
            async with lab.coordinator.serving():
                await until(lambda: acked(host) == [1])
            assert len(told(lab.coordinator)) == 2


async def test_a_batch_that_no_message_to_the_coordinator_holds_does_not_cut_the_site_off(
    lab: Lab, coordinator: FakeCoordinator, until: Until
):
    await lab.register()
    async with lab.serving():
        await until(lambda: coordinator.links)
        host = lab.invite("hv1")
        await host.join()
        async with host.connected():
            await host.say(pb.FromHost(samples=batch(1, count=40, vm_id="x" * 100_000)))
            await host.say(pb.FromHost(samples=batch(2)))
            await until(lambda: acked(host) == [2])
        assert len(coordinator.links) == 1


async def test_of_each_host_one_batch_waits():
    outbox = Outbox()
    for number in range(100):
        outbox.samples(link_pb2.HostSamples(host_id="h-1", id=number))
    outbox.samples(link_pb2.HostSamples(host_id="h-2", id=5))
    assert [message.samples.id for message in await outbox.next_paced()] == [99, 5]
    outbox.samples_stored("h-1", 98)  # of an earlier one
    outbox.samples_stored("h-2", 5)
    outbox.begin([])
    assert [message.samples.id for message in await outbox.next_paced()] == [99]
    outbox.forget_samples("h-1")
    outbox.begin([])
    outbox.inventory(link_pb2.Inventory())
    assert [message.WhichOneof("message") for message in await outbox.next_paced()] == ["inventory"]
