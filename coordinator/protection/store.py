"""The only SQL of pairs and protected VMs. Functions take the caller's connection."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory.model import LARGEST, POINTS
from coordinator.protection import totals
from coordinator.protection.model import Fence, Pair, Phase, Protected, recoverable
from coordinator.protection.policy import Policy, RateRule, Tier
from coordinator.store.schema import table
from twinsite.api.types.v1 import types_pb2

pairs = table(
    "pair",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("source_cloud", sa.Text, nullable=False),
    sa.Column("target_cloud", sa.Text, nullable=False),
    sa.Column("frequency_seconds", sa.Integer, nullable=False),
    sa.Column("additional_points", sa.Integer, nullable=False),
    sa.Column("compression", sa.Boolean, nullable=False),
    sa.Column("delete_replica", sa.Boolean, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("tiers", sa.JSON, nullable=False, server_default="[]"),  # [[every, for], …] in seconds
    # [[days, from minute, to minute, bytes per second], …]
    sa.Column("vm_rates", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("link_rates", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("application_hours", sa.Integer, nullable=False, server_default="0"),
)
# A cloud belongs to one pair only, as source or as target; the key holds that on any database.
pair_clouds = table(
    "pair_cloud",
    sa.Column("cloud_id", sa.Text, primary_key=True),
    sa.Column("pair_id", sa.ForeignKey("ts_pair.id", ondelete="CASCADE"), nullable=False, index=True),
)
protected = table(
    "protected",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("vm_name", sa.Text, nullable=False),
    sa.Column("pair_id", sa.ForeignKey("ts_pair.id"), nullable=False, index=True),
    sa.Column("source_host", sa.Text, nullable=False, index=True),
    sa.Column("target_host", sa.Text, nullable=False, index=True),
    sa.Column("owner_host", sa.Text, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("disks", sa.JSON, nullable=False),  # [[id, bytes], …]
    sa.Column("grant", sa.LargeBinary),  # types_pb2.SignedDocument
    sa.Column("grant_expires", sa.Double, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("keep_replica", sa.Boolean, nullable=False),
    sa.Column("failover_cycle", sa.BigInteger, nullable=False),
    sa.Column("failover_instant", sa.Double, nullable=False),
    sa.Column("failed_over_at", sa.Double, nullable=False),
    sa.Column("offline", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("initial_start", sa.Double, nullable=False, server_default="0"),
    sa.Column("existing", sa.JSON, nullable=False, server_default="[]"),  # [[disk id, path], …]
)
# Survives unprotecting: hosts keep the term they saw, and a lower one would be refused for ever.
terms = table(
    "vm_term",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("term", sa.BigInteger, nullable=False),
)
fences = table(
    "fence",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("vm_name", sa.Text, nullable=False),
    sa.Column("term", sa.BigInteger, nullable=False),
)
# What a host has to delete and could not be told yet.
leftovers = table(
    "leftover",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Text, nullable=False),
)
statuses = table(
    "replication_status",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("received", sa.Double, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # types_pb2.ReplicationStatus
)
points = table(
    "point",
    sa.Column("vm_id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("cycle", sa.BigInteger, primary_key=True),
    sa.Column("document", sa.LargeBinary, nullable=False),  # types_pb2.Point
    sa.Column("recoverable", sa.Boolean, nullable=False, server_default=sa.true()),  # as its document says
)
published = table(
    "assignments",
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # types_pb2.Assignments
)


@dataclass(frozen=True, slots=True)
class Reported:
    """One host's last word on one VM."""

    host_id: str
    received: float  # seconds since 1970, by our clock
    status: types_pb2.ReplicationStatus


_AT_ONCE: Final = 500  # values in one statement; databases bound them
_LOCK: Final = 7003  # pg advisory lock; 7001 and 7002 are the live executor's and the audit chain's


