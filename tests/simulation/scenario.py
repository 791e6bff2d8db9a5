"""One seed, one run: two agents, one VM, everything that goes wrong, and what has to hold all the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.progress import Phase
from hyperv_host_agent.replication.sending import SyncRequested
from tests.simulation import content
from tests.simulation.machine import Guest, Snapshot
from tests.simulation.network import Network, Stream
from tests.simulation.source import Source
from tests.simulation.target import VM, BatchSent, Target
from tests.simulation.world import Violation, World
from twinsite.extents import clusters

TROUBLE = 300.0  # seconds of virtual time in which things go wrong
HEALING = 120.0  # after which everything must be well again
FAULTS = {  # mean seconds between two of a kind, in the runs that have that kind
    "source_dies": 20,
    "target_dies": 20,
    "source_host_loses_power": 50,
    "link_cut": 8,
    "link_down": 40,
    "frames_swapped": 15,
    "tracking_lost": 60,
    "tracking_wiped": 120,
    "source_state_wiped": 150,
    "source_state_older": 150,
    "index_lost": 80,
    "target_wiped": 150,
    "target_older": 80,
    "no_space": 50,
    "disk_grows": 40,
    "disk_added": 60,
    "disk_removed": 80,
    "disk_swapped": 80,
    "paused": 50,
    "term_bumped": 80,
}


@dataclass(frozen=True)
class Plan:
    """A planted fault: other classes in the place of ours."""

    source: type[Source] = Source
    target: type[Target] = Target
    guest: type[Guest] = Guest


@dataclass(frozen=True)
class Outcome:
    trace: str
    events: int
    recoverable: int  # cycles that were committed and consistent
    happened: tuple[str, ...]


class Scenario:
    def __init__(self, seed: int, plan: Plan) -> None:
        self.world = World(seed)
        world = self.world
        self.guest = plan.guest(world)
        self.network = Network(world)
        self.target = plan.target(world, self.network, self.judge)
        self.recoverable = 0
        self.source = plan.source(world, self.guest, self.network, self.target)
        self.target.grants = self.granted
        self.source.judge_index = self.judge_index
        self.stored = (copy.copy(self.source.disk), 0)
        self.trouble = True
        self.happened: list[str] = []
        self.fails_over = world.chance(0.25)
        share = world.rng.choice((0.1, 0.2, 0.4))
        kinds = [kind for kind in FAULTS if world.chance(share)]
        rate = world.rng.choice((0.5, 1.0, 2.0))
        for kind in kinds:
            self.again(kind, FAULTS[kind] / rate)
        for host in (self.source, self.target):
            host.deadly = world.rng.choice((0.0, 0.002, 0.01, 0.03))
        self.source.flaky = world.rng.choice((0.0, 0.0, 0.05))
        self.backup_source()
        self.backup_target()

    def granted(self) -> tuple[DiskGeometry, ...]:
        return tuple(DiskGeometry(f"disk-{name}", 1 << 40) for name in ("a", "b", *range(2, 40)))

    # ------------------------------------------------------------------------------------------ what goes wrong

    def again(self, kind: str, mean: float) -> None:
        act: Callable[[], None] = getattr(self, kind)

        def happen() -> None:
            if self.trouble:
                self.world.log(kind)
                self.happened.append(kind)
                act()
                self.again(kind, mean)

        self.world.after(self.world.rng.expovariate(1 / mean), happen)

    def source_dies(self) -> None:
        self.source.die()

    def target_dies(self) -> None:
        self.target.die(power=self.world.chance(0.5))

    def source_host_loses_power(self) -> None:
        self.guest.running = False
        if self.world.chance(0.5):
            self.guest.tracking.lose()
        self.source.die()
        self.world.after(self.world.between(1, 8), self.power_returns)

    def power_returns(self) -> None:
        self.guest.running = True

    def link_cut(self) -> None:
        self.network.cut_all()

    def link_down(self) -> None:
        self.network.down = True
        self.network.cut_all()
        self.world.after(self.world.between(1, 20), self.link_up)

    def link_up(self) -> None:
        self.network.down = False

    def frames_swapped(self) -> None:
        """One message arrives with the content of another: well-formed, and not what was sent."""
        if self.network.streams:
            damage(self.world.rng.choice(self.network.streams))

    def tracking_lost(self) -> None:
        self.guest.tracking.lose()

    def tracking_wiped(self) -> None:
        """The host was rebuilt: agent and tracking start with nothing known about changes."""
        self.source.die()
        self.guest.tracking.wipe()

    def source_state_wiped(self) -> None:
        self.source.die()
        self.source.disk = type(self.source.disk)(index=None)

    def backup_source(self) -> None:
        if self.trouble:
            self.stored = copy.copy(self.source.disk), self.source.sender.state.term
            self.world.after(self.world.between(20, 60), self.backup_source)

    def source_state_older(self) -> None:
        """The agent's state folder was restored from a backup; the change tracking was not."""
        self.source.die()
        self.source.disk = copy.copy(self.stored[0])

    def index_lost(self) -> None:
        self.source.die()
        self.source.disk.index = self.source.disk.index_of = None

    def target_wiped(self) -> None:
        self.replace_target({})

    def backup_target(self) -> None:
        if self.trouble:
            if self.target.up:
                kept = self.target.replica._kept
                self.copied = dict(kept.points)
            self.world.after(self.world.between(10, 60), self.backup_target)

    def target_older(self) -> None:
        """The replica store was restored from a backup."""
        self.replace_target(self.copied)

    def replace_target(self, points: dict[int, object]) -> None:
        target = self.target
        target.die(power=True)
        kept = target.store._kept[VM]
        kept.points, kept.receiving = dict(points), None
        target.history = {}
        target.promises.committed = None
        target.promises.durable = (b"", 0)

    def no_space(self) -> None:
        self.target.store.capacity = 1
        self.world.after(self.world.between(2, 15), self.space)

    def space(self) -> None:
        self.target.store.capacity = 1 << 30

    def disk_grows(self) -> None:
        self.guest.grow()

    def disk_added(self) -> None:
        if len(self.guest.sizes) < 4:
            self.guest.add_disk()

    def disk_removed(self) -> None:
        if len(self.guest.sizes) > 1:
            self.guest.remove_disk()

    def disk_swapped(self) -> None:
        if len(self.guest.sizes) > 1:
            self.guest.swap_disk()

    def paused(self) -> None:
        self.source.assign(replace(self.source.assigned, paused=True))
        self.world.after(self.world.between(1, 20), self.resumed)

    def resumed(self) -> None:
        self.source.assign(replace(self.source.assigned, paused=False))

    def term_bumped(self) -> None:
        self.source.assign(replace(self.source.assigned, term=self.source.assigned.term + 1))

    # ------------------------------------------------------------------------------------------- what must hold

    def judge(self, target: Target, header: CycleHeader) -> None:
        """Called at every commit."""
        if header.kind is not Kind.DELTA and header.consistency == "none":
            return
        self.recoverable += 1
        snapshot = self.source.snapshots.get(header.id)
        if snapshot is None:
            raise Violation(f"cycle {header.number} is of no instant of the source")
        compare(target, header.number, snapshot, f"cycle {header.number}")

    def run(self) -> Outcome:
        world = self.world
        world.after(0.0, self.guest.live)
        world.run(TROUBLE)
        self.heal()
        if self.fails_over:
            self.fail_over()
        world.run(TROUBLE + HEALING / 2)
        if not self.fails_over and self.source.sender.state.instant < TROUBLE:
            raise Violation("no recovery point came in the minute after healing")
        self.guest.silent = True
        still = self.guest.snapshot()
        self.source.feed(SyncRequested())
        before = self.newest()
        world.run(TROUBLE + HEALING)
        self.check_end(still, before)
        return Outcome(world.trace(), world.events, self.recoverable, tuple(self.happened))

    def heal(self) -> None:
        self.trouble = False
        self.network.down, self.network.calm = False, True
        self.source.deadly = self.target.deadly = self.source.flaky = 0.0
        self.space()
        self.power_returns()
        self.resumed()

    def fail_over(self) -> None:
        """The target takes the VM over in a newer term; with luck the old owner is told at once, mostly it is not."""
        term = self.source.assigned.term + 1
        self.raised = term

        def promote() -> None:
            if self.target.up:
                self.target.raise_term(term)
                self.world.after(self.world.between(0.1, 5), lambda: self.target.die(power=True))
            else:
                self.world.after(0.5, promote)

        self.world.after(self.world.between(0.1, 10), promote)
        self.returns = self.world.chance(0.5)
        if self.returns:  # the newest owner is the source again
            self.world.after(30.0, lambda: self.source.assign(replace(self.source.assigned, term=term + 1)))

    def newest(self) -> int:
        state = self.target.receiver.state
        return state.committed.number if state.committed else 0

    def check_end(self, still: Snapshot, before: int) -> None:
        sender = self.source.sender
        if self.fails_over and not self.returns:
            if sender.view.phase is not Phase.FENCED:
                raise Violation(f"the old owner does not know it: {sender.view.phase}")
            return
        if sender.view.phase is not Phase.REPLICATING:
            raise Violation(f"after healing it is {sender.view.phase}: {sender.view.reason}")
        infos = self.target.replica.points()
        if not infos or infos[-1].cycle <= before or not infos[-1].recoverable:
            raise Violation("no cycle came after healing")
        compare(self.target, infos[-1].cycle, still, "after healing the target")

    def judge_index(self) -> None:
        """Called when the source has stored a state that trusts its index."""
        state = self.source.sender.state
        index = self.source.disk.index
        if (
            self.source.disk.index_of != state.committed
            or index is None
            or not self.target.up
            or state.committed != self.target.replica.state().committed
        ):
            return
        for disk in state.disks:
            held = dict(self.target.replica.fingerprints(disk.id, 0, clusters(disk.size)))
            known = {c: f for c, f in index.get(disk.id, {}).items() if f != content.fingerprint(content.ZERO)}
            if held != known:
                raise Violation(f"the index of {disk.id} is not what the target has")


