"""A whole coordinator behind real ports, less its program: identity, jobs, inventory, protection, recovery, status."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from coordinator.inventory import rpc as inventory_rpc
from coordinator.inventory.link import Sessions
from coordinator.inventory.servers import Servers
from coordinator.inventory.service import Inventory
from coordinator.inventory.sites import Sites
from coordinator.jobs import Job, Jobs
from coordinator.protection import pairs as pairing
from coordinator.protection import rpc as protection_rpc
from coordinator.protection import steps as protection_steps
from coordinator.protection.desired import Desired
from coordinator.protection.pairs import Pairs
from coordinator.protection.reports import Reports
from coordinator.protection.seeds import Seeds
from coordinator.protection.service import Protections
from coordinator.recovery import steps as recovery_steps
from coordinator.recovery.marks import Marks
from coordinator.recovery.service import Recoveries
from coordinator.statistics.service import Statistics
from coordinator.status import rpc as status_rpc
from coordinator.status.service import StatusService
from coordinator.store.engine import Database
from tests.fakes.clock import SetBackClock
from tests.fakes.identity_plane import IdentityPlane, Member
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.channel import Channel
from twinsite.server import Mount


@dataclass
class Admin:
    """Stubs of one logged-in user."""

    channel: Channel
    pairs: "admin_pb2_grpc.PairsAsyncStub"
    machines: "admin_pb2_grpc.MachinesAsyncStub"
    points: "admin_pb2_grpc.RecoveryPointsAsyncStub"
    servers: "admin_pb2_grpc.ServersAsyncStub"
    hosts: "admin_pb2_grpc.HostsAsyncStub"
    clouds: "admin_pb2_grpc.CloudsAsyncStub"
    status: "admin_pb2_grpc.StatusAsyncStub"


@dataclass
class ControlPlane:
    identity: IdentityPlane
    jobs: Jobs
    reports: Reports
    statistics: Statistics

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, state: Path, database: Database, clock: SetBackClock) -> AsyncIterator["ControlPlane"]:
        """Start it again with the same folder and database, and it is the same coordinator after a restart."""
        jobs = Jobs(database, clock)
        made: list[tuple[Reports, Statistics]] = []

        def mounts(plane: IdentityPlane) -> list[Mount]:
            desired = Desired(plane.authority.vault, plane.authority.signer, clock)
            protection_steps.Steps(jobs, desired).register()
            recovery_steps.Steps(jobs, desired).register()
            seeds, marks = Seeds(database, clock, jobs), Marks(database, clock, jobs)
            seeds.register()
            marks.register()
            inventory = Inventory(database, clock)
            reports = Reports(database, clock, desired)

            async def vault_name() -> str:
                return plane.vault_name

            servers = Servers(database, clock, plane.members, pairing)
            protections = Protections(database, clock, jobs, desired)
            statistics = Statistics(database, clock, protections)
            made.append((reports, statistics))
            return [
                *inventory_rpc.mounts(
                    Sessions(inventory, reports, jobs, statistics, clock, vault_name), servers, Sites(database, pairing)
                ),
                *protection_rpc.mounts(
                    Pairs(database, clock, jobs, desired),
                    protections,
                    Recoveries(database, clock, jobs),
                    seeds,
                    marks,
                    statistics,
                ),
                *status_rpc.mounts(StatusService(clock, servers, protections, jobs, vault_name)),
            ]

        async with IdentityPlane.started(state, database, clock, more=mounts) as plane:
            await Inventory(database, clock).start()
            await jobs.start()
            try:
                yield cls(plane, jobs, *made[0])
            finally:
                await jobs.stop()

    async def owner(self) -> Member:
        return await self.identity.user("root", "owner")

    @contextlib.asynccontextmanager
    async def admin(self, member: Member) -> AsyncIterator[Admin]:
        async with self.identity.dial(member) as channel:
            yield Admin(
                channel,
                admin_pb2_grpc.PairsStub(channel),
                admin_pb2_grpc.MachinesStub(channel),
                admin_pb2_grpc.RecoveryPointsStub(channel),
                admin_pb2_grpc.ServersStub(channel),
                admin_pb2_grpc.HostsStub(channel),
                admin_pb2_grpc.CloudsStub(channel),
                admin_pb2_grpc.StatusStub(channel),
            )

    async def ended(self, job_id: str, *, seconds: float = 30.0) -> Job:
        """The job when it is final."""
        async with asyncio.timeout(seconds):
            async for job in self.jobs.changes(job_id):
                last = job
        return last


EMPTY = admin_pb2.Empty()
