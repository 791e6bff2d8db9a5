"""The replicas this host receives: what is told of them, what is kept of them, and the VMs failed over from them."""

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from hyperv_host_agent import blocking, wire
from hyperv_host_agent.assignments import ByVm
from hyperv_host_agent.hypervisors.base import Hypervisor, MachineMissing
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.promotions import Promotions
from hyperv_host_agent.reception import Receptions
from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.replication.ownership import OlderTerm
from hyperv_host_agent.store.base import Budget, PointInfo
from twinsite import retention, status
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.errors import NotFound, TwinsiteError
from twinsite.extents import CLUSTER

_log = structlog.get_logger()
_MAINTAIN_SECONDS: Final = 2.0  # between two rounds over the replicas that got something new
_RETRY_SECONDS: Final = 30.0


class Targets:
    """Commits and failures come from the receptions; `run` does the housekeeping."""

    def __init__(
        self,
        replicas: Replicas,
        promotions: Promotions,
        *,
        hypervisor: Hypervisor,
        outbox: Outbox,
        clock: Clock,
        maintain_rate: int,
    ) -> None:
        """`maintain_rate`: bytes per second that merging may write, for all replicas together."""
        self._replicas = replicas
        self._promotions = promotions
        self._hypervisor = hypervisor
        self._outbox = outbox
        self._clock = clock
        self._maintain_rate = maintain_rate
        self._assigned: ByVm = {}
        self._statuses: dict[str, types_pb2.ReplicationStatus] = {}
        self._new: set[str] = set()  # replicas with something to keep house of
        self._without_room: set[str] = set()  # replicas that were logged as having none to merge in
        self._some = asyncio.Event()
        self.receptions = Receptions(replicas, clock, on_commit=self._committed, on_failure=self._failed)

    async def apply(self, assignments: ByVm) -> None:
        """Repeatable. A replica without an assignment stays: only RemoveReplica deletes."""
        self._assigned = {
            vm_id: assignment for vm_id, assignment in assignments.items() if assignment.role == types_pb2.ROLE_TARGET
        }
        for vm_id in set(self._statuses) - set(self._assigned):
            del self._statuses[vm_id]
            self._outbox.forget(vm_id)
        for vm_id, assignment in self._assigned.items():
            try:
                # The empty replica was made by PrepareReplica; a store that lost it starts over.
                await self._replicas.create(vm_id, term=assignment.term)
                reception = await self.receptions.get(vm_id)
                await reception.raise_term(assignment.term)
            except OlderTerm as error:
                _log.warning("assignment_of_older_term", vm_id=vm_id, reason=str(error))
            except TwinsiteError as error:
                self._failed(vm_id, error)
            await self.refresh(vm_id)
            await self.scrubbed(vm_id)  # a check may be a day away: damage that is known is not forgotten till then

    def source_of(self, vm_id: str) -> str:
        """The host it is replicated from; empty: nobody has said."""
        assignment = self._assigned.get(vm_id)
        return assignment.peer_host_id if assignment is not None else ""

    async def refresh(self, vm_id: str) -> None:
        """Tell the provider what the replica holds now."""
        try:
            held = await self._replicas.get(vm_id)
            replica = held.replica
            # At once: a point that is committed between two looks would be told, and then told to be gone.
            points, lost, state = await held.run(lambda: (replica.points(), replica.lost(), replica.state()))
        except NotFound:
            return
        except TwinsiteError as error:
            self._failed(vm_id, error)
            return
        shown = self._status(vm_id)
        shown.term = state.term
        shown.committed_cycle = state.committed.number if state.committed is not None else 0
        shown.awaiting_seed = state.awaiting_seed
        recoverable = [point for point in points if point.recoverable]
        if recoverable:
            shown.committed_instant.CopyFrom(wire.timestamp(recoverable[-1].instant))
        self._show(vm_id, recoverable=bool(recoverable))
        told = sorted([*recoverable, *lost], key=lambda point: point.cycle) if lost else recoverable
        self._outbox.points(vm_id, [point_to_proto(vm_id, point) for point in told])

    async def scrubbed(self, vm_id: str) -> None:
        """Tell how far the check of the replica is."""
        if vm_id not in self._statuses:
            return
        try:
            held = await self._replicas.get(vm_id)
            state = await held.aside(held.replica.scrubbed)
        except TwinsiteError:
            return  # removed meanwhile, or `refresh` says why it cannot be read
        shown = self._status(vm_id)
        shown.scrub.Clear()
        if state.completed is not None:
            shown.scrub.completed.CopyFrom(wire.timestamp(state.completed))
        shown.scrub.checked_bytes = state.checked_bytes
        shown.scrub.total_bytes = state.total_bytes
        shown.scrub.damaged_clusters = state.damaged
        shown.scrub.repaired_clusters = state.repaired
        shown.scrub.tried_clusters = state.tried
        self._show(vm_id, recoverable=shown.HasField("committed_instant"))

    async def promoted(self) -> None:
        """Bring up the VMs this host owns since a failover; at the start of the agent. Runs until all are up."""
        waiting = set(self._promotions.ids())
        while waiting:
            for vm_id in sorted(waiting):
                assignment = self._assigned.get(vm_id)
                if assignment is not None and assignment.fenced:
                    waiting.discard(vm_id)
                    continue
                try:
                    await blocking.finish(self._hypervisor.start, vm_id)
                except MachineMissing:
                    # The failover was cut before the VM was defined; its command is executed again.
                    waiting.discard(vm_id)
                except TwinsiteError as error:
                    _log.error("start_failed", vm_id=vm_id, reason=str(error), cause=error.text("cause"))
                else:
                    waiting.discard(vm_id)
                    _log.info("failed_over_vm_runs", vm_id=vm_id)
            if waiting:
                await self._clock.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Retention and maintenance after commits; ends only when it is cancelled."""
        wrote: set[str] = set()  # in the round before: the others' turn comes first
        allowed, excess = self._maintain_rate * _MAINTAIN_SECONDS, 0.0  # bytes in a round, and beyond it so far
        while True:
            await self._some.wait()
            self._some.clear()
            new, self._new = self._new, set()
            budget = Budget(max(0.0, allowed - excess))
            order, wrote = sorted(new, key=lambda vm_id: (vm_id in wrote, vm_id)), set()
            for vm_id in order:
                before = budget.spent
                await self._maintain(vm_id, budget)
                if budget.spent > before:
                    wrote.add(vm_id)
            excess = max(0.0, excess + budget.spent - allowed)
            await self._clock.sleep(_MAINTAIN_SECONDS)

    def forget(self, vm_id: str) -> None:
        self._statuses.pop(vm_id, None)
        self._new.discard(vm_id)
        self._without_room.discard(vm_id)
        self._outbox.forget(vm_id)

    def _committed(self, vm_id: str, point: PointInfo) -> None:
        shown = self._status(vm_id)
        shown.cycles += 1
        shown.changed_bytes += point.clusters * CLUSTER
        shown.wire_bytes += point.stored_bytes
        shown.committed_cycle = point.cycle
        shown.term = point.term
        if point.recoverable:
            shown.committed_instant.CopyFrom(wire.timestamp(point.instant))
            self._outbox.one_more_point(vm_id, point_to_proto(vm_id, point))
        shown.ClearField("reason")
        self._show(vm_id, recoverable=shown.HasField("committed_instant"))
        self._wants(vm_id)

    def _failed(self, vm_id: str, error: TwinsiteError) -> None:
        _log.warning("replica_blocked", vm_id=vm_id, reason=str(error), cause=error.text("cause"))
        self._status(vm_id).reason.CopyFrom(status.to_proto(error))
        self._show(vm_id, recoverable=self._status(vm_id).HasField("committed_instant"))
        self._wants(vm_id)  # room is what maintenance makes

    def _wants(self, vm_id: str) -> None:
        self._new.add(vm_id)
        self._some.set()

    async def _maintain(self, vm_id: str, budget: Budget) -> None:
        try:
            held = await self._replicas.get(vm_id)
            points = await held.run(held.replica.points)
            keep, up_to = self._keep(vm_id, points), max((point.cycle for point in points), default=0)
            lost = await held.run(held.replica.lost)
            if lost:  # they take nobody's slot, and are told for as long as they would have had their own
                every = self._keep(vm_id, [*points, *(replace(point, complete=True) for point in lost)])
                keep += [point.cycle for point in lost if point.cycle in every]
            report = await held.beside(held.replica.maintain, keep=keep, up_to=up_to, budget=budget)
            if report.no_room is not None and vm_id not in self._without_room:
                _log.warning("maintenance_without_room", vm_id=vm_id, reason=str(report.no_room))
            (self._without_room.add if report.no_room else self._without_room.discard)(vm_id)
            if not report.finished:
                self._wants(vm_id)
        except NotFound:
            return  # it was removed
        except TwinsiteError as error:
            _log.warning("maintenance_failed", vm_id=vm_id, reason=str(error), cause=error.text("cause"))
        except Exception:  # noqa: BLE001  # one replica's trouble must not stop the others' housekeeping
            _log.exception("maintenance_broke", vm_id=vm_id)
        await self.refresh(vm_id)

    def _keep(self, vm_id: str, points: list[PointInfo]) -> list[int]:
        """What the policy keeps; everything while nobody said what that is."""
        assignment = self._assigned.get(vm_id)
        if assignment is None:
            return [point.cycle for point in points]
        policy = assignment.policy
        return retention.keep(
            [
                retention.KeptPoint(point.cycle, point.instant, point.recoverable, pinned=_stays(point))
                for point in points
            ],
            additional=policy.additional_points,
            tiers=[retention.Tier(tier.every_seconds, tier.for_seconds) for tier in policy.tiers],
            frequency=policy.frequency_seconds,
        )

    def _status(self, vm_id: str) -> types_pb2.ReplicationStatus:
        if vm_id not in self._statuses:
            self._statuses[vm_id] = types_pb2.ReplicationStatus(vm_id=vm_id, role=types_pb2.ROLE_TARGET)
        return self._statuses[vm_id]

    def _show(self, vm_id: str, *, recoverable: bool) -> None:
        shown = self._status(vm_id)
        assignment = self._assigned.get(vm_id)
        if self._promotions.has(vm_id):
            shown.state = types_pb2.REPLICATION_STATE_FAILED_OVER
        elif assignment is not None and assignment.paused:
            shown.state = types_pb2.REPLICATION_STATE_PAUSED
        elif shown.HasField("reason"):
            shown.state = types_pb2.REPLICATION_STATE_BLOCKED
        elif recoverable:
            shown.state = types_pb2.REPLICATION_STATE_REPLICATING
        else:
            shown.state = (
                types_pb2.REPLICATION_STATE_INITIAL if shown.committed_cycle else types_pb2.REPLICATION_STATE_WAITING
            )
        fresh = types_pb2.ReplicationStatus()
        fresh.CopyFrom(shown)
        self._outbox.replication(fresh)


def _stays(point: PointInfo) -> bool:
    """Whether retention has no say in it."""
    return bool(point.pinned_by) or point.kept or point.locked_until is not None


def point_to_proto(vm_id: str, point: PointInfo) -> types_pb2.Point:
    """A recovery point as it is told."""
    made = types_pb2.Point(
        vm_id=vm_id,
        cycle=point.cycle,
        consistency=point.consistency,
        term=point.term,
        changed_bytes=point.clusters * CLUSTER,
        stored_bytes=point.stored_bytes,
        pinned_by=", ".join(point.pinned_by),
        name=point.name,
        kept=point.kept,
        damaged_clusters=point.damaged,
        lost=point.lost,
    )
    made.instant.CopyFrom(wire.timestamp(point.instant))
    if point.locked_until is not None:
        made.locked_until.CopyFrom(wire.timestamp(point.locked_until))
    return made
