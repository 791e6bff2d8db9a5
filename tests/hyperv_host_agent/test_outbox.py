"""What a provider is told, and when."""

from hyperv_host_agent.outbox import Outbox
from twinsite.api.types.v1 import types_pb2


async def test_a_committed_point_is_told_at_once_with_those_before_it():
    outbox = Outbox()
    outbox.points("vm", [types_pb2.Point(vm_id="vm", cycle=7)])
    await outbox.next()
    outbox.one_more_point("vm", types_pb2.Point(vm_id="vm", cycle=8))
    (told,) = await outbox.next()
    assert [point.cycle for point in told.points.points] == [7, 8]
