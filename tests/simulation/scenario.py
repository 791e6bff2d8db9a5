"""One seed, one run: two agents, one VM, everything that goes wrong, and what has to hold all the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Wanted
from hyperv_host_agent.replication.fetch import RETRY_SECONDS
from hyperv_host_agent.replication.progress import Phase
from hyperv_host_agent.replication.sending import SyncRequested
from hyperv_host_agent.store.base import AwaitedSeed, PointInfo
from hyperv_host_agent.store.memory import _Point
from hyperv_host_agent.store.seeding import Seeded
from tests.simulation import content
from tests.simulation.machine import Guest, Snapshot
from tests.simulation.network import Network, Stream
from tests.simulation.seeds import Courier
from tests.simulation.source import Source
from tests.simulation.target import ROOM, VM, Arrived, BatchSent, Target
from tests.simulation.world import Violation, World
from twinsite.digest import ZERO_FINGERPRINT
from twinsite.extents import Run, cluster_length, clusters

TROUBLE = 480.0  # seconds of virtual time in which things go wrong
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
    "source_state_older": 70,
    "index_lost": 80,
    "target_wiped": 150,
    "target_older": 80,
    "no_space": 50,
    "target_template": 150,
    "cluster_damaged": 40,
    "clock_jumps": 60,
    "policy_changed": 80,
    "sync_wanted": 60,
    "seed_called_off": 300,
    "disk_grows": 40,
    "disk_shrinks": 50,
    "disk_bounces": 60,
    "disk_added": 60,
    "disk_removed": 80,
    "disk_swapped": 80,
    "paused": 50,
    "term_bumped": 80,
}


DAMAGED = content.frame(777_777_777)
Copied = tuple[dict[int, _Point], set[tuple[str, int]], AwaitedSeed | None, Seeded | None]  # of a replica


@dataclass(frozen=True)
class Plan:
    """A planted fault: other classes in the place of ours."""

    source: type[Source] = Source
    target: type[Target] = Target
    guest: type[Guest] = Guest
    courier: type[Courier] = Courier


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
        self.renew_grant()
        self.source.judge_state = self.judge_state
        self.target.judge_wire = self.judge_wire
        self.stored = (copy.copy(self.source.disk), 0)
        self.copied: Copied = ({}, set(), None, None)
        self.application = -1.0  # when the newest application-consistent point was committed
        self.offline = self.source.assigned.offline
        self.courier = plan.courier(world, self.source, self.target, self.seed_arrived)
        if self.offline:
            world.after(1.0, self.courier.set_out)
        self.trouble = True
        self.happened: list[str] = []
        self.fails_over = not self.offline and world.chance(0.25)
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
        return self.grant

    def renew_grant(self) -> None:
        """The coordinator learns of other disks after a while; the grant covers those the VM had then."""
        self.grant = self.guest.geometry()
        self.world.after(self.world.between(1.0, 8.0), self.renew_grant)

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
        self.replace_target(({}, set(), None, None))

    def backup_target(self) -> None:
        if self.trouble:
            if self.target.up:
                kept = self.target.replica._kept
                points = {cycle: replace(point) for cycle, point in kept.points.items()}
                self.copied = points, set(kept.wanted), kept.placeholder, kept.seeded
            self.world.after(self.world.between(10, 60), self.backup_target)

    def target_older(self) -> None:
        """The replica store was restored from a backup."""
        self.replace_target(self.copied)

    def target_template(self) -> None:
        """The replica is filled from a disk that is similar to the VM's, by somebody who is not its source."""
        rng, guest = self.world.rng, self.guest
        disks: dict[str, dict[int, tuple[bytes, bytes]]] = {}
        for disk, held in guest.content.items():
            tokens = {c: t if rng.random() < 0.8 else 555_000 + rng.randrange(9) for c, t in held.items()}
            for cluster in range(clusters(guest.sizes[disk])):
                if rng.random() < 0.1:
                    tokens[cluster] = 666_000 + cluster
            tokens = {c: content.cut(t, cluster_length(c, guest.sizes[disk])) for c, t in tokens.items()}
            disks[disk] = {c: (content.frame(t), content.fingerprint(t)) for c, t in tokens.items()}
        number = rng.randint(1, 3)
        info = PointInfo(
            cycle=number,
            id=self.world.new_id(),
            parent=0,
            instant=0.0,
            consistency="none",
            term=1,
            machine=b"",
            disks=guest.geometry(),
            clusters=0,
            stored_bytes=0,
        )
        self.replace_target(({number: _Point(info, disks)}, set(), None, None))

    def cluster_damaged(self) -> None:
        """Found by the scrub as soon as it happens: the fingerprint beside the chain is still the right one."""
        target = self.target
        kept = target.store._kept[VM]
        newest = kept.points[max(kept.points)] if kept.points and target.up else None
        cells = [(disk, c) for disk, held in newest.disks.items() for c in held] if newest else []
        if not cells:
            return
        disk, cluster = self.world.rng.choice(cells)
        hurt = newest.disks[disk][cluster]
        for point in kept.points.values():
            if point.disks.get(disk, {}).get(cluster) is hurt:
                point.disks = {**point.disks, disk: {**point.disks[disk], cluster: (DAMAGED, hurt[1])}}
        target.replica.want([Wanted(disk, Run(cluster, 1))])
        target.remember()

    def clock_jumps(self) -> None:
        self.guest.clock += self.world.rng.choice((-90_000.0, -4000.0, -30.0, 5.0, 3600.0))

    def policy_changed(self) -> None:
        self.source.assign(replace(self.source.assigned, frequency=self.world.between(1.0, 8.0)))

    def sync_wanted(self) -> None:
        if self.source.up:
            self.source.feed(SyncRequested())

    def seed_called_off(self) -> None:
        if self.offline:
            self.source.assign(replace(self.source.assigned, offline=False))

    def seed_arrived(self) -> None:
        self.world.log("seed arrived")
        self.target.remember()
        for info in self.target.replica.points():
            if info.recoverable:
                self.compare_with_source(info)

    def replace_target(self, copied: Copied) -> None:
        target = self.target
        target.die(power=True)
        kept = target.store._kept[VM]
        points, wanted, kept.placeholder, kept.seeded = copied
        kept.points = {cycle: replace(point) for cycle, point in points.items()}
        kept.wanted, kept.receiving = set(wanted), None
        target.history = {}
        target.promises.committed = None
        target.promises.durable = (b"", 0)

    def no_space(self) -> None:
        self.target.store.capacity = 1
        self.world.after(self.world.between(2, 15), self.space)

    def space(self) -> None:
        self.target.store.capacity = ROOM

    def disk_grows(self) -> None:
        self.guest.grow()

    def disk_shrinks(self) -> None:
        self.guest.shrink()

    def disk_bounces(self) -> None:
        """Shrinks and grows again, mostly between two cycles."""
        before = dict(self.guest.sizes)
        self.guest.shrink()

        def back() -> None:
            for disk, size in before.items():
                if disk in self.guest.sizes:
                    self.guest.resize(disk, max(size, self.guest.sizes[disk]))

        self.world.after(self.world.between(0, 3), back)

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
        if header.consistency == "application":
            self.application = self.world.now
        info = target.replica.points()[-1]
        if info.recoverable:
            self.recoverable += 1
            self.compare_with_source(info)

    def compare_with_source(self, info: PointInfo) -> None:
        snapshot = self.source.snapshots.get(info.id)
        if snapshot is None:
            raise Violation(f"cycle {info.cycle} is of no instant of the source")
        lacking = self.target.replica._kept.wanted
        compare(self.target, info.cycle, snapshot, f"cycle {info.cycle}", lacking)

    def judge_wire(self, arrived: Arrived) -> None:
        """Only what differs travels, however the target came to what it has."""
        header, source = arrived.header, self.source
        after = self.target.replica._kept.points[header.number]
        forced, whole = source.forced.get(header.id, set()), source.whole.get(header.id, frozenset())
        redundant = [
            (disk.id, cluster)
            for disk, seen in zip(header.disks, arrived.seen, strict=True)
            for cluster in seen
            if fingerprint_of(arrived.before, disk.id, cluster) == fingerprint_of(after, disk.id, cluster)
            and (disk.id, cluster) not in forced
            and disk.id not in whole
        ]
        if not redundant:
            return
        if source.suppressed.get(header.id):
            raise Violation(f"cycle {header.number} sent what the target had: {redundant[:5]}")
        since = source.planned[header.id] - source.fetch_failed
        if not self.offline and since > RETRY_SECONDS + 1:
            raise Violation(
                f"cycle {header.number} was sent without asking for fingerprints: {len(redundant)} clusters"
            )

    def run(self) -> Outcome:
        world = self.world
        world.after(0.0, self.guest.live)
        world.run(TROUBLE)
        self.heal()
        if self.fails_over:
            self.fail_over()
        world.run(TROUBLE + HEALING / 2)
        if not self.fails_over and self.newest_recoverable() < TROUBLE:
            raise Violation("no recovery point came in the minute after healing")
        self.guest.silent = True
        if world.chance(0.3):
            self.cluster_damaged()
        still = self.guest.snapshot()
        self.source.feed(SyncRequested())
        before = self.newest()
        world.run(TROUBLE + HEALING)
        self.check_end(still, before)
        return Outcome(world.trace(), world.events, self.recoverable, tuple(self.happened))

    def heal(self) -> None:
        self.trouble = False
        self.network.down, self.network.calm = False, True
        self.source.deadly = self.target.deadly = self.source.flaky = self.source.crowded = 0.0
        self.source.freezing = 1.0
        self.courier.hurried = True
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

    def newest_recoverable(self) -> float:
        """When the newest of the target's recovery points was the source."""
        infos = [info for info in self.target.replica.points() if info.recoverable]
        return self.source.snapshots[infos[-1].id].at if infos else -1.0

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
        compare(self.target, infos[-1].cycle, still, "after healing the target", set())
        if self.target.replica.wanted():
            raise Violation("the target still wants clusters")
        if self.source.assigned.application_every and self.application < TROUBLE:
            raise Violation("no application-consistent point came after healing")

    def judge_state(self) -> None:
        """Called when the source has stored a state between two cycles."""
        state = self.source.sender.state
        if not self.target.up or state.committed is None or state.committed != self.target.replica.state().committed:
            return
        if state.recoverable and not self.target.replica.points()[-1].recoverable:
            raise Violation(f"cycle {state.committed.number} is called recoverable and is not")
        index = self.source.disk.index
        if not self.source.asked:
            return  # restored with its index perhaps, and its target to before its seed came; the answer will say so
        if not state.trusted or self.source.disk.index_of != state.committed or index is None:
            return
        for disk in state.disks:
            held = dict(self.target.replica.fingerprints(disk.id, 0, clusters(disk.size)))
            known = {c: f for c, f in index.get(disk.id, {}).items() if f != content.fingerprint(content.ZERO)}
            if held != known:
                wrong = [c for c in sorted({*held, *known}) if held.get(c) != known.get(c)]
                raise Violation(f"the index of {disk.id} is not what the target has in {wrong[:9]}")


def fingerprint_of(point: _Point, disk: str, cluster: int) -> bytes:
    cell = point.disks.get(disk, {}).get(cluster)
    return cell[1] if cell else ZERO_FINGERPRINT


def compare(target: Target, cycle: int, snapshot: Snapshot, what: str, lacking: set[tuple[str, int]]) -> None:
    point = target.replica._kept.points[cycle]
    sizes = {disk.id: disk.size for disk in point.info.disks}
    if sizes != snapshot.sizes:
        raise Violation(f"{what} has other disks than the source had")
    for disk, held in snapshot.content.items():
        there = {cluster: content.shown(cell[0]) for cluster, cell in point.disks[disk].items()}
        here = {cluster: content.fingerprint(token) for cluster, token in held.items()}
        if there == here:
            continue
        wrong = [c for c in sorted({*there, *here}) if there.get(c) != here.get(c) and (disk, c) not in lacking]
        # An older point keeps what was damaged: only the newest is repaired.
        if cycle != max(target.replica._kept.points):
            wrong = [c for c in wrong if there.get(c) != content.shown(DAMAGED)]
        if wrong:
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