async def alone(connection: AsyncConnection) -> None:
    """Nobody else decides about pairs and protected VMs until this write transaction ends; take it first.

    SQLite gives that to every write transaction.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


# ---- pairs ------------------------------------------------------------------------------------------------------


def _pair(row: Mapping[Any, Any]) -> Pair:
    return Pair(
        id=row["id"],
        name=row["name"],
        source_cloud=row["source_cloud"],
        target_cloud=row["target_cloud"],
        policy=Policy(
            frequency_seconds=row["frequency_seconds"],
            additional_points=row["additional_points"],
            compression=row["compression"],
            delete_replica=row["delete_replica"],
            tiers=tuple(Tier(*tier) for tier in row["tiers"]),
            vm_rates=tuple(RateRule(*rule) for rule in row["vm_rates"]),
            link_rates=tuple(RateRule(*rule) for rule in row["link_rates"]),
            application_hours=row["application_hours"],
        ),
        active=row["active"],
        job_id=row["job_id"],
        created=row["created"],
    )


async def list_pairs(connection: AsyncConnection) -> list[Pair]:
    rows = await connection.execute(sa.select(pairs).order_by(pairs.c.name, pairs.c.id))
    return [_pair(row) for row in rows.mappings()]


async def insert_pair(connection: AsyncConnection, pair: Pair) -> None:
    """The two clouds are taken from now on. Raises IntegrityError when one was taken meanwhile."""
    await connection.execute(
        sa.insert(pairs).values(
            id=pair.id,
            name=pair.name,
            source_cloud=pair.source_cloud,
            target_cloud=pair.target_cloud,
            active=pair.active,
            job_id=pair.job_id,
            created=pair.created,
            **_settings(pair.policy),
        )
    )
    for cloud in (pair.source_cloud, pair.target_cloud):
        await connection.execute(sa.insert(pair_clouds).values(cloud_id=cloud, pair_id=pair.id))


async def set_policy(connection: AsyncConnection, pair_id: str, policy: Policy) -> None:
    await connection.execute(sa.update(pairs).where(pairs.c.id == pair_id).values(**_settings(policy)))


def _settings(policy: Policy) -> dict[str, Any]:
    """Tuples go into JSON as lists."""
    return dataclasses.asdict(policy) | {
        "tiers": [dataclasses.astuple(tier) for tier in policy.tiers],
        "vm_rates": [dataclasses.astuple(rule) for rule in policy.vm_rates],
        "link_rates": [dataclasses.astuple(rule) for rule in policy.link_rates],
    }


async def activate_pair(connection: AsyncConnection, pair_id: str) -> bool:
    """Whether it was not active before."""
    done = await connection.execute(
        sa.update(pairs).where(pairs.c.id == pair_id, pairs.c.active.is_(False)).values(active=True)
    )
    return done.rowcount == 1


async def delete_pair(connection: AsyncConnection, pair_id: str) -> None:
    await connection.execute(sa.delete(pairs).where(pairs.c.id == pair_id))


# ---- protected VMs ----------------------------------------------------------------------------------------------


def _protected(row: Mapping[Any, Any]) -> Protected:
    grant = row["grant"]
    return Protected(
        **{
            **row,
            "phase": Phase(row["phase"]),
            "disks": tuple((disk, size) for disk, size in row["disks"]),
            "existing": tuple((disk, path) for disk, path in row["existing"]),
            "grant": None if grant is None else types_pb2.SignedDocument.FromString(grant),
        }
    )


def _values(item: Protected) -> dict[str, Any]:
    return {
        "vm_id": item.vm_id,
        "vm_name": item.vm_name,
        "pair_id": item.pair_id,
        "source_host": item.source_host,
        "target_host": item.target_host,
        "owner_host": item.owner_host,
        "term": item.term,
        "phase": item.phase,
        "paused": item.paused,
        "disks": [list(disk) for disk in item.disks],
        "grant": None if item.grant is None else item.grant.SerializeToString(deterministic=True),
        "grant_expires": item.grant_expires,
        "job_id": item.job_id,
        "created": item.created,
        "keep_replica": item.keep_replica,
        "failover_cycle": item.failover_cycle,
        "failover_instant": item.failover_instant,
        "failed_over_at": item.failed_over_at,
        "offline": item.offline,
        "initial_start": item.initial_start,
        "existing": [list(one) for one in item.existing],
    }


async def list_protected(connection: AsyncConnection, *, pair_id: str = "", host_id: str = "") -> list[Protected]:
    query = sa.select(protected).order_by(protected.c.vm_name, protected.c.vm_id)
    if pair_id:
        query = query.where(protected.c.pair_id == pair_id)
    if host_id:
        query = query.where(sa.or_(protected.c.source_host == host_id, protected.c.target_host == host_id))
    return [_protected(row) for row in (await connection.execute(query)).mappings()]


async def get_protected(connection: AsyncConnection, vm_id: str) -> Protected | None:
    row = (await connection.execute(sa.select(protected).where(protected.c.vm_id == vm_id))).mappings().first()
    return _protected(row) if row else None


async def insert_protected(connection: AsyncConnection, item: Protected) -> None:
    """Raises IntegrityError when the VM is protected already."""
    await connection.execute(sa.insert(protected).values(**_values(item)))


async def update_protected(connection: AsyncConnection, item: Protected) -> None:
    await connection.execute(sa.update(protected).where(protected.c.vm_id == item.vm_id).values(**_values(item)))


async def delete_protected(connection: AsyncConnection, vm_id: str) -> None:
    """With what was reported of it. Terms, fences and leftovers stay."""
    await connection.execute(sa.delete(statuses).where(statuses.c.vm_id == vm_id))
    await connection.execute(sa.delete(points).where(points.c.vm_id == vm_id))
    await totals.forget(connection, vm_id)
    await connection.execute(sa.delete(protected).where(protected.c.vm_id == vm_id))


async def raise_term(connection: AsyncConnection, vm_id: str) -> int:
    """The VM's next term, never given before; 1 is the first."""
    term = await connection.scalar(sa.select(terms.c.term).where(terms.c.vm_id == vm_id))
    if term is None:
        await connection.execute(sa.insert(terms).values(vm_id=vm_id, term=1))
        return 1
    await connection.execute(sa.update(terms).where(terms.c.vm_id == vm_id).values(term=term + 1))
    return int(term) + 1


