"""The only SQL of the inventory. Functions take the caller's connection; transactions are the service's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory.model import ReportedHost
from coordinator.store.schema import table
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.types.v1 import types_pb2

PRESENT, MISSING, UNREGISTERED = "present", "missing", "unregistered"

server_links = table(
    "server_link",
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("connected", sa.Boolean, nullable=False),
    sa.Column("agent_version", sa.Text, nullable=False),
    sa.Column("inventory_version", sa.BigInteger, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("last_seen", sa.Double, nullable=False),
)
clouds = table(
    "cloud",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("server_id", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # link_pb2.Cloud
    sa.Column("last_seen", sa.Double, nullable=False),
    sa.UniqueConstraint("server_id", "name"),
)
networks = table(
    "network",
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # link_pb2.Network
    sa.Column("last_seen", sa.Double, nullable=False),
)
classifications = table(
    "storage_classification",
    sa.Column("server_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # link_pb2.StorageClassification
    sa.Column("last_seen", sa.Double, nullable=False),
)
hosts = table(
    "inventory_host",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("server_id", sa.Text, nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("cloud", sa.Text, nullable=False),
    sa.Column("host_group", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("connected", sa.Boolean, nullable=False),
    sa.Column("agent_version", sa.Text, nullable=False),
    sa.Column("hypervisor", sa.Text, nullable=False),
    sa.Column("replication_address", sa.Text, nullable=False),
    sa.Column("free_bytes", sa.BigInteger, nullable=False),
    sa.Column("total_bytes", sa.BigInteger, nullable=False),
    sa.Column("last_seen", sa.Double, nullable=False),
)
# One row per VM and host: after a failover, or while a VM moves, the same id is known on two.
machines = table(
    "machine",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),  # types_pb2.Machine
    sa.Column("last_seen", sa.Double, nullable=False),
)


@dataclass(frozen=True, slots=True)
class ServerLink:
    server_id: str
    connected: bool
    agent_version: str
    inventory_version: int
    since: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class Cloud:
    id: str
    server_id: str
    name: str
    state: str
    document: link_pb2.Cloud
    last_seen: float


@dataclass(frozen=True, slots=True)
class Host:
    id: str
    server_id: str
    name: str
    cloud: str
    host_group: str
    state: str
    connected: bool  # to its provider, as the provider said last
    agent_version: str
    hypervisor: str
    replication_address: str
    free_bytes: int
    total_bytes: int
    last_seen: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A VM on one host."""

    id: str
    host_id: str
    name: str
    purpose: str
    state: str
    document: types_pb2.Machine
    last_seen: float


# ---- servers' links ---------------------------------------------------------------------------------------------


async def links(connection: AsyncConnection) -> dict[str, ServerLink]:
    rows = await connection.execute(sa.select(server_links))
    return {row["server_id"]: ServerLink(**row) for row in rows.mappings()}


async def put_link(connection: AsyncConnection, link: ServerLink) -> None:
    await connection.execute(sa.delete(server_links).where(server_links.c.server_id == link.server_id))
    await connection.execute(
        sa.insert(server_links).values(
            server_id=link.server_id,
            connected=link.connected,
            agent_version=link.agent_version,
            inventory_version=link.inventory_version,
            since=link.since,
            last_seen=link.last_seen,
        )
    )


async def touch_link(
    connection: AsyncConnection, server_id: str, *, now: float, connected: bool = True, version: int | None = None
) -> None:
    values: dict[str, object] = {"connected": connected, "last_seen": now}
    if version is not None:
        values["inventory_version"] = version
    await connection.execute(sa.update(server_links).where(server_links.c.server_id == server_id).values(**values))


async def disconnect(connection: AsyncConnection, server_id: str, *, now: float) -> None:
    where = (server_links.c.server_id == server_id, server_links.c.connected.is_(True))
    await connection.execute(sa.update(server_links).where(*where).values(connected=False, last_seen=now))


async def disconnect_all(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(server_links).values(connected=False))


# ---- clouds, networks, classes ----------------------------------------------------------------------------------


async def list_clouds(connection: AsyncConnection, server_id: str = "") -> list[Cloud]:
    """Clouds of registered servers, by name."""
    query = sa.select(clouds).where(clouds.c.state != UNREGISTERED).order_by(clouds.c.name, clouds.c.id)
    if server_id:
        query = query.where(clouds.c.server_id == server_id)
    rows = await connection.execute(query)
    return [Cloud(**{**row, "document": link_pb2.Cloud.FromString(row["document"])}) for row in rows.mappings()]


async def put_cloud(
    connection: AsyncConnection, cloud_id: str, *, server_id: str, document: link_pb2.Cloud, now: float
) -> None:
    """Insert, or update the cloud of that server and name."""
    values = {"state": PRESENT, "document": document.SerializeToString(deterministic=True), "last_seen": now}
    done = await connection.execute(
        sa.update(clouds).where(clouds.c.server_id == server_id, clouds.c.name == document.name).values(**values)
    )
    if not done.rowcount:
        await connection.execute(
            sa.insert(clouds).values(id=cloud_id, server_id=server_id, name=document.name, **values)
        )


