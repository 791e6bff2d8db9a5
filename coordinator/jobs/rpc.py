"""The service Jobs."""

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from coordinator.jobs.model import Job, Task
from coordinator.jobs.service import Jobs
from twinsite.access import caller
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.server import Mount

_LIMIT: Final = 50
_MOST: Final = 500  # jobs in one answer, so that it stays one message


def _at(instant: float | None) -> Timestamp | None:
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(round(instant * 1e6) * 1000)
    return stamp


def task_to_proto(task: Task) -> admin_pb2.Task:
    return admin_pb2.Task(
        id=task.id,
        name=task.name,
        state=task.state,
        percent=task.percent,
        bytes_done=task.bytes_done,
        bytes_total=task.bytes_total,
        bytes_per_second=task.bytes_per_second,
        eta_seconds=task.eta_seconds,
        message=task.message,
        error=task.error,
        started=_at(task.started),
        ended=_at(task.ended),
        stage=task.stage,
    )


def job_to_proto(job: Job) -> admin_pb2.Job:
    return admin_pb2.Job(
        id=job.id,
        kind=job.kind,
        target=job.target,
        state=job.state,
        tasks=[task_to_proto(task) for task in job.tasks],
        error=job.error,
        cancel_requested=job.cancel_requested,
        created=_at(job.created),
        ended=_at(job.ended),
        created_by=job.created_by,
        result=job.result,
    )


class JobsServicer(admin_pb2_grpc.JobsServicer):
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def List(self, request: admin_pb2.ListJobsRequest, context: Any) -> admin_pb2.ListJobsResponse:
        del context
        limit = min(request.limit or _LIMIT, _MOST)
        jobs = await self._jobs.list(state=request.state, target=request.target, limit=limit)
        return admin_pb2.ListJobsResponse(jobs=[job_to_proto(job) for job in jobs])

    async def Show(self, request: admin_pb2.ShowRequest, context: Any) -> admin_pb2.Job:
        del context
        return job_to_proto(await self._jobs.get(request.name))

    async def Watch(self, request: admin_pb2.ShowRequest, context: Any) -> AsyncIterator[admin_pb2.Job]:
        del context
        async for job in self._jobs.changes(request.name):
            yield job_to_proto(job)

    async def Cancel(self, request: admin_pb2.CancelJobRequest, context: Any) -> admin_pb2.Job:
        del context
        who = caller()
        job = await self._jobs.cancel(request.id, f"user/{who.name}", address=who.address, dry_run=request.dry_run)
        return job_to_proto(job)


def jobs_mount(jobs: Jobs) -> Mount:
    servicer = JobsServicer(jobs)
    return Mount(
        admin_pb2.DESCRIPTOR.services_by_name["Jobs"],
        lambda server: admin_pb2_grpc.add_JobsServicer_to_server(servicer, server),
    )