# ---- fences and leftovers ---------------------------------------------------------------------------------------


async def list_fences(connection: AsyncConnection, host_id: str = "") -> list[Fence]:
    query = sa.select(fences).order_by(fences.c.vm_id)
    if host_id:
        query = query.where(fences.c.host_id == host_id)
    return [Fence(**row) for row in (await connection.execute(query)).mappings()]


async def put_fence(connection: AsyncConnection, fence: Fence) -> None:
    await drop_fence(connection, fence.vm_id, fence.host_id)
    await connection.execute(
        sa.insert(fences).values(vm_id=fence.vm_id, host_id=fence.host_id, vm_name=fence.vm_name, term=fence.term)
    )


async def drop_fence(connection: AsyncConnection, vm_id: str, host_id: str) -> None:
    await connection.execute(sa.delete(fences).where(fences.c.vm_id == vm_id, fences.c.host_id == host_id))


async def get_leftover(connection: AsyncConnection, vm_id: str, host_id: str) -> str | None:
    """The job that waits to clean up."""
    query = sa.select(leftovers.c.job_id).where(leftovers.c.vm_id == vm_id, leftovers.c.host_id == host_id)
    job_id: str | None = await connection.scalar(query)
    return job_id


async def put_leftover(connection: AsyncConnection, vm_id: str, host_id: str, job_id: str) -> None:
    await drop_leftover(connection, vm_id, host_id)
    await connection.execute(sa.insert(leftovers).values(vm_id=vm_id, host_id=host_id, job_id=job_id))


async def drop_leftover(connection: AsyncConnection, vm_id: str, host_id: str, *, job_id: str = "") -> None:
    query = sa.delete(leftovers).where(leftovers.c.vm_id == vm_id, leftovers.c.host_id == host_id)
    await connection.execute(query.where(leftovers.c.job_id == job_id) if job_id else query)


async def forget_hosts(connection: AsyncConnection, host_ids: Sequence[str]) -> None:
    """Hosts of a removed server are told nothing any more."""
    for target in (fences, leftovers, published):
        await connection.execute(sa.delete(target).where(target.c.host_id.in_(list(host_ids))))


# ---- what hosts report ------------------------------------------------------------------------------------------


async def put_status(
    connection: AsyncConnection, vm_id: str, host_id: str, status: types_pb2.ReplicationStatus, *, now: float
) -> None:
    values = {"received": now, "document": status.SerializeToString(deterministic=True)}
    where = (statuses.c.vm_id == vm_id, statuses.c.host_id == host_id)
    done = await connection.execute(sa.update(statuses).where(*where).values(**values))
    if not done.rowcount:
        await connection.execute(sa.insert(statuses).values(vm_id=vm_id, host_id=host_id, **values))


async def list_statuses(connection: AsyncConnection, vm_id: str = "") -> dict[tuple[str, str], Reported]:
    """By VM and host."""
    query = sa.select(statuses)
    if vm_id:
        query = query.where(statuses.c.vm_id == vm_id)
    return {
        (row["vm_id"], row["host_id"]): Reported(
            row["host_id"], row["received"], types_pb2.ReplicationStatus.FromString(row["document"])
        )
        for row in (await connection.execute(query)).mappings()
    }


