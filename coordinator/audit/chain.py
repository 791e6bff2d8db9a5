"""The hash chain: every entry carries the hash of the one before it, so an altered or removed entry breaks the rest.

What the chain alone cannot show is that the newest entries were cut off; that takes a copy of the head elsewhere.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store import schema

GENESIS: Final = "0" * 64
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_LOCK: Final = 7002  # pg advisory lock of the chain's head; 7001 is the one live executor's

entries = schema.table(
    "audit",
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("actor", sa.Text, nullable=False, index=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("prev", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

# The database itself refuses a change, so that a slip of ours cannot rewrite history. Who owns the database can still
# drop the triggers: then `verify` names the entry.
APPEND_ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "sqlite": tuple(
        f"CREATE TRIGGER ts_audit_no_{verb.lower()} BEFORE {verb} ON ts_audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    "postgresql": (
        """CREATE FUNCTION ts_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
        """CREATE TRIGGER ts_audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ts_audit
        FOR EACH STATEMENT EXECUTE FUNCTION ts_audit_refuse()""",
    ),
}


@dataclass(frozen=True, slots=True)
class Entry:
    sequence: int
    at: float  # seconds since 1970 UTC
    actor: str  # user, server or "system"
    action: str  # for example "key.create"
    target: str  # for example "vm/web01"
    outcome: str  # "ok", or the code of the error
    facts: Mapping[str, str]
    address: str  # the peer's, empty for the coordinator's own doing
    prev: str
    hash: str

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of everything but the hash itself."""
        values = {
            "sequence": self.sequence,
            "at": self.at,
            "actor": self.actor,
            "action": self.action,
            "target": self.target,
            "outcome": self.outcome,
            "facts": dict(self.facts),
            "address": self.address,
            "prev": self.prev,
        }
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


async def record(
    connection: AsyncConnection,
    *,
    actor: str,
    action: str,
    target: str,
    outcome: str,
    facts: Mapping[str, str] = _NONE,
    address: str = "",
    now: float,
) -> None:
    """Append an entry inside the caller's write transaction: both happen or neither does. No secrets in `facts`.

    Make it the last statement of the transaction: on PostgreSQL it holds the chain's lock until the commit.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    newest = sa.select(entries.c.sequence, entries.c.hash).order_by(entries.c.sequence.desc()).limit(1)
    head = (await connection.execute(newest)).first()
    sequence, prev = (1, GENESIS) if head is None else (head.sequence + 1, head.hash)
    entry = Entry(sequence, float(now), actor, action, target, outcome, dict(facts), address, prev, "")
    await connection.execute(
        sa.insert(entries).values(
            sequence=sequence,
            at=entry.at,
            actor=actor,
            action=action,
            target=target,
            outcome=outcome,
            facts=dict(facts),
            address=address,
            prev=prev,
            hash=entry.digest(),
        )
    )


async def verify(connection: AsyncConnection) -> int | None:
    """The sequence of the first entry that is altered or missing; None when the chain is whole."""
    expected, prev = 1, GENESIS
    async with connection.stream(sa.select(entries).order_by(entries.c.sequence)) as result:
        async for row in result.mappings():
            entry = Entry(**row)
            if entry.sequence != expected:
                return expected
            if entry.prev != prev or entry.hash != entry.digest():
                return entry.sequence
            expected, prev = expected + 1, entry.hash
    return None


async def recent(connection: AsyncConnection, *, limit: int, actor: str = "") -> list[Entry]:
    """Newest first; `actor` empty means everybody's."""
    query = sa.select(entries).order_by(entries.c.sequence.desc()).limit(limit)
    if actor:
        query = query.where(entries.c.actor == actor)
    return [Entry(**row) for row in (await connection.execute(query)).mappings()]


for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        _ddl = sa.DDL(_statement)  # type: ignore[no-untyped-call]  # SQLAlchemy left it so
        sa.event.listen(entries, "after_create", _ddl.execute_if(dialect=_dialect))
