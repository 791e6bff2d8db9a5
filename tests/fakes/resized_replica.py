"""What a target would hold of a VM whose disks change: built from its points' geometry and dirty sets alone."""

from hyperv_host_agent.changes.base import SourcePoint
from hyperv_host_agent.hypervisors.embedded.records import RecordsReport, verify_records
from twinsite.extents import CLUSTER, Run, clusters


class Content:
    """A disk in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


class ResizedReplica:
    def __init__(self) -> None:
        self.content: dict[str, bytearray] = {}
        self.taken = 0  # clusters

    def take(self, point: SourcePoint) -> None:
        self.content = {disk.id: self.content.get(disk.id, bytearray()) for disk in point.disks}
        for disk in point.disks:
            content = self.content[disk.id]
            del content[disk.size :]
            content.extend(bytes(disk.size - len(content)))
            for run in point.dirty(disk.id):
                data = point.read(disk.id, run)
                content[run.start * CLUSTER : run.start * CLUSTER + len(data)] = data
                self.taken += run.count

    def equals(self, point: SourcePoint) -> bool:
        return all(point.read(disk.id, Run(0, clusters(disk.size))) == self.content[disk.id] for disk in point.disks)

    def report(self) -> RecordsReport:
        return verify_records([Content(bytes(content)) for content in self.content.values()])