async def put_documents(
    connection: AsyncConnection,
    target: sa.Table,
    server_id: str,
    documents: Mapping[str, bytes],
    now: float,
) -> None:
    """Networks or classifications of one server, by name; those not named are marked missing."""
    await mark_absent(connection, target, server_id, documents)
    for name, document in documents.items():
        values = {"state": PRESENT, "document": document, "last_seen": now}
        done = await connection.execute(
            sa.update(target).where(target.c.server_id == server_id, target.c.name == name).values(**values)
        )
        if not done.rowcount:
            await connection.execute(sa.insert(target).values(server_id=server_id, name=name, **values))


async def mark_absent(
    connection: AsyncConnection, target: sa.Table, server_id: str, names: Iterable[str]
) -> Sequence[str]:
    """Mark what a server no longer names as missing; the names that were present until now."""
    gone = (
        (
            await connection.execute(
                sa.select(target.c.name).where(
                    target.c.server_id == server_id, target.c.state == PRESENT, target.c.name.not_in(list(names))
                )
            )
        )
        .scalars()
        .all()
    )
    if gone:
        await connection.execute(
            sa.update(target).where(target.c.server_id == server_id, target.c.name.in_(gone)).values(state=MISSING)
        )
    return gone


# ---- hosts ------------------------------------------------------------------------------------------------------


async def list_hosts(connection: AsyncConnection, server_id: str = "") -> list[Host]:
    """Hosts of registered servers, by name."""
    query = sa.select(hosts).where(hosts.c.state != UNREGISTERED).order_by(hosts.c.name, hosts.c.id)
    if server_id:
        query = query.where(hosts.c.server_id == server_id)
    return [Host(**row) for row in (await connection.execute(query)).mappings()]


async def get_host(connection: AsyncConnection, host_id: str) -> Host | None:
    row = (await connection.execute(sa.select(hosts).where(hosts.c.id == host_id))).mappings().first()
    return Host(**row) if row else None


async def put_host(
    connection: AsyncConnection,
    host: ReportedHost,
    *,
    server_id: str,
    place: tuple[str, str],
    now: float,
    known: Host | None,
) -> None:
    """Its last_seen is `now` when it is connected, and when it was until now."""
    values = {
        "server_id": server_id,
        "name": host.name,
        "cloud": place[0],
        "host_group": place[1],
        "state": PRESENT,
        "connected": host.connected,
        "agent_version": host.agent_version,
        "hypervisor": host.hypervisor,
        "replication_address": host.replication_address,
        "free_bytes": host.free_bytes,
        "total_bytes": host.total_bytes,
        "last_seen": now if host.connected or known is None or known.connected else known.last_seen,
    }
    if known is None:
        await connection.execute(sa.insert(hosts).values(id=host.id, **values))
    else:
        await connection.execute(sa.update(hosts).where(hosts.c.id == host.id).values(**values))


async def set_host_state(connection: AsyncConnection, host_id: str, state: str) -> None:
    await connection.execute(sa.update(hosts).where(hosts.c.id == host_id).values(state=state, connected=False))


# ---- VMs --------------------------------------------------------------------------------------------------------


async def list_machines(connection: AsyncConnection, *, host_id: str = "", vm_id: str = "") -> list[Machine]:
    """VMs on every host of a registered server, by name; one VM may be there twice."""
    query = (
        sa.select(machines)
        .join(hosts, hosts.c.id == machines.c.host_id)
        .where(hosts.c.state != UNREGISTERED)
        .order_by(machines.c.name, machines.c.id, machines.c.host_id)
    )
    if host_id:
        query = query.where(machines.c.host_id == host_id)
    if vm_id:
        query = query.where(machines.c.id == vm_id)
    rows = (await connection.execute(query)).mappings()
    return [Machine(**{**row, "document": types_pb2.Machine.FromString(row["document"])}) for row in rows]


async def put_machine(
    connection: AsyncConnection, machine: types_pb2.Machine, *, host_id: str, now: float, known: bool
) -> None:
    values = {
        "name": machine.name,
        "purpose": machine.purpose,
        "state": PRESENT,
        "document": machine.SerializeToString(deterministic=True),
        "last_seen": now,
    }
    if known:
        where = (machines.c.id == machine.id, machines.c.host_id == host_id)
        await connection.execute(sa.update(machines).where(*where).values(**values))
    else:
        await connection.execute(sa.insert(machines).values(id=machine.id, host_id=host_id, **values))


async def mark_machine_missing(connection: AsyncConnection, vm_id: str, host_id: str, *, last_seen: float) -> None:
    where = (machines.c.id == vm_id, machines.c.host_id == host_id)
    await connection.execute(sa.update(machines).where(*where).values(state=MISSING, last_seen=last_seen))


async def unregister(connection: AsyncConnection, server_id: str, *, now: float) -> None:
    """Everything of a removed server leaves the lists; the rows stay, as evidence."""
    for target in (clouds, networks, classifications):
        await connection.execute(sa.update(target).where(target.c.server_id == server_id).values(state=UNREGISTERED))
    await connection.execute(
        sa.update(hosts).where(hosts.c.server_id == server_id).values(state=UNREGISTERED, connected=False)
    )
    await disconnect(connection, server_id, now=now)