async def replace_points(
    connection: AsyncConnection, vm_id: str, host_id: str, found: Sequence[types_pb2.Point]
) -> None:
    """Writes what differs only: of a thousand points a cycle brings one."""
    mine = (points.c.vm_id == vm_id, points.c.host_id == host_id)
    rows = await connection.execute(sa.select(points.c.cycle, points.c.document).where(*mine))
    held = {row.cycle: row.document for row in rows}
    told = {point.cycle: _point_values(point) for point in found}
    stale = [cycle for cycle, document in held.items() if told.get(cycle, {}).get("document") != document]
    for begin in range(0, len(stale), _AT_ONCE):
        some = stale[begin : begin + _AT_ONCE]
        await connection.execute(sa.delete(points).where(*mine, points.c.cycle.in_(some)))
    fresh = [
        {"vm_id": vm_id, "host_id": host_id, "cycle": cycle, **values}
        for cycle, values in told.items()
        if held.get(cycle) != values["document"]
    ]
    if fresh:
        await connection.execute(sa.insert(points), fresh)


async def change_points(
    connection: AsyncConnection, vm_id: str, host_id: str, fresh: Sequence[types_pb2.Point], gone: Sequence[int]
) -> int | None:
    """Put and remove single ones; how many the host has then, as far as is known.

    None: nothing was changed, since there would be more than anybody tells.
    """
    mine = (points.c.vm_id == vm_id, points.c.host_id == host_id)
    count = sa.select(sa.func.count()).select_from(points).where(*mine)
    if (await connection.scalar(count) or 0) + len(fresh) > 2 * POINTS:
        return None
    stale = [cycle for cycle in (*gone, *(point.cycle for point in fresh)) if cycle <= LARGEST]
    for begin in range(0, len(stale), _AT_ONCE):
        await connection.execute(sa.delete(points).where(*mine, points.c.cycle.in_(stale[begin : begin + _AT_ONCE])))
    if fresh:
        values = {point.cycle: _point_values(point) for point in fresh}
        rows = [{"vm_id": vm_id, "host_id": host_id, "cycle": cycle, **value} for cycle, value in values.items()]
        await connection.execute(sa.insert(points), rows)
    return await connection.scalar(count) or 0


async def put_point(connection: AsyncConnection, host_id: str, point: types_pb2.Point) -> None:
    """What a host answered of a point that is known; one that is not known stays unknown."""
    where = (points.c.vm_id == point.vm_id, points.c.host_id == host_id, points.c.cycle == point.cycle)
    await connection.execute(sa.update(points).where(*where).values(**_point_values(point)))


def _point_values(point: types_pb2.Point) -> dict[str, Any]:
    return {"recoverable": recoverable(point), "document": point.SerializeToString(deterministic=True)}


_AT_TARGET: Final = sa.and_(protected.c.vm_id == points.c.vm_id, protected.c.target_host == points.c.host_id)


async def list_points(connection: AsyncConnection, vm_id: str) -> list[types_pb2.Point]:
    """Recoverable points of a VM at its target host, and those that were and are lost, newest first."""
    query = (
        sa.select(points.c.document)
        .join(protected, _AT_TARGET)
        .where(points.c.vm_id == vm_id)
        .order_by(points.c.cycle.desc())
    )
    told = [types_pb2.Point.FromString(document) for document in await connection.scalars(query)]
    return [point for point in told if point.lost or recoverable(point)]


async def newest_points(connection: AsyncConnection, vm_id: str = "") -> dict[str, tuple[int, types_pb2.Point]]:
    """(how many, the newest) of the recoverable points at each VM's target host, by VM."""
    newest = (
        sa.select(
            points.c.vm_id, points.c.host_id, sa.func.count().label("number"), sa.func.max(points.c.cycle).label("last")
        )
        .join(protected, _AT_TARGET)
        .where(points.c.recoverable, points.c.vm_id == vm_id if vm_id else sa.true())
        .group_by(points.c.vm_id, points.c.host_id)
        .subquery()
    )
    query = sa.select(newest.c.vm_id, newest.c.number, points.c.document).join(
        points,
        sa.and_(
            points.c.vm_id == newest.c.vm_id, points.c.host_id == newest.c.host_id, points.c.cycle == newest.c.last
        ),
    )
    rows = await connection.execute(query)
    return {row.vm_id: (row.number, types_pb2.Point.FromString(row.document)) for row in rows}


# ---- what hosts are told ----------------------------------------------------------------------------------------


async def get_published(connection: AsyncConnection, host_id: str) -> types_pb2.Assignments | None:
    document = await connection.scalar(sa.select(published.c.document).where(published.c.host_id == host_id))
    return None if document is None else types_pb2.Assignments.FromString(document)


async def put_published(connection: AsyncConnection, assignments: types_pb2.Assignments) -> None:
    document = assignments.SerializeToString(deterministic=True)
    values = {"version": assignments.version, "document": document}
    where = published.c.host_id == assignments.host_id
    done = await connection.execute(sa.update(published).where(where).values(**values))
    if not done.rowcount:
        await connection.execute(sa.insert(published).values(host_id=assignments.host_id, **values))
