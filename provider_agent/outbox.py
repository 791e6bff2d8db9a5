"""What the coordinator has to be told: the newest state of everything, and each command's receipt, progress and result.

State is level-triggered: a new session is told all of it, an old one what changed, and only the newest of it, so a slow
coordinator costs no memory. Results are kept by the journal until the coordinator has them.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from twinsite import point_changes
from twinsite.api.coordinator.v1 import link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2, types_pb2

PACE_SECONDS: Final = 1.0  # between two inventories, and between two reports of statistics
_STATUSES_PER_MESSAGE: Final = 500  # about 150 bytes each

StatusKey = tuple[str, str, int]  # host id, VM id, role
PointsKey = tuple[str, str]  # host id, VM id


class Outbox:
    """One reader, the session; any writer on the event loop."""

    def __init__(self) -> None:
        self._inventory = pb.Inventory()
        self._statuses: dict[StatusKey, types_pb2.ReplicationStatus] = {}
        self._points: dict[PointsKey, point_changes.ByCycle] = {}
        self._told: dict[PointsKey, point_changes.ByCycle] = {}  # of them, in this session
        self._inventory_due = False
        self._statuses_due: set[StatusKey] = set()
        self._points_due: dict[PointsKey, None] = {}
        self._samples: dict[str, pb.HostSamples] = {}  # by host; the newest batch, until it is stored
        self._samples_due: set[str] = set()
        self._receipts: dict[str, None] = {}
        self._progress: dict[str, commands_pb2.CommandProgress] = {}
        self._results: dict[str, commands_pb2.CommandResult] = {}
        self._wake = asyncio.Event()
        self._paced_wake = asyncio.Event()

    def inventory(self, inventory: pb.Inventory) -> None:
        """Given without version; the version rises with each change."""
        before = self._inventory.version
        inventory.version = before
        if inventory == self._inventory and before > 0:
            return
        inventory.version = before + 1
        self._inventory = inventory
        self._inventory_due = True
        self._paced_wake.set()

    def status(self, host_id: str, status: types_pb2.ReplicationStatus) -> None:
        key = host_id, status.vm_id, int(status.role)
        if self._statuses.get(key) != status:
            self._statuses[key] = status
            self._statuses_due.add(key)
            self._paced_wake.set()

    def keep(self, host_id: str, vm_ids: Iterable[str]) -> None:
        """Forget what the host said of VMs it has nothing to do with any more."""
        kept = set(vm_ids)
        for place in [place for place in self._points if place[0] == host_id and place[1] not in kept]:
            del self._points[place]
            self._told.pop(place, None)
            self._points_due.pop(place, None)
        for key in [key for key in self._statuses if key[0] == host_id and key[1] not in kept]:
            del self._statuses[key]
            self._statuses_due.discard(key)

    def points(self, host_id: str, vm_id: str, points: Iterable[types_pb2.Point]) -> None:
        self._has(host_id, vm_id, point_changes.by_cycle(points))

    def points_changed(
        self, host_id: str, vm_id: str, fresh: Iterable[types_pb2.Point], gone: Iterable[int], *, total: int
    ) -> bool:
        """False: what was known is not what the host counts from. It has to tell all of them."""
        held = self._points.get((host_id, vm_id))
        now = None if held is None else point_changes.applied(held, fresh, gone, total=total)
        if now is not None:
            self._has(host_id, vm_id, now)
        return now is not None

    def tell_points(self, host_id: str, vm_id: str) -> None:
        """All of them, whatever was told before."""
        key = host_id, vm_id
        if key in self._points:
            self._told.pop(key, None)
            self._points_due[key] = None
            self._wake.set()

    def _has(self, host_id: str, vm_id: str, now: point_changes.ByCycle) -> None:
        key = host_id, vm_id
        if self._points.get(key) != now:
            self._points[key] = now
            self._points_due[key] = None
            self._wake.set()

    def samples(self, batch: pb.HostSamples) -> None:
        """In place of the host's former one: it sends the next when one is stored."""
        self._samples[batch.host_id] = batch
        self._samples_due.add(batch.host_id)
        self._paced_wake.set()

    def samples_stored(self, host_id: str, batch_id: int) -> None:
        batch = self._samples.get(host_id)
        if batch is not None and batch.id == batch_id:
            self.forget_samples(host_id)

    def forget_samples(self, host_id: str) -> None:
        self._samples.pop(host_id, None)
        self._samples_due.discard(host_id)

    def received(self, command_id: str) -> None:
        self._receipts[command_id] = None
        self._wake.set()

    def progress(self, progress: commands_pb2.CommandProgress) -> None:
        self._progress[progress.id] = progress
        self._wake.set()

    def result(self, result: commands_pb2.CommandResult) -> None:
        self._progress.pop(result.id, None)
        self._results[result.id] = result
        self._wake.set()

    def begin(self, results: Iterable[commands_pb2.CommandResult]) -> None:
        """A new session: it is told everything, and the results it has not stored."""
        self._inventory_due = self._inventory.version > 0
        self._statuses_due = set(self._statuses)
        self._told.clear()
        self._points_due = dict.fromkeys(self._points)
        self._samples_due = set(self._samples)
        self._receipts.clear()
        self._progress.clear()
        # One that came since `results` was read is here only; one sent twice does no harm.
        self._results = {result.id: result for result in results} | self._results
        self._wake.set()
        self._paced_wake.set()

    def resend_inventory(self) -> None:
        self._inventory_due = self._inventory.version > 0
        self._paced_wake.set()

    async def next(self) -> list[pb.FromProvider]:
        """What goes out at once; waits for something. A receipt is never behind its result."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages = list(self._urgent())
            if messages:
                return messages

    async def next_paced(self) -> list[pb.FromProvider]:
        """What may wait; waits for something. The caller lets PACE_SECONDS pass before it asks again."""
        while True:
            await self._paced_wake.wait()
            self._paced_wake.clear()
            messages = list(self._due())
            if messages:
                return messages

    def _urgent(self) -> Iterator[pb.FromProvider]:
        receipts, self._receipts = self._receipts, {}
        progress, self._progress = self._progress, {}
        results, self._results = self._results, {}
        points, self._points_due = self._points_due, {}
        for id_ in receipts:
            yield pb.FromProvider(received=pb.CommandReceived(id=id_))
        for step in progress.values():
            yield pb.FromProvider(progress=step)
        # Points first: who reads a result may look for the point that it names.
        for key in points:
            now, told = self._points[key], self._told.get(key)
            fresh, gone = point_changes.since(told or {}, now)
            self._told[key] = now
            if told is None or fresh or gone:
                said = pb.Points(host_id=key[0], vm_id=key[1], points=fresh.values(), gone=gone, total=len(now))
                said.changes = told is not None
                yield pb.FromProvider(points=said)
        for result in results.values():
            yield pb.FromProvider(result=result)

    def _due(self) -> Iterator[pb.FromProvider]:
        if self._inventory_due:
            self._inventory_due = False
            yield pb.FromProvider(inventory=self._inventory)
        due = [self._statuses[key] for key in sorted(self._statuses_due)]
        self._statuses_due.clear()
        for start in range(0, len(due), _STATUSES_PER_MESSAGE):
            yield pb.FromProvider(statistics=pb.Statistics(statuses=due[start : start + _STATUSES_PER_MESSAGE]))
        samples = [self._samples[host_id] for host_id in sorted(self._samples_due)]
        self._samples_due.clear()
        for batch in samples:
            yield pb.FromProvider(samples=batch)
