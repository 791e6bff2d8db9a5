"""What a provider is told, and when."""

from hyperv_host_agent.outbox import Outbox
from twinsite.api.types.v1 import types_pb2


async def test_a_committed_point_is_told_at_once_and_alone():
    outbox = Outbox()
    outbox.points("vm", [types_pb2.Point(vm_id="vm", cycle=7)])
    await outbox.next()
    outbox.one_more_point("vm", types_pb2.Point(vm_id="vm", cycle=8))
    (told,) = await outbox.next()
    assert [point.cycle for point in told.points.points] == [8]
    assert (told.points.changes, told.points.total) == (True, 2)
    outbox.points("vm", [types_pb2.Point(vm_id="vm", cycle=8, name="kept")])
    outbox.points("vm", [types_pb2.Point(vm_id="vm", cycle=8, name="named")])
    (told,) = await outbox.next()  # nobody is told what it was in between
    assert [(point.cycle, point.name) for point in told.points.points] == [(8, "named")]
    assert (list(told.points.gone), told.points.total) == ([7], 1)
    outbox.tell_points("vm")
    (told,) = await outbox.next()
    assert ([point.cycle for point in told.points.points], told.points.changes) == ([8], False)


async def test_a_new_session_and_the_end_of_a_replica_are_told_whole():
    outbox = Outbox()
    outbox.points("vm", [types_pb2.Point(vm_id="vm", cycle=7)])
    await outbox.next()
    outbox.begin([])
    (told,) = [message for message in await outbox.next() if message.HasField("points")]
    assert ([point.cycle for point in told.points.points], told.points.changes) == ([7], False)
    outbox.forget("vm")
    (told,) = await outbox.next()
    assert (list(told.points.points), told.points.changes) == ([], False)
