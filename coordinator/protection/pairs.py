"""Cloud pairs: use cases."""

import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory import service as inventory
from coordinator.inventory.model import resolve
from coordinator.inventory.mutation import Mutation
from coordinator.inventory.service import CloudView
from coordinator.inventory.store import PRESENT
from coordinator.jobs import Jobs, TaskPlan
from coordinator.protection import store
from coordinator.protection.errors import (
    CloudHasNoHost,
    CloudIsMissing,
    CloudIsPaired,
    PairInUse,
    PairNotReady,
    SameCloud,
)
from coordinator.protection.model import Pair, Policy
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.clock import Clock


class Pairs:
    """`jobs` runs the checks of a new pair; register coordinator.protection.steps first."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database, self._clock, self._jobs = database, clock, jobs

    async def create(
        self, by: Mutation, source: str, target: str, policy: Policy, *, dry_run: bool
    ) -> admin_pb2.JobRef:
        """Take the two clouds and enqueue the checks; with `dry_run` only what can be wrong is raised."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.JobRef, now=now)
            if before is not None:
                return before
            clouds = await inventory.clouds(connection)
            source_cloud = resolve("cloud", source, clouds.values(), qualifier="server")
            target_cloud = resolve("cloud", target, clouds.values(), qualifier="server")
            if source_cloud.id == target_cloud.id:
                raise SameCloud(source_cloud.name)
            await free(connection, source_cloud, target_cloud)
            usable(source_cloud)
            usable(target_cloud)
            if dry_run:
                return admin_pb2.JobRef()
            pair_id = f"p-{secrets.token_hex(6)}"
            name = f"{source_cloud.name}:{target_cloud.name}"
            job_id = await self._jobs.submit(
                connection,
                kind="pair.create",
                target=f"pair/{name}",
                tasks=[
                    TaskPlan(name="Check source cloud", kind="pair.check", args={"cloud": source_cloud.id}, stage=1),
                    TaskPlan(name="Check target cloud", kind="pair.check", args={"cloud": target_cloud.id}, stage=1),
                    TaskPlan(name="Configure the pair", kind="pair.activate", args={"pair": pair_id}, stage=2),
                    TaskPlan(name="Settle", kind="pair.settle", args={"pair": pair_id}, stage=3, always=True),
                ],
                created_by=by.actor,
                request_id=by.request_id,
                result={"pair": name},
            )
            await store.insert_pair(
                connection,
                Pair(
                    id=pair_id,
                    name=name,
                    source_cloud=source_cloud.id,
                    target_cloud=target_cloud.id,
                    policy=policy,
                    active=False,
                    job_id=job_id,
                    created=now,
                ),
            )
            facts = {"frequency_seconds": str(policy.frequency_seconds), "points": str(policy.additional_points)}
            return await by.done(
                connection, f"pair/{name}", admin_pb2.JobRef(job_id=job_id), now=now, facts={**facts, "job": job_id}
            )

    async def remove(self, by: Mutation, name: str, *, dry_run: bool) -> admin_pb2.RemoveResponse:
        """Raises PairInUse while VMs are protected through it, PairNotReady while its job runs."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.RemoveResponse, now=now)
            if before is not None:
                return before
            pair = resolve("pair", name, await store.list_pairs(connection))
            using = await store.list_protected(connection, pair_id=pair.id)
            if using:
                raise PairInUse(pair.name, [item.vm_name for item in using])
            if not pair.active:
                raise PairNotReady(pair.name, pair.job_id)
            source, _, target = pair.name.partition(":")
            answer = admin_pb2.RemoveResponse(
                consequences=[f"VMs of cloud {source} cannot be protected into cloud {target} any more"]
            )
            if dry_run:
                return answer
            await store.delete_pair(connection, pair.id)
            return await by.done(connection, f"pair/{pair.name}", answer, now=now)

    async def all(self) -> list[tuple[Pair, CloudView | None, CloudView | None, int]]:
        """(pair, source cloud, target cloud, number of protected VMs), by name."""
        async with self._database.read() as connection:
            clouds = await inventory.clouds(connection)
            protected = await store.list_protected(connection)
            return [
                (
                    pair,
                    clouds.get(pair.source_cloud),
                    clouds.get(pair.target_cloud),
                    sum(item.pair_id == pair.id for item in protected),
                )
                for pair in await store.list_pairs(connection)
            ]

    async def one(self, name: str) -> tuple[Pair, CloudView | None, CloudView | None, int]:
        """Raises Unknown, Ambiguous."""
        found = {pair.id: (pair, source, target, count) for pair, source, target, count in await self.all()}
        return found[resolve("pair", name, [each[0] for each in found.values()]).id]


async def free(connection: AsyncConnection, *clouds: CloudView) -> None:
    """Raises CloudIsPaired."""
    for pair in await store.list_pairs(connection):
        for cloud in clouds:
            if cloud.id in (pair.source_cloud, pair.target_cloud):
                raise CloudIsPaired(cloud.name, pair.name)


def usable(cloud: CloudView) -> None:
    """A cloud takes part only if its server reports it with a host group that has a host."""
    if cloud.cloud.state != PRESENT:
        raise CloudIsMissing(cloud.name)
    if not cloud.hosts:
        raise CloudHasNoHost(cloud.name)


async def roles(connection: AsyncConnection) -> Mapping[str, tuple[str, str]]:
    """(role, name of the pair) of every paired cloud, by its id."""
    found = {}
    for pair in await store.list_pairs(connection):
        found[pair.source_cloud] = ("primary", pair.name)
        found[pair.target_cloud] = ("target", pair.name)
    return found


async def owners(connection: AsyncConnection) -> Mapping[str, str]:
    """Hosts that protected VMs run on by right, by VM id."""
    return {item.vm_id: item.owner_host for item in await store.list_protected(connection)}


async def forget_hosts(connection: AsyncConnection, host_ids: Sequence[str]) -> None:
    """Hosts of a removed server are told nothing any more."""
    await store.forget_hosts(connection, host_ids)
