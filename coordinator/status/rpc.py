"""The service Status."""

from typing import Any

import grpc

from coordinator.inventory.model import stamp
from coordinator.jobs import State
from coordinator.protection.health import CRITICAL, NORMAL, PAUSED, UNKNOWN, WARNING
from coordinator.status.service import StatusService
from twinsite import __version__
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount

Context = grpc.aio.ServicerContext[Any, Any]


class Status(admin_pb2_grpc.StatusServicer):
    def __init__(self, status: StatusService) -> None:
        self._status = status

    async def Show(self, request: admin_pb2.Empty, context: Context) -> admin_pb2.StatusResponse:
        summary = await self._status.show()
        return admin_pb2.StatusResponse(
            vault_name=summary.vault_name,
            coordinator_version=__version__,
            now=stamp(summary.now),
            sites=[
                admin_pb2.SiteStatus(
                    server=view.name,
                    connected=view.link is not None and view.link.connected,
                    hosts=len(view.hosts),
                    hosts_connected=sum(host.connected for host in view.hosts),
                    agent_version=view.link.agent_version if view.link is not None else view.server.agent_version,
                )
                for view in summary.servers
            ],
            vms=summary.vms,
            vms_protected=summary.vms_protected,
            vms_normal=summary.health[NORMAL],
            # What is not known is no better than a warning; the problems tell them apart.
            vms_warning=summary.health[WARNING] + summary.health[UNKNOWN],
            vms_critical=summary.health[CRITICAL],
            vms_paused=summary.health[PAUSED],
            jobs_running=summary.jobs.get(State.IN_PROGRESS, 0) + summary.jobs.get(State.NOT_STARTED, 0),
            jobs_waiting=summary.jobs.get(State.WAITING_FOR_ACTION, 0),
            jobs_failed_24h=summary.jobs.get(State.FAILED, 0) + summary.jobs.get(State.COMPLETED_WITH_ERRORS, 0),
            problems=summary.problems,
        )


def mounts(status: StatusService) -> list[Mount]:
    servicer = Status(status)
    services = admin_pb2.DESCRIPTOR.services_by_name
    return [Mount(services["Status"], lambda to: admin_pb2_grpc.add_StatusServicer_to_server(servicer, to))]
