"""The statistics part of the service Machines: proto → values → service → proto."""

from coordinator.inventory.model import stamp
from coordinator.statistics.model import CAUSES, DEFAULT_SPAN, Row
from coordinator.statistics.service import Statistics
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2


async def stats(statistics: Statistics, request: admin_pb2.StatsRequest) -> admin_pb2.StatsResponse:
    """Raises Unknown, NoVmButPair, Ambiguous, SpanTooShort, SpanTooLong."""
    find = statistics.of_pair if request.pair else statistics.of_vm
    span = request.since_seconds if request.HasField("since_seconds") else DEFAULT_SPAN
    series = await find(request.name, span)
    return admin_pb2.StatsResponse(
        rows=[_row(row) for row in series.rows], protected_since=stamp(series.protected_since), vms=series.vms
    )


async def explain(statistics: Statistics, request: admin_pb2.ShowRequest) -> admin_pb2.ExplainResponse:
    """Raises Unknown, Ambiguous."""
    found = await statistics.explain(request.name)
    return admin_pb2.ExplainResponse(verdict=found.verdict, facts=found.facts, remedies=found.remedies)


def _row(row: Row) -> admin_pb2.StatsRow:
    found = row.measured
    return admin_pb2.StatsRow(
        start=stamp(row.start),
        resolution_seconds=row.resolution,
        cycles=found.cycles,
        missed=found.missed,
        failures=found.failures,
        changed_bytes=found.changed_bytes,
        content_bytes=found.content_bytes,
        wire_bytes=found.wire_bytes,
        rpo_max_seconds=found.rpo_max_seconds,
        seconds_max=found.seconds_max,
        seconds_sum=found.seconds_sum,
        causes=types_pb2.Causes(**{name: getattr(found, name) for name in CAUSES}),
        disks=[types_pb2.DiskChange(disk_id=disk, changed_bytes=count) for disk, count in sorted(found.disks.items())],
    )
