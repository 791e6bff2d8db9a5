"""Durable jobs: what a person asked for, as ordered tasks that survive kill -9. See `model` for the rules."""

from coordinator.jobs.context import Handler, TaskContext
from coordinator.jobs.model import Job, State, Task, TaskCancelled, TaskPlan
from coordinator.jobs.service import Jobs

__all__ = ["Handler", "Job", "Jobs", "State", "Task", "TaskCancelled", "TaskContext", "TaskPlan"]
