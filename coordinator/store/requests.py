"""Answers remembered by request id, so that a repeated mutation is answered and not repeated."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.store import schema

KEPT_SECONDS: Final = 86400

requests = schema.table(
    "request",
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("actor", sa.Text, primary_key=True),  # another user's answer is not for this one
    sa.Column("at", sa.Double, nullable=False, index=True),
    sa.Column("response", sa.LargeBinary, nullable=False),
)


async def remember(
    connection: AsyncConnection, request_id: str, method: str, actor: str, response: bytes, *, now: float
) -> None:
    """Store an answer in the transaction that made it true; nothing without a request id. Old ones are dropped."""
    if not request_id:
        return
    await connection.execute(sa.delete(requests).where(requests.c.at < now - KEPT_SECONDS))
    await connection.execute(
        sa.insert(requests).values(request_id=request_id, method=method, actor=actor, at=now, response=response)
    )


async def recall(connection: AsyncConnection, request_id: str, method: str, actor: str, *, now: float) -> bytes | None:
    """The answer this user got for this request within the last 24 hours."""
    if not request_id:
        return None
    query = sa.select(requests.c.response).where(
        requests.c.request_id == request_id,
        requests.c.method == method,
        requests.c.actor == actor,
        requests.c.at >= now - KEPT_SECONDS,
    )
    response: bytes | None = await connection.scalar(query)
    return response
