"""The protected VM: a guest that writes, disks that change under it, and the change tracking beneath it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperv_host_agent.replication.cycle import Committed, DiskGeometry
from tests.simulation.content import ZERO, Token, cut
from tests.simulation.world import World
from twinsite.errors import Unreachable
from twinsite.extents import CLUSTER, cluster_length, clusters

SECTOR = 512
Content = dict[str, dict[int, Token]]  # disk → cluster → token; a cluster that is not there is zero


class NotReadable(Unreachable):
    public = "the VM cannot be read now"


@dataclass(frozen=True)
class Snapshot:
    """The source at one instant."""

    at: float  # seconds of the world
    instant: float  # what the source's clock said
    sizes: Mapping[str, int]  # in bytes
    content: Content


class Guest:
    """Writes tokens that only rise, and now and then one that a cluster held before: content may come back."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.running = True
        self.silent = False
        self.clock = 1_000_000.0  # what its host's clock says beyond the world's
        self.sizes = {"disk-a": self.size(world.rng.choice((6, 16, 60))), "disk-b": self.size(world.rng.randint(3, 10))}
        self.content: Content = {disk: {} for disk in self.sizes}
        self.past: dict[tuple[str, int], list[int]] = {}
        self.written = 0
        self.disks_made = 2
        self.tracking = Tracking(self)
        self.pace = world.between(0.05, 0.6)
        for _ in range(world.rng.choice((0, 12, 80))):
            self.write()

    def size(self, count: int) -> int:
        """So many clusters, the last of them often not whole."""
        rng = self.world.rng
        return (count - 1) * CLUSTER + rng.choice((CLUSTER, CLUSTER, SECTOR * rng.randint(1, CLUSTER // SECTOR - 1)))

    def live(self) -> None:
        if self.running and not self.silent:
            for _ in range(self.world.rng.randint(1, 3)):
                self.write()
        self.world.after(self.world.rng.expovariate(1 / self.pace), self.live)

    def write(self) -> None:
        rng = self.world.rng
        disk = rng.choice(list(self.sizes))
        cluster = rng.randrange(clusters(self.sizes[disk]))
        before = self.past.setdefault((disk, cluster), [0])
        if rng.random() < 0.35:
            token = rng.choice(before[-4:])
        else:
            self.written += 1
            token = self.written
            before.append(token)
        self.put(disk, cluster, cut(token, cluster_length(cluster, self.sizes[disk])))

    def put(self, disk: str, cluster: int, token: Token) -> None:
        self.tracking.note(disk, cluster)
        if token == ZERO:
            self.content[disk].pop(cluster, None)
        else:
            self.content[disk][cluster] = token

    def grow(self) -> None:
        disk = self.world.rng.choice(list(self.sizes))
        self.resize(disk, max(self.sizes[disk], self.size(clusters(self.sizes[disk]) + self.world.rng.randint(0, 4))))

    def shrink(self) -> None:
        disk = self.world.rng.choice(list(self.sizes))
        count = clusters(self.sizes[disk])
        self.resize(disk, min(self.sizes[disk], self.size(self.world.rng.randint(max(1, count - 5), count))))

    def resize(self, disk: str, size: int) -> None:
        """What is cut off is gone: a disk that grows again holds zeros there."""
        before, self.sizes[disk] = self.sizes[disk], size
        held = self.content[disk]
        for cluster in [cluster for cluster in held if cluster >= clusters(size)]:
            del held[cluster]
        last = clusters(size) - 1
        if size < before and last in held:
            self.put(disk, last, cut(held[last], cluster_length(last, size)))
        self.tracking.resized(disk, before, size)

    def add_disk(self) -> None:
        disk = f"disk-{self.disks_made}"
        self.disks_made += 1
        self.sizes[disk] = self.size(self.world.rng.randint(2, 6))
        self.content[disk] = {}
        for cluster in range(clusters(self.sizes[disk])):
            if self.world.chance(0.3):
                self.written += 1
                self.content[disk][cluster] = cut(self.written, cluster_length(cluster, self.sizes[disk]))
        self.tracking.whole_disk(disk)

    def remove_disk(self) -> None:
        disk = list(self.sizes)[-1]
        del self.sizes[disk], self.content[disk]
        self.tracking.forget_disk(disk)

    def swap_disk(self) -> None:
        """Unplug a disk and plug it in again later, with other content under the same name."""
        disk = list(self.sizes)[-1]
        self.content[disk] = {cluster: token for cluster, token in self.content[disk].items() if cluster % 2}
        self.tracking.whole_disk(disk)

    def snapshot(self) -> Snapshot:
        content = {disk: dict(held) for disk, held in self.content.items()}
        return Snapshot(self.world.now, self.world.now + self.clock, dict(self.sizes), content)

    def geometry(self) -> tuple[DiskGeometry, ...]:
        return tuple(DiskGeometry(disk, size) for disk, size in self.sizes.items())


@dataclass
class Tracking:
    """What a change source must do; everything here survives the agent's death, as files and the hypervisor do."""

    guest: Guest
    on: bool = False
    anchor: Committed | None = None
    waiting: Committed | None = None  # the point that is neither acked nor discarded
    active: dict[str, set[int]] = field(default_factory=dict)
    frozen: dict[str, set[int]] = field(default_factory=dict)
    active_lost: bool = False
    frozen_lost: bool = False

    def note(self, disk: str, cluster: int) -> None:
        if self.on:
            self.active.setdefault(disk, set()).add(cluster)

    def resized(self, disk: str, before: int, after: int) -> None:
        for cluster in range(clusters(before), clusters(after)):
            self.note(disk, cluster)

    def whole_disk(self, disk: str) -> None:
        self.active[disk] = set(range(clusters(self.guest.sizes[disk])))

    def forget_disk(self, disk: str) -> None:
        self.active.pop(disk, None)
        self.frozen.pop(disk, None)

    def start(self) -> None:
        self.on = True

    def lose(self) -> None:
        """Writes went by unseen."""
        self.active_lost = True

    def wipe(self) -> None:
        """Its files are gone; it starts anew when it is asked to."""
        self.on = False
        self.anchor = self.waiting = None
        self.active, self.frozen = {}, {}
        self.active_lost = self.frozen_lost = False

    def open(self, named: Committed) -> tuple[Snapshot, dict[str, list[int]], bool]:
        """Snapshot, dirty clusters, and whether tracking is whole."""
        if not self.on or not self.guest.running:
            raise NotReadable
        if self.waiting is not None and self.waiting != named:
            raise AssertionError("a point waits already")
        self.freeze()
        self.waiting = named
        snapshot = self.guest.snapshot()
        everything = self.anchor is None or self.frozen_lost
        dirty = {}
        for disk, size in snapshot.sizes.items():
            end = clusters(size)
            dirty[disk] = list(range(end)) if everything else sorted(c for c in self.frozen.get(disk, ()) if c < end)
        return snapshot, dirty, not self.frozen_lost

    def freeze(self) -> None:
        for disk, touched in self.active.items():
            self.frozen.setdefault(disk, set()).update(touched)
        self.active = {}
        self.frozen_lost |= self.active_lost
        self.active_lost = False

    def ack(self, named: Committed) -> None:
        if named != self.waiting:
            return
        self.anchor, self.waiting = named, None
        self.frozen = {}
        self.frozen_lost = False

    def discard(self) -> None:
        for disk, touched in self.frozen.items():
            self.active.setdefault(disk, set()).update(touched)
        self.active_lost |= self.frozen_lost
        self.frozen = {}
        self.frozen_lost = False
        self.waiting = None
