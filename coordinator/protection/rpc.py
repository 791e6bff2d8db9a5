"""Admin services of pairs, VMs and recovery points: proto → values → service → proto."""

from typing import Any

import grpc

from coordinator.inventory.model import stamp
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.service import CloudView
from coordinator.protection.errors import PolicyMissing
from coordinator.protection.initial import Initial
from coordinator.protection.model import Pair, Phase
from coordinator.protection.pairs import Pairs as PairService
from coordinator.protection.policy import Policy
from coordinator.protection.seeds import Seeds
from coordinator.protection.service import Protections
from coordinator.protection.views import ProtectionView, VmView
from coordinator.recovery.marks import Mark, Marks
from coordinator.recovery.service import Recoveries
from coordinator.statistics import rpc as statistics_rpc
from coordinator.statistics.service import Statistics
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount

Context = grpc.aio.ServicerContext[Any, Any]


class Pairs(admin_pb2_grpc.PairsServicer):
    def __init__(self, pairs: PairService) -> None:
        self._pairs = pairs

    async def Create(self, request: admin_pb2.CreatePairRequest, context: Context) -> admin_pb2.JobRef:
        policy = Policy.from_proto(request.policy) if request.HasField("policy") else Policy()
        by = Mutation.of(context, "pair.create")
        return await self._pairs.create(by, request.source_cloud, request.target_cloud, policy, dry_run=request.dry_run)

    async def List(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.ListPairsResponse:
        return admin_pb2.ListPairsResponse(pairs=[_pair(*each) for each in await self._pairs.all()])

    async def Show(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.Pair:
        return _pair(*await self._pairs.one(request.name))

    async def Update(self, request: admin_pb2.UpdatePairRequest, context: Context) -> admin_pb2.ActionResponse:
        if not request.HasField("policy"):
            raise PolicyMissing
        by = Mutation.of(context, "pair.update", reason=request.reason)
        return await self._pairs.update(by, request.name, Policy.from_proto(request.policy), dry_run=request.dry_run)

    async def Remove(self, request: admin_pb2.RemoveRequest, context: Context) -> admin_pb2.RemoveResponse:
        by = Mutation.of(context, "pair.remove", reason=request.reason)
        return await self._pairs.remove(by, request.name, dry_run=request.dry_run)


class Machines(admin_pb2_grpc.MachinesServicer):
    def __init__(
        self, protections: Protections, recoveries: Recoveries, seeds: Seeds, marks: Marks, statistics: Statistics
    ) -> None:
        self._protections, self._recoveries, self._statistics = protections, recoveries, statistics
        self._seeds, self._marks = seeds, marks

    async def List(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.ListMachinesResponse:
        return admin_pb2.ListMachinesResponse(machines=[_machine(view) for view in await self._protections.all()])

    async def Show(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.MachineView:
        return _machine(await self._protections.one(request.name))

    async def Stats(self, request: admin_pb2.StatsRequest, context: Context) -> admin_pb2.StatsResponse:
        return await statistics_rpc.stats(self._statistics, request)

    async def Explain(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.ExplainResponse:
        return await statistics_rpc.explain(self._statistics, request)

    async def Protect(self, request: admin_pb2.ProtectRequest, context: Context) -> admin_pb2.ActionResponse:
        return await self._protections.protect(
            Mutation.of(context, "vm.protect"),
            request.name,
            pair=request.pair,
            target_host=request.target_host,
            initial=Initial.from_proto(request),
            dry_run=request.dry_run,
            ask_hosts=request.ask_hosts,
        )

    async def StartInitial(self, request: admin_pb2.MachineActionRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.start-initial", reason=request.reason)
        return await self._protections.start_initial(by, request.name, dry_run=request.dry_run)

    async def Unprotect(self, request: admin_pb2.MachineActionRequest, context: Context) -> admin_pb2.ActionResponse:
        return await self._protections.unprotect(
            Mutation.of(context, "vm.unprotect", reason=request.reason),
            request.name,
            keep_replica=request.keep_replica,
            delete_replica=request.delete_replica,
            dry_run=request.dry_run,
        )

    async def Pause(self, request: admin_pb2.MachineActionRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.pause", reason=request.reason)
        return await self._protections.pause(by, request.name, paused=True, dry_run=request.dry_run)

    async def Resume(self, request: admin_pb2.MachineActionRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.resume", reason=request.reason)
        return await self._protections.pause(by, request.name, paused=False, dry_run=request.dry_run)

    async def Test(self, request: admin_pb2.TestRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.test")
        return await self._recoveries.test(by, request.name, cycle=request.cycle, dry_run=request.dry_run)

    async def TestCleanup(self, request: admin_pb2.MachineActionRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.test-cleanup", reason=request.reason)
        return await self._recoveries.clean_up(by, request.name, dry_run=request.dry_run)

    async def Failover(self, request: admin_pb2.FailoverRequest, context: Context) -> admin_pb2.ActionResponse:
        return await self._recoveries.fail_over(
            Mutation.of(context, "vm.failover", reason=request.reason),
            request.name,
            cycle=request.cycle,
            shutdown_source=request.shutdown_source,
            dry_run=request.dry_run,
        )

    async def Verify(self, request: admin_pb2.VerifyRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.verify")
        return await self._marks.verify(
            by, request.name, cycle=request.cycle, repair=request.repair, dry_run=request.dry_run
        )

    async def SeedExport(self, request: admin_pb2.SeedRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.seed-export", reason=request.reason)
        return await self._seeds.export(by, request.name, request.path, dry_run=request.dry_run)

    async def SeedImport(self, request: admin_pb2.SeedRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "vm.seed-import", reason=request.reason)
        return await self._seeds.import_(by, request.name, request.path, dry_run=request.dry_run)


class RecoveryPoints(admin_pb2_grpc.RecoveryPointsServicer):
    def __init__(self, recoveries: Recoveries, marks: Marks) -> None:
        self._recoveries, self._marks = recoveries, marks

    async def List(self, request: admin_pb2.ShowRequest, context: Context) -> admin_pb2.ListPointsResponse:
        return admin_pb2.ListPointsResponse(points=await self._recoveries.points(request.name))

    async def Mark(self, request: admin_pb2.MarkPointRequest, context: Context) -> admin_pb2.ActionResponse:
        by = Mutation.of(context, "point.mark", reason=request.reason)
        return await self._marks.mark(by, request.vm, Mark.from_proto(request), dry_run=request.dry_run)


def _pair(pair: Pair, source: CloudView | None, target: CloudView | None, protected: int) -> admin_pb2.Pair:
    names = pair.name.partition(":")
    return admin_pb2.Pair(
        id=pair.id,
        name=pair.name,
        source_cloud=source.name if source is not None else names[0],
        target_cloud=target.name if target is not None else names[2],
        source_server=source.server_name if source is not None else "",
        target_server=target.server_name if target is not None else "",
        policy=pair.policy.to_proto(),
        vms_protected=protected,
        created=stamp(pair.created),
    )


def _machine(view: VmView) -> admin_pb2.MachineView:
    host = view.machine.host
    return admin_pb2.MachineView(
        id=view.id,
        name=view.name,
        host=host.name,
        cloud=view.cloud,
        server=host.server_name,
        machine=view.machine.machine.document,
        protection=_protection(view.protection) if view.protection is not None else None,
        last_seen=stamp(view.machine.last_seen),
    )


def _protection(view: ProtectionView) -> admin_pb2.Protection:
    item = view.item
    made = admin_pb2.Protection(
        pair=view.pair.name,
        target_host=view.target_host,
        term=item.term,
        state=view.health.state,
        health=view.health.health,
        reason=view.health.reason,
        rpo_known=view.rpo_age is not None,
        rpo_age_seconds=view.rpo_age or 0.0,
        frequency_seconds=view.pair.policy.frequency_seconds,
        newest_instant=stamp(view.newest_instant),
        newest_cycle=view.newest.cycle if view.newest is not None else 0,
        points=view.points,
        owner_host=view.owner_host,
        tests=view.tests,
        protected_since=stamp(item.created),
        failover_cycle=item.failover_cycle if item.phase is Phase.FAILED_OVER else 0,
        initial_start=stamp(view.initial_start),
        cycles=view.done.cycles,
        changed_bytes=view.done.changed_bytes,
        wire_bytes=view.done.wire_bytes,
    )
    source, target = view.source.status, view.target.status
    if source is not None:
        made.initial_done_bytes = source.initial_done_bytes
        made.initial_total_bytes = source.initial_total_bytes
        made.last_cycle_seconds = source.last_cycle_seconds
        made.pending_bytes = source.pending_bytes
        made.late, made.note = source.late, source.note
        made.rate_bytes_per_second = source.rate_bytes_per_second
        if source.HasField("last_causes"):
            made.last_causes.CopyFrom(source.last_causes)
    if target is not None:
        made.newest_cycle = max(made.newest_cycle, target.committed_cycle if view.points else 0)
        # Points and statuses are told apart, and the first point may be heard of before the status that goes with it.
        made.awaiting_seed = target.awaiting_seed and not view.points
        if target.HasField("scrub"):
            made.scrub.CopyFrom(target.scrub)
    return made


def mounts(
    pairs: PairService,
    protections: Protections,
    recoveries: Recoveries,
    seeds: Seeds,
    marks: Marks,
    statistics: Statistics,
) -> list[Mount]:
    pair, point = Pairs(pairs), RecoveryPoints(recoveries, marks)
    machine = Machines(protections, recoveries, seeds, marks, statistics)
    services = admin_pb2.DESCRIPTOR.services_by_name
    return [
        Mount(services["Pairs"], lambda to: admin_pb2_grpc.add_PairsServicer_to_server(pair, to)),
        Mount(services["Machines"], lambda to: admin_pb2_grpc.add_MachinesServicer_to_server(machine, to)),
        Mount(services["RecoveryPoints"], lambda to: admin_pb2_grpc.add_RecoveryPointsServicer_to_server(point, to)),
    ]
