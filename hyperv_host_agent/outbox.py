"""What the provider has to be told: the newest state of everything, and each command's progress and result.

State is level-triggered: a new session is told all of it, an old one only what changed. Results stay in the journal
until the provider has stored them, so nothing here needs to survive a restart.
"""

import asyncio
from collections.abc import Iterable
from typing import Final

from twinsite import point_changes
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import Clock

STATUS_SECONDS: Final = 1.0  # between two reports of replication statuses


class Outbox:
    """One reader (the session), any writer on the event loop."""

    def __init__(self) -> None:
        self._host: types_pb2.HostStatus | None = None
        self._statuses: dict[str, types_pb2.ReplicationStatus] = {}
        self._points: dict[str, tuple[types_pb2.Point, ...]] = {}
        self._told: dict[str, point_changes.ByCycle] = {}  # of them, in this session
        self._points_due: dict[str, None] = {}
        self._held = 0
        self._urgent: list[pb.FromHost] = []
        self._progress: dict[str, commands_pb2.CommandProgress] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._statuses_wake = asyncio.Event()

    def host(self, status: types_pb2.HostStatus) -> None:
        if status != self._host:
            self._host = status
            self._send(pb.FromHost(status=status))

    def replication(self, status: types_pb2.ReplicationStatus) -> None:
        if status != self._statuses.get(status.vm_id):
            self._statuses[status.vm_id] = status
            self._changed.add(status.vm_id)
            self._statuses_wake.set()

    def points(self, vm_id: str, points: Iterable[types_pb2.Point]) -> None:
        held = tuple(points)
        if held != self._points.get(vm_id):
            self._points[vm_id] = held
            self._points_due[vm_id] = None
            self._wake.set()

    def one_more_point(self, vm_id: str, point: types_pb2.Point) -> None:
        """Told at once: the source may be gone a second later, and this is what its loss is measured by."""
        self.points(vm_id, (*self._points.get(vm_id, ()), point))

    def forget(self, vm_id: str) -> None:
        """The VM is no longer replicated here; the provider is told once more that it has no points."""
        self._statuses.pop(vm_id, None)
        self._changed.discard(vm_id)
        if self._points.pop(vm_id, ()):
            self.tell_points(vm_id)

    def tell_points(self, vm_id: str) -> None:
        """All of them, whatever was told before."""
        self._told.pop(vm_id, None)
        self._points_due[vm_id] = None
        self._wake.set()

    def held(self, version: int) -> None:
        self._held = version
        self._send(pb.FromHost(held=pb.AssignmentsHeld(version=version)))

    def received(self, command_id: str) -> None:
        self._send(pb.FromHost(received=pb.CommandReceived(id=command_id)))

    def progress(self, progress: commands_pb2.CommandProgress) -> None:
        self._progress[progress.id] = progress
        self._wake.set()

    def result(self, result: commands_pb2.CommandResult) -> None:
        self._progress.pop(result.id, None)
        self._send(pb.FromHost(result=result))

    def samples(self, batch: pb.SampleBatch) -> None:
        """Once; who keeps them gives them again in the next session."""
        self._send(pb.FromHost(samples=batch))

    def status_of(self, vm_id: str) -> types_pb2.ReplicationStatus | None:
        return self._statuses.get(vm_id)

    def begin(self, results: Iterable[commands_pb2.CommandResult]) -> None:
        """A new session starts: it is told everything, and given the results it has not stored."""
        self._urgent = [pb.FromHost(status=self._host)] if self._host is not None else []
        self._urgent.append(pb.FromHost(held=pb.AssignmentsHeld(version=self._held)))
        self._told.clear()
        self._points_due = dict.fromkeys(self._points)
        self._urgent += self._due_points()
        self._urgent += [pb.FromHost(result=result) for result in results]
        self._changed = set(self._statuses)
        self._wake.set()
        if self._changed:
            self._statuses_wake.set()

    async def next(self) -> list[pb.FromHost]:
        """What is to be sent now; waits for something. One caller."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Points first: who reads a result may look for the point that it names.
            urgent = [*self._due_points(), *self._urgent]
            self._urgent = []
            urgent += [pb.FromHost(progress=progress) for progress in self._progress.values()]
            self._progress.clear()
            if urgent:
                return urgent

    async def pace(self, clock: Clock) -> None:
        """Runs beside a session: statuses go out at once, then at most once in STATUS_SECONDS."""
        while True:
            await self._statuses_wake.wait()
            self._statuses_wake.clear()
            changed = [self._statuses[vm_id] for vm_id in sorted(self._changed) if vm_id in self._statuses]
            self._changed.clear()
            self._send(pb.FromHost(statuses=pb.Statuses(statuses=changed)))
            await clock.sleep(STATUS_SECONDS)

    def _due_points(self) -> list[pb.FromHost]:
        """What of the points was not told yet; nothing is kept of states that nobody was told."""
        due, self._points_due = self._points_due, {}
        messages = []
        for vm_id in due:
            now = point_changes.by_cycle(self._points.get(vm_id, ()))
            told = self._told.get(vm_id)
            fresh, gone = point_changes.since(told or {}, now)
            if told is None or fresh or gone:
                said = pb.HostPoints(
                    vm_id=vm_id, points=fresh.values(), changes=told is not None, gone=gone, total=len(now)
                )
                messages.append(pb.FromHost(points=said))
            if vm_id in self._points:
                self._told[vm_id] = now
        return messages

    def _send(self, message: pb.FromHost) -> None:
        self._urgent.append(message)
        self._wake.set()
