"""A slow coordinator costs no memory, and a new session is told everything."""

import asyncio

from provider_agent.outbox import Outbox
from twinsite.api.coordinator.v1 import link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2, types_pb2


def kinds(messages: list[pb.FromProvider]) -> list[str]:
    return [message.WhichOneof("message") for message in messages]


async def test_only_the_newest_state_waits():
    outbox = Outbox()
    for cycle in range(1000):
        outbox.status("h-1", types_pb2.ReplicationStatus(vm_id="vm-1", committed_cycle=cycle))
        outbox.points("h-1", "vm-1", [types_pb2.Point(cycle=cycle)])
        outbox.progress(commands_pb2.CommandProgress(id="j-1.1@1", percent=cycle % 100))
    (statistics,) = await outbox.next_paced()
    assert [one.committed_cycle for one in statistics.statistics.statuses] == [999]
    assert kinds(await outbox.next()) == ["progress", "points"]


async def test_of_points_what_changed_is_told_and_all_of_them_when_somebody_asks():
    outbox = Outbox()
    one, two, three = (types_pb2.Point(cycle=cycle) for cycle in (1, 2, 3))
    assert not outbox.points_changed("h-1", "vm-1", [two], [], total=2)  # nobody said what it counts from
    outbox.points("h-1", "vm-1", [one, two])
    await outbox.next()
    assert outbox.points_changed("h-1", "vm-1", [three], [1], total=2)
    (told,) = await outbox.next()
    assert [point.cycle for point in told.points.points] == [3]
    assert (told.points.changes, list(told.points.gone), told.points.total) == (True, [1], 2)
    assert not outbox.points_changed("h-1", "vm-1", [], [2], total=2)
    outbox.tell_points("h-1", "vm-1")
    (told,) = await outbox.next()
    assert ([point.cycle for point in told.points.points], told.points.changes) == ([2, 3], False)
    outbox.points_changed("h-1", "vm-1", [], [2], total=1)
    outbox.begin([])
    (told,) = await outbox.next()
    assert ([point.cycle for point in told.points.points], told.points.changes) == ([3], False)


async def test_what_did_not_change_is_not_told_again():
    outbox = Outbox()
    inventory = pb.Inventory(clouds=[pb.Cloud(name="gold")])
    for _ in range(2):
        outbox.inventory(pb.Inventory.FromString(inventory.SerializeToString()))
    (told,) = await outbox.next_paced()
    assert told.inventory.version == 1
    again = asyncio.ensure_future(outbox.next_paced())
    outbox.inventory(pb.Inventory.FromString(inventory.SerializeToString()))
    await asyncio.sleep(0)
    assert not again.done()
    outbox.inventory(pb.Inventory())
    assert (await again)[0].inventory.version == 2


async def test_a_new_session_is_told_all_state_and_the_results_that_are_not_stored():
    outbox = Outbox()
    outbox.inventory(pb.Inventory())
    outbox.status("h-1", types_pb2.ReplicationStatus(vm_id="vm-1"))
    outbox.points("h-1", "vm-1", [types_pb2.Point()])
    outbox.points("h-1", "vm-2", [])  # that there is none is news too
    outbox.result(commands_pb2.CommandResult(id="stored"))
    await outbox.next()
    await outbox.next_paced()
    outbox.begin([commands_pb2.CommandResult(id="open")])
    told = await outbox.next()
    assert kinds(told) == ["points", "points", "result"]
    assert told[-1].result.id == "open"
    assert kinds(await outbox.next_paced()) == ["inventory", "statistics"]


async def test_a_receipt_goes_before_its_result_and_progress_after_a_result_not_at_all():
    outbox = Outbox()
    outbox.progress(commands_pb2.CommandProgress(id="j-1.1@1", percent=99))
    outbox.result(commands_pb2.CommandResult(id="j-1.1@1"))
    outbox.received("j-1.1@1")
    assert kinds(await outbox.next()) == ["received", "result"]


async def test_statistics_of_a_machine_that_is_no_longer_assigned_are_dropped():
    outbox = Outbox()
    for vm_id in ("vm-1", "vm-2"):
        outbox.status("h-1", types_pb2.ReplicationStatus(vm_id=vm_id))
    outbox.keep("h-1", ["vm-2"])
    (told,) = await outbox.next_paced()
    assert [one.vm_id for one in told.statistics.statuses] == ["vm-2"]


async def test_many_statistics_go_out_in_messages_of_bounded_size():
    outbox = Outbox()
    for number in range(1200):
        outbox.status("h-1", types_pb2.ReplicationStatus(vm_id=f"vm-{number}"))
    assert [len(message.statistics.statuses) for message in await outbox.next_paced()] == [500, 500, 200]


async def test_a_result_that_comes_while_a_session_begins_is_told_in_it():
    outbox = Outbox()
    unstored = [commands_pb2.CommandResult(id="before")]  # as the journal had them
    outbox.result(commands_pb2.CommandResult(id="meanwhile"))
    outbox.begin(unstored)
    assert [message.result.id for message in await outbox.next()] == ["before", "meanwhile"]


async def test_points_of_a_vm_the_host_has_nothing_to_do_with_any_more_are_forgotten():
    outbox = Outbox()
    for vm in ("vm-1", "vm-2"):
        outbox.points("h-1", vm, [types_pb2.Point(cycle=1)])
    outbox.points("h-2", "vm-1", [types_pb2.Point(cycle=1)])
    outbox.keep("h-1", ["vm-2"])
    outbox.begin([])
    told = [(message.points.host_id, message.points.vm_id) for message in await outbox.next()]
    assert told == [("h-1", "vm-2"), ("h-2", "vm-1")]


async def test_a_host_cannot_tell_of_more_points_than_the_coordinator_can_be_told():
    outbox = Outbox()
    outbox.points("h-1", "vm-1", [types_pb2.Point(cycle=1)])
    large = [types_pb2.Point(cycle=cycle, name="n" * 1000_000) for cycle in (2, 3, 4, 5)]
    took = [
        outbox.points_changed("h-1", "vm-1", [point], [], total=number) for number, point in enumerate(large, start=2)
    ]
    assert took == [True, True, True, False]
    outbox.begin([])
    (told,) = await outbox.next()
    assert [point.cycle for point in told.points.points] == [1, 2, 3, 4]
