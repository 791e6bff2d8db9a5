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
from coordinator.protection.desired import Desired
from coordinator.protection.errors import (
    CloudHasNoHost,
    CloudIsMissing,
    CloudIsPaired,
    PairInUse,
    PairNotReady,
    SameCloud,
)
from coordinator.protection.model import Pair, Protected
from coordinator.protection.policy import Policy, changes, doubts, words
from coordinator.protection.retention import would_go
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.clock import Clock
from twinsite.units import count


class Pairs:
    """`jobs` runs the checks of a new pair; register coordinator.protection.steps first. `desired` tells hosts of
    a changed policy.
    """

    def __init__(self, database: Database, clock: Clock, jobs: Jobs, desired: Desired) -> None:
        self._database, self._clock, self._jobs, self._desired = database, clock, jobs, desired

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
                return admin_pb2.JobRef(warnings=doubts(policy))
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
            facts = {what.replace(" ", "_"): becomes for what, becomes in words(policy)} | {"job": job_id}
            answer = admin_pb2.JobRef(job_id=job_id, warnings=doubts(policy))
            return await by.done(connection, f"pair/{name}", answer, now=now, facts=facts)

    async def update(self, by: Mutation, name: str, policy: Policy, *, dry_run: bool) -> admin_pb2.ActionResponse:
        """Make this the policy of all VMs of the pair, at once. Raises Unknown, Ambiguous, PairNotReady."""
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.alone(connection)
            before = await by.repeated(connection, admin_pb2.ActionResponse, now=now)
            if before is not None:
                return before
            pair = resolve("pair", name, await store.list_pairs(connection))
            if not pair.active:
                raise PairNotReady(pair.name, pair.job_id)
            differing = changes(pair.policy, policy)
            if not differing:
                return admin_pb2.ActionResponse(warnings=[f"nothing was changed: pair {pair.name} has this policy"])
            using = await store.list_protected(connection, pair_id=pair.id)
            answer = admin_pb2.ActionResponse(
                consequences=[f"{what}: {was} → {becomes}" for what, was, becomes in differing],
                warnings=doubts(policy),
            )
            if using:
                answer.consequences.append(f"it holds for {count(len(using), 'protected VM')} at once")
                answer.consequences.extend(await _points_that_go(connection, using, policy, now))
            if dry_run:
                return answer
            await store.set_policy(connection, pair.id, policy)
            await self._desired.publish(
                connection, {host for item in using for host in (item.source_host, item.target_host)}
            )
            facts = {what.replace(" ", "_"): f"{was} → {becomes}" for what, was, becomes in differing}
            await by.done(connection, f"pair/{pair.name}", answer, now=now, facts=facts)
        self._desired.changed()
        return answer

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


async def _points_that_go(
    connection: AsyncConnection, using: Sequence[Protected], policy: Policy, now: float
) -> list[str]:
    """A sentence for each VM that has points the policy does not keep."""
    found = []
    for item in using:
        known = [point for point in await store.list_points(connection, item.vm_id) if not point.lost]
        going = would_go(known, policy, now=now)
        if going:
            some = f"up to {len(going)} of {count(len(known), 'point')}"
            found.append(f"{some} of {item.vm_name} {'goes' if len(going) == 1 else 'go'} with the next maintenance")
    return found


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
