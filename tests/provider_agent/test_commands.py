"""Commands reach the host at most once, and results the coordinator."""

import itertools

import pytest

from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.host import FakeHost
from tests.provider_agent.conftest import Lab, Until
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2

_numbers = itertools.count(1)


def command(host: FakeHost | str) -> commands_pb2.HostCommand:
    host_id = host if isinstance(host, str) else host.id
    check = commands_pb2.CheckSource(vm_id="vm-1")
    return commands_pb2.HostCommand(id=f"j-1.{next(_numbers)}@1", host_id=host_id, check_source=check)


@pytest.fixture
async def host(lab: Lab, coordinator: FakeCoordinator, until: Until) -> FakeHost:
    """Joined, without a session; the provider does not run."""
    await lab.register()
    host = lab.invite("hv1")
    async with lab.serving():
        await until(lambda: coordinator.links)
        await host.join()
    coordinator.links.clear()
    return host


async def test_a_command_is_executed_and_its_result_arrives(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    async with lab.serving(), host.connected():
        await until(lambda: coordinator.links)
        order = command(host)
        coordinator.order(order)
        await until(lambda: order.id in coordinator.results)
        assert coordinator.results[order.id].note == "done"
        assert [one.id for one in coordinator.links[0].kind("received")] == [order.id]
        await until(lambda: host.kind("result_stored"))


async def test_a_command_waits_for_its_host(lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until):
    async with lab.serving():
        await until(lambda: coordinator.links)
        order = command(host)
        coordinator.order(order)
        await until(lambda: coordinator.links[0].kind("received"))
        async with host.connected():
            await until(lambda: order.id in coordinator.results)
        assert host.executed[order.id] == 1


async def test_a_repeated_command_is_not_executed_again(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    async with lab.serving(), host.connected():
        await until(lambda: coordinator.links)
        order = command(host)
        for repeat in range(1, 4):
            coordinator.order(order)
            await until(lambda repeat=repeat: coordinator.result_count[order.id] == repeat)
        assert host.executed[order.id] == 1


async def test_a_result_reaches_a_coordinator_that_was_away_and_a_provider_that_was_restarted(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    host.answer = lambda _: None
    order = command(host)
    async with lab.serving():
        await until(lambda: coordinator.links)
        async with host.connected():
            coordinator.order(order)
            await until(lambda: host.executed[order.id])
            coordinator.withhold_stored = True
            await host.finish(host.succeed(order))
            await until(lambda: host.kind("result_stored"))
            await until(lambda: order.id in coordinator.results)
    async with lab.serving():  # it was not told that the result is stored, so it says it again
        await until(lambda: coordinator.result_count[order.id] >= 2)
    coordinator.withhold_stored = False
    async with lab.serving():
        await until(lambda: coordinator.stored_count[order.id])
    assert host.executed[order.id] == 1


async def test_progress_arrives(lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until):
    host.answer = lambda _: None
    async with lab.serving(), host.connected():
        await until(lambda: coordinator.links)
        order = command(host)
        coordinator.order(order)
        await until(lambda: host.executed[order.id])
        await host.say(pb.FromHost(progress=commands_pb2.CommandProgress(id=order.id, percent=40)))
        await until(lambda: [one.percent for one in coordinator.links[0].kind("progress")] == [40])


async def test_a_cancel_reaches_the_host_and_its_result_the_coordinator(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    host.answer = lambda _: None
    async with lab.serving(), host.connected():
        await until(lambda: coordinator.links)
        order = command(host)
        coordinator.order(order)
        await until(lambda: host.executed[order.id])
        coordinator.cancel(order.id)
        await until(lambda: order.id in coordinator.results)
        assert coordinator.results[order.id].error.code == "CANCELLED"


async def test_a_command_cancelled_before_its_host_saw_it_ends_at_once_and_is_never_executed(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    waiting, unseen = command(host), command(host)
    async with lab.serving():
        await until(lambda: coordinator.links)
        coordinator.order(waiting)
        await until(lambda: coordinator.links[0].kind("received"))
        coordinator.cancel(waiting.id)
        coordinator.cancel(unseen.id)  # of which only the cancel ever arrives
        await until(lambda: {waiting.id, unseen.id} <= set(coordinator.results))
        for order in (waiting, unseen):
            assert coordinator.results[order.id].error.code == "CANCELLED_BEFORE_START"
            coordinator.order(order)
        async with host.connected():
            last = command(host)
            coordinator.order(last)
            await until(lambda: last.id in coordinator.results)
        assert set(host.executed) == {last.id}


async def test_a_command_for_a_host_of_another_provider_fails_with_the_reason(
    lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until
):
    async with lab.serving():
        await until(lambda: coordinator.links)
        order = command("h-0123456789ab")
        coordinator.order(order)
        await until(lambda: order.id in coordinator.results)
        assert coordinator.results[order.id].error.code == "HOST_NOT_HERE"
        assert coordinator.results[order.id].error.next_step


async def test_a_host_cannot_answer_for_another(lab: Lab, coordinator: FakeCoordinator, host: FakeHost, until: Until):
    host.answer = lambda _: None
    async with lab.serving(), host.connected():
        await until(lambda: coordinator.links)
        other = lab.invite("hv2")
        await other.join()
        order = command(host)
        coordinator.order(order)
        await until(lambda: host.executed[order.id])
        async with other.connected():
            await other.finish(commands_pb2.CommandResult(id=order.id, ok=True, note="forged"))
            await until(lambda: other.kind("result_stored"))
        await host.finish(host.succeed(order))
        await until(lambda: order.id in coordinator.results)
        assert coordinator.results[order.id].note == "done"
