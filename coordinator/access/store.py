"""The tables of servers, hosts, users, sessions and tokens, and all SQL on them.

Other domains read servers and hosts through these functions and never write them.
"""

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.access.model import ACTIVE, UNREGISTERED, Host, Server, Session, User
from coordinator.store import schema
from twinsite.identity import Identity

Row = TypeVar("Row", Server, Host)


def _text(name: str, **kwargs: Any) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, **kwargs)


def _at(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


servers = schema.table(
    "server",
    _text("id", primary_key=True),
    _text("name"),
    sa.Column("live_name", sa.Text, unique=True),  # the name while it is taken; NULL once unregistered
    _text("state"),
    _text("serial"),
    _text("spki"),
    sa.Column("chain", sa.LargeBinary, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    _at("registered"),
    _at("expires"),
    _text("agent_version"),
    _text("key_id"),
    _text("pending_serial"),
    _text("pending_spki"),
    sa.Column("pending_chain", sa.LargeBinary, nullable=False),
    _at("pending_expires"),
    _text("previous_serial"),
    _text("previous_spki"),
    _at("previous_until"),
)

hosts = schema.table(
    "host",
    _text("id", primary_key=True),
    _text("name"),
    sa.Column("live_name", sa.Text, unique=True),
    sa.Column("server_id", sa.Text, sa.ForeignKey("ts_server.id"), nullable=False, index=True),
    _text("state"),
    _text("serial"),
    _text("spki"),
    sa.Column("chain", sa.LargeBinary, nullable=False),
    _at("registered"),
    _at("expires"),
    _text("previous_serial"),
    _text("previous_spki"),
)

users = schema.table(
    "user",
    _text("id", primary_key=True),
    _text("name", unique=True),
    _text("role"),
    _text("password"),
    _at("created"),
)

sessions = schema.table(
    "session",
    _text("serial", primary_key=True),
    sa.Column("user_id", sa.Text, sa.ForeignKey("ts_user.id"), nullable=False, index=True),
    _text("spki"),
    _at("created"),
    _at("expires"),
    _at("ended"),
)

tokens = schema.table(
    "token",
    _text("id", primary_key=True),
    _text("secret_sha256"),
    _text("holder", index=True),  # id of the server or user
    _text("thumbprint"),  # x5t#S256 of the one certificate it is good with
    _at("expires"),
)


def _values(table: sa.Table, kind: type[Row], row: sa.RowMapping) -> Row:
    return kind(**{column.name: row[column] for column in table.c if column.name != "live_name"})


# ---- servers


async def list_servers(connection: AsyncConnection, *, unregistered: bool = False) -> list[Server]:
    """By name; those that are unregistered only on request."""
    query = sa.select(servers).order_by(servers.c.name, servers.c.id)
    if not unregistered:
        query = query.where(servers.c.state != UNREGISTERED)
    return [_values(servers, Server, row) for row in (await connection.execute(query)).mappings()]


async def get_server(connection: AsyncConnection, server_id: str) -> Server | None:
    row = (await connection.execute(sa.select(servers).where(servers.c.id == server_id))).mappings().first()
    return None if row is None else _values(servers, Server, row)


async def server_named(connection: AsyncConnection, name: str) -> Server | None:
    query = sa.select(servers).where(servers.c.live_name == name)
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else _values(servers, Server, row)


async def add_server(connection: AsyncConnection, server: Server) -> bool:
    """False when the name is taken, also by somebody who took it at this moment."""
    return await _added(connection, sa.insert(servers).values(live_name=server.name, **_fields(server)))


async def change_server(connection: AsyncConnection, server_id: str, **values: Any) -> None:
    await connection.execute(sa.update(servers).where(servers.c.id == server_id).values(**values))


# ---- hosts


async def list_hosts(connection: AsyncConnection, server_id: str = "", *, unregistered: bool = False) -> list[Host]:
    """By name; of one server if it is named."""
    query = sa.select(hosts).order_by(hosts.c.name, hosts.c.id)
    if server_id:
        query = query.where(hosts.c.server_id == server_id)
    if not unregistered:
        query = query.where(hosts.c.state != UNREGISTERED)
    return [_values(hosts, Host, row) for row in (await connection.execute(query)).mappings()]


async def get_host(connection: AsyncConnection, host_id: str) -> Host | None:
    row = (await connection.execute(sa.select(hosts).where(hosts.c.id == host_id))).mappings().first()
    return None if row is None else _values(hosts, Host, row)


async def host_named(connection: AsyncConnection, name: str) -> Host | None:
    row = (await connection.execute(sa.select(hosts).where(hosts.c.live_name == name))).mappings().first()
    return None if row is None else _values(hosts, Host, row)


async def add_host(connection: AsyncConnection, host: Host) -> bool:
    """False when the name is taken, also by somebody who took it at this moment."""
    return await _added(connection, sa.insert(hosts).values(live_name=host.name, **_fields(host)))


async def replace_host(connection: AsyncConnection, host: Host) -> None:
    await connection.execute(sa.update(hosts).where(hosts.c.id == host.id).values(**_fields(host)))


async def unregister(connection: AsyncConnection, server_id: str) -> list[str]:
    """The server and its hosts are out, their names free; ids of the hosts. The rows stay: ids are never reused."""
    out = {"state": UNREGISTERED, "live_name": None}
    await connection.execute(sa.update(servers).where(servers.c.id == server_id).values(**out))
    members = [host.id for host in await list_hosts(connection, server_id)]
    await connection.execute(sa.update(hosts).where(hosts.c.server_id == server_id).values(**out))
    await connection.execute(sa.delete(tokens).where(tokens.c.holder == server_id))
    return members


# ---- users and sessions


async def user_named(connection: AsyncConnection, name: str) -> User | None:
    row = (await connection.execute(sa.select(users).where(users.c.name == name))).mappings().first()
    return None if row is None else User(**row)


async def name_of(connection: AsyncConnection, identity: Identity) -> str:
    """What people call the user, server or host; its id when it is not known."""
    table = {"user": users, "server": servers, "host": hosts}.get(identity.kind)
    if table is None:
        return identity.id
    name: str | None = await connection.scalar(sa.select(table.c.name).where(table.c.id == identity.id))
    return name or identity.id


async def add_user(connection: AsyncConnection, user: User) -> bool:
    """False when the name is taken, also by somebody who took it at this moment."""
    return await _added(connection, sa.insert(users).values(**_fields(user)))


async def add_session(connection: AsyncConnection, session: Session) -> None:
    await connection.execute(sa.insert(sessions).values(**_fields(session)))


async def session_of(connection: AsyncConnection, serial: str) -> tuple[Session, User] | None:
    session = (await connection.execute(sa.select(sessions).where(sessions.c.serial == serial))).mappings().first()
    if session is None:
        return None
    user = (await connection.execute(sa.select(users).where(users.c.id == session["user_id"]))).mappings().one()
    return Session(**session), User(**user)


async def end_session(connection: AsyncConnection, serial: str, thumbprint: str, now: float) -> None:
    await connection.execute(sa.update(sessions).where(sessions.c.serial == serial).values(ended=now))
    await connection.execute(sa.delete(tokens).where(tokens.c.thumbprint == thumbprint))


# ---- tokens


async def add_token(
    connection: AsyncConnection,
    *,
    token_id: str,
    secret_sha256: str,
    holder: str,
    thumbprint: str,
    expires: float,
    now: float,
) -> None:
    """Expired ones go at the same time."""
    await connection.execute(sa.delete(tokens).where(tokens.c.expires < now))
    await connection.execute(
        sa.insert(tokens).values(
            id=token_id, secret_sha256=secret_sha256, holder=holder, thumbprint=thumbprint, expires=expires
        )
    )


async def get_token(connection: AsyncConnection, token_id: str) -> sa.RowMapping | None:
    return (await connection.execute(sa.select(tokens).where(tokens.c.id == token_id))).mappings().first()


async def withdraw_tokens(connection: AsyncConnection, holder: str) -> None:
    await connection.execute(sa.delete(tokens).where(tokens.c.holder == holder))


async def _added(connection: AsyncConnection, insert: sa.Insert) -> bool:
    """In a savepoint: the caller's transaction goes on after a name that was taken. Ids are new, names alone clash."""
    try:
        async with connection.begin_nested():
            await connection.execute(insert)
    except IntegrityError:
        return False
    return True


def is_active(member: Server | Host) -> bool:
    return member.state == ACTIVE


def _fields(value: Server | Host | User | Session) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
