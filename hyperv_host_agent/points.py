"""Commands about recovery points: keep, name and lock one; check everything a replica holds, and mend it."""

from typing import Final

from hyperv_host_agent.commands import Call
from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.store.base import Finding
from hyperv_host_agent.targets import Targets, point_to_proto
from twinsite.api.types.v1.commands_pb2 import Damage

_MOST_TOLD: Final = 100


class Points:
    def __init__(self, replicas: Replicas, targets: Targets) -> None:
        self._replicas = replicas
        self._targets = targets

    async def mark_point(self, call: Call) -> None:
        order = call.command.mark_point
        call.settled = True
        held = await self._replicas.get(order.vm_id)
        point = await held.run(
            held.replica.mark,
            order.cycle,
            keep=order.keep if order.HasField("keep") else None,
            name=order.name if order.HasField("name") else None,
            lock_seconds=order.lock_seconds if order.HasField("lock_seconds") else None,
        )
        call.result.cycle = point.cycle
        call.result.point.CopyFrom(point_to_proto(order.vm_id, point))
        await self._targets.refresh(order.vm_id)

    async def verify_replica(self, call: Call) -> None:
        """At full speed, beside replication; what was mended before it was cancelled stays mended."""
        order, told = call.command.verify_replica, call.result.verified
        held = await self._replicas.get(order.vm_id)
        steps = await held.aside(held.replica.check, cycle=order.cycle, repair=order.repair)
        try:
            while (step := await held.aside(next, steps, None)) is not None:
                told.checked_bytes = step.done_bytes
                for finding in step.findings:
                    told.damaged_clusters += not finding.repaired
                    told.repaired_clusters += finding.repaired
                    told.wanted_clusters += finding.wanted
                    told.tried_clusters += finding.tried
                    if len(told.damage) < _MOST_TOLD:
                        told.damage.append(_to_proto(finding))
                call.progress_bytes(step.done_bytes, step.total_bytes, _sentence(told.damaged_clusters))
        finally:
            await self._targets.scrubbed(order.vm_id)


def _sentence(damaged: int) -> str:
    return f"check the replica; {damaged} damaged so far" if damaged else "check the replica"


def _to_proto(finding: Finding) -> Damage:
    return Damage(
        disk_id=finding.disk,
        file=finding.file,
        cluster=finding.cluster or 0,
        whole_file=finding.cluster is None,
        problem=finding.problem,
        repaired=finding.repaired,
        points=finding.points,
    )
