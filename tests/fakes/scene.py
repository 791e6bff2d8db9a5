"""Two connected sites with one VM, and the first steps taken, so that a test begins where it is interesting."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from coordinator.access import store
from coordinator.jobs import Job
from coordinator.store.engine import Database
from tests.fakes.clock import SetBackClock
from tests.fakes.control_plane import EMPTY, Admin, ControlPlane
from tests.fakes.identity_plane import Member, real_time
from tests.fakes.site import FakeHost, FakeSite, machine, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2

POLICY = types_pb2.Policy(frequency_seconds=30, additional_points=2, compression=True, delete_replica=True)


@dataclass
class Scene:
    state: Path
    database: Database
    clock: SetBackClock
    plane: ControlPlane
    owner: Member
    admin: Admin
    a: FakeSite
    b: FakeSite
    source: FakeHost
    target: FakeHost
    vm: types_pb2.Machine

    async def logged_in(self, *, ago: float) -> None:
        """As if every session began so many seconds ago. A real login could not: TLS reads the machine's clock."""
        began = self.plane.identity.forward.now() - ago
        async with self.database.write() as connection:
            await connection.execute(sa.update(store.sessions).values(created=began))

    async def pair(self) -> Job:
        request = admin_pb2.CreatePairRequest(source_cloud="gold-a", target_cloud="gold-b", policy=POLICY)
        return await self.plane.ended((await self.admin.pairs.Create(request)).job_id)

    async def begin_protect(self) -> str:
        """Paired, and the job waits in its initial replication; the job's id."""
        await self.pair()
        job_id = (await self.admin.machines.Protect(admin_pb2.ProtectRequest(name=self.vm.name))).job_id
        await until(lambda: self.a.assigned(self.source, self.vm.id) and self.b.assigned(self.target, self.vm.id))
        return job_id

    async def protect(self) -> Job:
        """Protected with one point of five seconds ago."""
        job_id = await self.begin_protect()
        self.commit(age=20, consistency="none")
        self.commit(age=5)
        self.a.state(self.vm.id, "source", initial_done_bytes=100, initial_total_bytes=100, last_cycle_seconds=1.0)
        job = await self.plane.ended(job_id)
        assert job.state == "succeeded", job
        return job

    def commit(self, *, age: float = 0.0, consistency: str = "crash") -> int:
        return self.b.commit(self.target, self.vm.id, self.clock.now() - age, consistency=consistency)

    async def show(self) -> admin_pb2.MachineView:
        return await self.admin.machines.Show(admin_pb2.ShowRequest(name=self.vm.name))

    async def protection(self) -> admin_pb2.Protection:
        return (await self.show()).protection

    async def points(self) -> list[int]:
        listed = await self.admin.points.List(admin_pb2.ShowRequest(name=self.vm.name))
        return [point.cycle for point in listed.points]

    async def ended(self, answer: admin_pb2.ActionResponse | admin_pb2.JobRef) -> Job:
        return await self.plane.ended(answer.job_id)

    async def ended_in_time(self, answer: admin_pb2.ActionResponse, *, step: float) -> Job:
        """The job when it is final, while `step` seconds pass again and again."""

        async def final() -> bool:
            self.clock.advance(step)
            return (await self.plane.jobs.get(answer.job_id)).final

        await until(final, seconds=30)
        return await self.plane.jobs.get(answer.job_id)

    async def audited(self, action: str) -> list[dict[str, str]]:
        """Facts of every record of an action, newest first."""
        return [dict(entry.facts) for entry in await self.plane.identity.audited() if entry.action == action]

    async def until_clouds(self, *names: str) -> None:
        async def there() -> bool:
            clouds = (await self.admin.clouds.List(EMPTY)).clouds
            return set(names) <= {cloud.name for cloud in clouds if cloud.hosts}

        await until(there)


@contextlib.asynccontextmanager
async def scene(state: Path, database: Database) -> AsyncIterator[Scene]:
    """Sites `vmm-a` (cloud gold-a, host a1, VM web01) and `vmm-b` (gold-b, b1), both connected; an owner logged in."""
    clock = real_time()
    async with ControlPlane.started(state, database, clock) as plane:
        a = FakeSite(plane.identity, await plane.identity.register("vmm-a"))
        b = FakeSite(plane.identity, await plane.identity.register("vmm-b"))
        vm = machine("web01")
        source = await a.host("a1", "gold-a", vm)
        target = await b.host("b1", "gold-b")
        owner = await plane.owner()
        async with plane.admin(owner) as admin, a.connected(), b.connected():
            made = Scene(state, database, clock, plane, owner, admin, a, b, source, target, vm)
            await made.until_clouds("gold-a", "gold-b")
            yield made