def compare(target: Target, cycle: int, snapshot: Snapshot, what: str) -> None:
    point = target.replica._kept.points[cycle]
    sizes = {disk.id: clusters(disk.size) for disk in point.info.disks}
    if sizes != snapshot.sizes:
        raise Violation(f"{what} has other disks than the source had")
    for disk, held in snapshot.content.items():
        there = {cluster: cell[0] for cluster, cell in point.disks[disk].items()}
        here = {cluster: content.frame(token) for cluster, token in held.items()}
        if there != here:
            wrong = sorted(c for c in {*there, *here} if there.get(c) != here.get(c))
            raise Violation(f"{what} differs from the source's instant {snapshot.instant:.3f}: {disk} clusters {wrong}")


def damage(stream: Stream) -> None:
    """Replace the frames of the next batch by others of the same kind."""
    deliver = stream.ends[0]

    def swapped(message: object) -> None:
        if isinstance(message, BatchSent) and message.batch.clusters:
            stream.ends = (deliver, stream.ends[1])
            frames = [content.frame(999_999 + cluster) for cluster in message.batch.clusters]
            batch = replace(message.batch, payload=b"".join(frames), lengths=tuple(map(len, frames)))
            message = BatchSent(batch, (message.body[0], bytes(batch.payload)))
        deliver(message)

    stream.ends = (swapped, stream.ends[1])


def run(seed: int, plan: Plan | None = None, story: list[str] | None = None) -> Outcome:
    scenario = Scenario(seed, plan or Plan())
    scenario.world.story = story
    return scenario.run()
