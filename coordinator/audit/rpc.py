"""The service Audit."""

from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.audit import chain
from coordinator.store.engine import Database
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount

_LIMIT: Final = 100
_MOST: Final = 2000  # records in one answer, so that it stays one message


class AuditServicer(admin_pb2_grpc.AuditServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def List(self, request: admin_pb2.ListAuditRequest, context: Any) -> admin_pb2.ListAuditResponse:
        """The whole chain is checked each time: whoever reads the log must know whether to believe it."""
        del context
        async with self._database.read() as connection:
            entries = await chain.recent(connection, limit=min(request.limit or _LIMIT, _MOST), actor=request.actor)
            broken = await chain.verify(connection)
        return admin_pb2.ListAuditResponse(
            records=[_to_proto(entry) for entry in entries], chain_intact=broken is None, first_broken=broken or 0
        )


def _to_proto(entry: chain.Entry) -> admin_pb2.AuditRecord:
    at = Timestamp()
    at.FromNanoseconds(round(entry.at * 1e6) * 1000)
    return admin_pb2.AuditRecord(
        sequence=entry.sequence,
        at=at,
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        outcome=entry.outcome,
        facts=entry.facts,
        hash=entry.hash,
        address=entry.address,
    )


def audit_mount(database: Database) -> Mount:
    servicer = AuditServicer(database)
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Audit"],
        lambda server: admin_pb2_grpc.add_AuditServicer_to_server(servicer, server),
    )
