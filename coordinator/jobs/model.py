"""Jobs and tasks as values, and the rules that decide how a job ends. No I/O, no await.

How a job ends, from how its tasks ended:

* a required task failed → failed, with that task's error; cancelled → cancelled. Later stages do not start and their
  tasks stay `not_started`; tasks marked `always` run all the same.
* a required task finished with a warning, or an optional one failed → completed_with_errors. An operator must see
  that something he asked for did not happen, and the exit code of `job wait` tells his script.
* a warning of an optional task shows on the task and changes nothing: stopping the source of an unplanned failover
  is expected to fail, and a recovered VM is a success.
* a cancel that arrives when everything has been done already changes nothing.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Aborted, Internal, InvalidInput, NotFound, Precondition, Unreachable

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"


class State(enum.StrEnum):
    NOT_STARTED = "not_started"
    IN_PROGRESS = "in_progress"
    WAITING_FOR_ACTION = "waiting_for_action"
    SUCCEEDED = "succeeded"
    COMPLETED_WITH_ERRORS = "completed_with_errors"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL: Final = frozenset({State.SUCCEEDED, State.COMPLETED_WITH_ERRORS, State.FAILED, State.CANCELLED})
_STOPS: Final = (State.FAILED, State.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """One task of a job to be submitted. Tasks of one stage run side by side; stages run in ascending order."""

    name: str  # for people: "Prepare the replica"
    kind: str  # names the handler
    args: Mapping[str, JSON] = field(default_factory=dict)  # must survive JSON unchanged
    stage: int
    always: bool = False  # runs even when the job failed or was cancelled: cleaning up
    optional: bool = False  # its failure does not stop the job


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    id: str  # <job>.<number>
    job_id: str
    stage: int
    name: str
    kind: str
    args: Mapping[str, JSON]
    always: bool
    optional: bool
    state: State
    percent: int
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    message: str
    error: types_pb2.ErrorDetail | None  # why it failed, or its first warning
    started: float | None  # seconds since 1970 UTC
    ended: float | None

    @property
    def eta_seconds(self) -> float:
        """0 when unknown or nothing is left."""
        left = self.bytes_total - self.bytes_done
        if self.state is not State.IN_PROGRESS or left <= 0 or self.bytes_per_second <= 0:
            return 0.0
        return left / self.bytes_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    kind: str  # for example "vm.protect"
    target: str  # for example "vm/web01"
    state: State
    tasks: tuple[Task, ...]
    error: types_pb2.ErrorDetail | None
    cancel_requested: bool
    created: float  # seconds since 1970 UTC
    ended: float | None
    created_by: str
    result: Mapping[str, str]

    @property
    def final(self) -> bool:
        return self.state in FINAL


def stopped(tasks: Sequence[Task], *, cancel_requested: bool) -> bool:
    """Whether the next stage may run its `always` tasks only."""
    return cancel_requested or any(task.state in _STOPS and not task.optional for task in tasks)


def ending(tasks: Sequence[Task], *, cancel_requested: bool) -> tuple[State, types_pb2.ErrorDetail | None]:
    """The final state of a job whose tasks have all run as far as they will, and the error it shows."""
    required = [task for task in tasks if not task.optional]
    in_order = sorted((task for task in tasks if task.ended is not None), key=lambda task: (task.ended, task.id))
    for task in in_order:
        if task.state is State.FAILED and not task.optional:
            return State.FAILED, task.error
    if any(task.state is State.CANCELLED for task in required):
        return State.CANCELLED, None
    if cancel_requested and any(task.state is State.NOT_STARTED for task in tasks):
        return State.CANCELLED, None
    for task in in_order:
        warned = task.state is State.COMPLETED_WITH_ERRORS and not task.optional
        if warned or (task.state is State.FAILED and task.optional):
            return State.COMPLETED_WITH_ERRORS, task.error
    return State.SUCCEEDED, None


def rate(before: float, *, bytes_before: int, bytes_now: int, seconds: float) -> float:
    """Bytes per second, smoothed: a single slow second must not double the estimate of what is left."""
    if seconds <= 0 or bytes_now < bytes_before:
        return before
    now = (bytes_now - bytes_before) / seconds
    return now if before <= 0 else 0.7 * before + 0.3 * now


class JobNotFound(NotFound):
    public = "there is no job {error.job_id}"
    next_step = "twinsite job list"

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id


class UnknownJobState(InvalidInput):
    public = "{error.state} is not a state of a job"
    next_step = "use one of " + ", ".join(State)

    def __init__(self, state: str) -> None:
        self.state = state


class JobIsFinal(Precondition):
    public = "job {error.job_id} has ended already: {error.state}"
    still_works = "nothing was changed"
    next_step = "twinsite job show {error.job_id}"

    def __init__(self, job_id: str, state: str) -> None:
        self.job_id, self.state = job_id, state


class TaskCancelled(Aborted):
    """Raised inside a handler when the user cancelled its job; cleaning up belongs in an `always` task."""

    public = "the job was cancelled"


class UnknownTaskKind(Internal):
    public = "no handler is known for task {error.kind}"

    def __init__(self, kind: str) -> None:
        self.kind = kind


class HandlerDefect(Internal):
    public = "task {error.task_id} failed on a defect of the coordinator ({error.name})"

    def __init__(self, task_id: str, name: str) -> None:
        self.task_id, self.name = task_id, name


class EngineFailed(Internal):
    public = "the engine gave up on this job: {error.reason}"

    def __init__(self, reason: str) -> None:
        self.reason = reason


class CommandTimedOut(Unreachable):
    public = "host {error.host_id} did not finish the command within {error.seconds:.0f} s"
    cause = "its provider or the host itself is not connected, or the command takes longer than allowed"
    still_works = "the command was withdrawn; a host that has begun it rolls back"
    next_step = "twinsite host show {error.host_id}"

    def __init__(self, host_id: str, seconds: float) -> None:
        self.host_id, self.seconds = host_id, seconds


class WaitTimedOut(Unreachable):
    public = "what the task waits for did not happen within {error.seconds:.0f} s"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class CommandReused(Internal):
    """A task has one command per label; a re-run of its handler must ask for the same one."""

    public = "task command {error.command_id} was asked for with another action or host"

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id


class CommandOfAnotherServer(Precondition):
    public = "command {error.command_id} was not given to this server"
    still_works = "the report was ignored"
    next_step = "find out why this server speaks of it: look at its host for a copied identity or journal"

    def __init__(self, command_id: str) -> None:
        self.command_id = command_id
