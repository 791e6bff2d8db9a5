"""The source's agent around a `Sender`: acts on what it orders, and may die between any two actions."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication import state as states
from hyperv_host_agent.replication.cycle import Batch, Committed, CycleHeader, Kind, TargetState
from hyperv_host_agent.replication.sender import Sender
from tests.simulation import content
from tests.simulation.machine import Guest, NotReadable, Snapshot
from tests.simulation.network import Cut, Network, Stream
from tests.simulation.target import BatchSent, BeginSent, EndSent, Fingerprints, Target
from tests.simulation.world import Violation, World
from twinsite.digest import ZERO_FINGERPRINT, chain
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER, cluster_length, clusters, runs

VM = "vm-1"
WINDOW = 6000  # bytes, some twenty of these small batches
Cell = tuple[str, int, bytes]  # disk, cluster, fingerprint


@dataclass
class Pending:
    id: bytes
    batches: dict[int, list[Cell]] = field(default_factory=dict)


@dataclass
class Disk:
    """What survives the agent's death: all of it is durable once the action is done."""

    state: bytes = b""
    index: dict[str, dict[int, bytes]] | None = field(default_factory=dict)
    index_of: Committed | None = None  # the cycle it describes
    pending: Pending | None = None


@dataclass
class Point:
    snapshot: Snapshot
    dirty: dict[str, list[int]]


@dataclass
class Made:
    """A batch that can be sent."""

    batch: Batch
    body: tuple[bytes, bytes]
    ready: say.Ready
    cells: list[Cell]


@dataclass
class Turn:
    """What the host's other VMs left to this one."""

    number: int
    copy: bool
    given: bool = False


class Source:
    sender_type: type[Sender] = Sender

    def __init__(self, world: World, guest: Guest, network: Network, target: Target) -> None:
        self.world, self.guest, self.network, self.target = world, guest, network, target
        self.disk = Disk()
        self.snapshots: dict[bytes, Snapshot] = {}  # the run's own record: what the source was at each instant
        self.life = 0  # which incarnation of the agent; replies to an older one go nowhere
        self.up = False
        self.assigned = say.Assigned(
            term=1,
            frequency=world.between(1.0, 8.0),
            application_every=world.rng.choice((0.0, 0.0, 15.0, 40.0)),
            offline=world.chance(0.2),
            not_before=world.between(5, 40) if world.chance(0.15) else 0.0,
        )
        self.deadly = 0.0  # chance to die before an action
        self.flaky = 0.0  # chance that the source cannot be read
        self.crowded = world.rng.choice((0.0, 0.0, 0.2))  # chance to wait for seconds for a turn
        self.freezing = world.rng.choice((0.0, 0.6, 1.0))  # chance that an application-consistent point is one
        self.opened = 0  # newest cycle whose instant may have passed
        self.asked = False  # the target, in this life
        self.fetch_failed = -1e9  # when fingerprints were last asked for in vain
        self.suppressed: dict[bytes, bool] = {}  # cycles by id: whether what the target has was left out
        self.planned: dict[bytes, float] = {}
        self.forced: dict[bytes, set[tuple[str, int]]] = {}
        self.whole: dict[bytes, frozenset[str]] = {}
        self.clusters_per_batch = world.rng.randint(1, 4)
        self.judge_state: Callable[[], None] = lambda: None
        self.boot()

    # ------------------------------------------------------------------------------------------- life and death

    def boot(self) -> None:
        if self.up:
            return
        self.up = True
        self.life += 1
        state = states.load(self.disk.state) if self.disk.state else states.SenderState()
        self.sender = self.sender_type(VM, state, self.world.new_id, window=WINDOW)
        self.stream: Stream | None = None
        self.stream_number = 0
        self.point: Point | None = None
        self.spool: dict[int, Made] = {}
        self.pending = self.disk.pending and Pending(self.disk.pending.id, dict(self.disk.pending.batches))
        self.wakes = 0
        self.turn: Turn | None = None
        self.opened = state.flight.header.number if state.flight else 0
        self.asked = False
        self.feed(self.assigned)

    def die(self) -> None:
        """kill -9."""
        if self.up:
            self.up = False
            self.world.log("source dies")
            if self.stream:
                self.stream.cut(by=1)
            self.world.after(self.world.between(0.1, 3.0), self.boot)

    def assign(self, assigned: say.Assigned) -> None:
        self.assigned = assigned
        if self.up:
            self.feed(assigned)

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """Something of this incarnation."""
        life = self.life

        def alive() -> None:
            if self.up and self.life == life:
                act()

        self.world.after(delay, alive)

    def reply(self, event: say.Event, delay: float | None = None) -> None:
        self.later(self.world.between(0.001, 0.1) if delay is None else delay, lambda: self.feed(event))

    def feed(self, event: say.Event) -> None:
        life = self.life
        self.world.log("source", type(event).__name__)
        for action in self.sender.handle(event, self.world.now):
            if self.deadly and self.world.chance(self.deadly):
                self.die()
            if not self.up or self.life != life:
                return
            self.world.log("source does", type(action).__name__)
            self.act(action)

    # ------------------------------------------------------------------------------------------------- actions

    def act(self, action: say.Action) -> None:
        match action:
            case say.Wake(at):
                if self.turn is not None:
                    raise Violation("it keeps its turn while it waits")
                self.wakes += 1
                number = self.wakes
                self.later(max(0.0, at - self.world.now), lambda: number == self.wakes and self.feed(say.Woke()))
            case say.Persist(state):
                self.disk.state = states.dump(state)
                if state.flight is None:
                    self.judge_state()
            case say.AskTarget():
                self.ask_target()
            case say.AskTurn():
                self.ask_turn(action)
            case say.EndTurn():
                self.turn = None
            case say.FetchIndex(committed):
                self.fetch_index(committed)
            case say.AskSource():
                self.ask_source()
            case say.AckPoint(committed):
                self.guest.tracking.ack(committed)
            case say.DiscardPoint():
                self.point = None
                self.guest.tracking.discard()
            case say.OpenPoint(number, id_, consistency):
                self.has_turn(copy=False)
                if self.sender.state.committed is None and self.world.now < self.assigned.not_before:
                    raise Violation("a first copy began before its time")
                self.opened = max(self.opened, number) if number != 1 else 1
                self.later(self.world.between(0.01, 0.3), lambda: self.open_point(Committed(number, id_), consistency))
            case say.ClosePoint():
                self.point = None
            case say.ReadPoint():
                self.read_point(action)
            case say.ReadSlice():
                slow = not self.network.calm and self.world.chance(0.08)
                delay = self.world.between(1.0, 5.0) if slow else self.world.between(0.01, 0.2)
                self.later(delay, lambda: self.read_slice(action))
            case say.StorePending(id_, through):
                self.store_pending(id_, through)
            case say.ApplyPending(header, complete):
                self.apply_pending(header, complete)
            case say.DropPending():
                self.pending = self.disk.pending = None
            case say.DropSpool():
                self.spool = {}
            case say.BeginStream():
                self.begin_stream(action)
            case say.SendBatch(_, sequence):
                made = self.spool[sequence]
                if self.stream:
                    self.stream.send(0, BatchSent(made.batch, made.body))
            case say.SendEnd(_, batches, digest):
                if self.stream:
                    self.stream.send(0, EndSent(batches, digest))
            case say.CloseStream():
                if self.stream:
                    self.stream.cut(by=1)
                self.stream = None

    def ask_target(self) -> None:
        life = self.life

        def answered(value: object | None) -> None:
            if not self.up or self.life != life:
                return
            if isinstance(value, TargetState):
                self.opened = max(self.opened, value.committed.number if value.committed else 0)
                self.asked = True
                self.feed(say.TargetKnown(value))
            else:
                self.feed(say.TargetFailed(Cut()))

        self.network.call(self.target.asked, answered)

    def ask_turn(self, action: say.AskTurn) -> None:
        self.turn = turn = Turn(action.turn, action.copy)

        def given() -> None:
            turn.given = True  # though it may not be the one that counts any more
            self.feed(say.TurnGiven(turn.number))

        busy = not action.urgent and self.world.chance(self.crowded)
        self.later(self.world.between(0.5, 6.0) if busy else self.world.between(0.0, 0.05), given)

    def has_turn(self, *, copy: bool) -> None:
        turn = self.turn
        if turn is None or not turn.given or turn.copy != copy:
            raise Violation("it runs without its turn")

    def fetch_index(self, committed: Committed) -> None:
        life = self.life

        def stored(found: Fingerprints) -> None:
            if self.world.chance(self.flaky):
                self.fetch_failed = self.world.now
                self.feed(say.IndexFetched(sound=False))
                return
            self.disk.index = {disk.id: dict(found.by_disk[disk.id]) for disk in found.disks}
            self.disk.index_of = committed
            self.reply(say.IndexFetched(sound=True, disks=found.disks))

        def answered(value: object | None) -> None:
            if not self.up or self.life != life:
                return
            if isinstance(value, Fingerprints):
                self.later(self.world.between(0.01, 1.0), lambda: stored(value))
                return
            self.fetch_failed = self.world.now
            self.feed(say.TargetFailed(Cut()) if value is None else say.IndexFetched(sound=False))

        self.network.call(lambda back: self.target.tell_fingerprints(committed, back), answered)

    def ask_source(self) -> None:
        tracking = self.guest.tracking
        if self.world.chance(self.flaky):
            self.reply(say.SourceFailed(NotReadable()))
            return
        tracking.start()
        self.reply(say.SourceKnown(tracking.anchor, self.guest.geometry(), self.disk.index_of))

    def open_point(self, named: Committed, consistency: str) -> None:
        if self.world.chance(self.flaky):
            self.feed(say.SourceFailed(NotReadable()))
            return
        try:
            snapshot, dirty, whole = self.guest.tracking.open(named)
        except NotReadable as error:
            self.feed(say.SourceFailed(error))
            return
        self.snapshots[named.id] = snapshot
        self.point = Point(snapshot, dirty)
        if consistency == "application" and not self.world.chance(self.freezing):
            consistency = "crash"
        doubt = "" if whole else "writes went by unseen"
        self.reply(say.PointOpened(snapshot.instant, consistency, self.guest.geometry(), whole, b"", doubt))

    # ------------------------------------------------------------------------------------------------- reading

    def differing(self, disk: str, tokens: dict[int, content.Token], *, suppress: bool) -> list[Cell]:
        known = (self.disk.index or {}).get(disk, {})
        cells = []
        for cluster, token in tokens.items():
            fingerprint = content.fingerprint(token)
            if not suppress or known.get(cluster, ZERO_FINGERPRINT) != fingerprint:
                cells.append((disk, cluster, fingerprint))
        return cells

    def make(
        self, sequence: int, disk: int, cells: list[Cell], tokens: dict[int, content.Token], before: bytes
    ) -> Made:
        data = [cell for cell in cells if tokens[cell[1]] != content.ZERO]
        frames = [content.frame(tokens[cluster]) for _, cluster, _ in data]
        zeros = tuple(runs(cluster for _, cluster, _ in cells if tokens[cluster] == content.ZERO))
        batch = Batch(
            sequence=sequence,
            disk=disk,
            clusters=tuple(cluster for _, cluster, _ in data),
            lengths=tuple(map(len, frames)),
            fingerprints=b"".join(fingerprint for _, _, fingerprint in data),
            zero_runs=zeros,
            payload=b"".join(frames),
        )
        head = f"{sequence} {disk} {batch.clusters} {batch.lengths} {zeros}".encode() + batch.fingerprints
        body = (head, bytes(batch.payload))
        ready = say.Ready(sequence, len(head) + len(batch.payload), chain(before, *body), len(cells) * CLUSTER)
        return Made(batch, body, ready, cells)

    def read_point(self, action: say.ReadPoint) -> None:
        point, header = self.point, action.header
        if point is None or self.world.chance(self.flaky):
            self.point = None
            self.reply(say.SourceFailed(NotReadable()))
            return
        self.spool = {}
        self.pending = Pending(header.id)
        self.suppressed[header.id] = action.suppress
        self.planned[header.id] = self.world.now
        self.whole[header.id] = action.whole
        forced = self.forced[header.id] = self.forced_by(action)
        digest = bytes(16)
        for index, disk in enumerate(header.disks):
            held = point.snapshot.content[disk.id]
            whole = disk.id in action.whole
            places = range(clusters(point.snapshot.sizes[disk.id])) if whole else point.dirty[disk.id]
            tokens = {c: held.get(c, content.ZERO) for c in places}
            cells = self.differing(disk.id, tokens, suppress=action.suppress and not whole)
            seen = {cluster for _, cluster, _ in cells}
            for cluster in [c for name, c in forced if name == disk.id and c not in seen]:
                tokens[cluster] = held.get(cluster, content.ZERO)
                cells.append((disk.id, cluster, content.fingerprint(tokens[cluster])))
            cells.sort()
            for at in range(0, len(cells), self.clusters_per_batch):
                part = cells[at : at + self.clusters_per_batch]
                made = self.make(len(self.spool) + 1, index, part, tokens, digest)
                digest = made.ready.digest
                self.spool[made.ready.sequence] = made
                self.pending.batches[made.ready.sequence] = made.cells
        made, self.spool = list(self.spool.values()), {}
        self.tell_parts(made)

    def tell_parts(self, left: list[Made]) -> None:
        """A few batches at a time, the last ones with the end; reading may fail between them."""
        ends = not left or self.world.chance(0.3)
        count = len(left) if ends else self.world.rng.randint(1, len(left))

        def read() -> None:
            life = self.life
            if not ends and self.world.chance(self.flaky):
                self.point = None
                self.feed(say.SourceFailed(NotReadable()))
                return
            part = left[:count]
            self.spool.update({made.ready.sequence: made for made in part})
            batches = tuple(made.ready for made in part)
            self.feed(say.PointRead(batches) if ends else say.PartRead(batches))
            if not ends and self.up and self.life == life:
                self.tell_parts(left[count:])

        self.later(self.world.between(0.01, 0.5), read)

    def forced_by(self, action: say.ReadPoint) -> set[tuple[str, int]]:
        ends = {disk.id: clusters(disk.size) for disk in action.header.disks}
        if any(want.disk not in ends or want.run.end > ends[want.disk] for want in action.forced):
            raise Violation("a cluster is forced that no disk has")
        return {(want.disk, cluster) for want in action.forced for cluster in range(want.run.start, want.run.end)}

    def read_slice(self, action: say.ReadSlice) -> None:
        header, position = action.header, action.position
        disk = header.disks[position.disk]
        size = clusters(disk.size)
        self.suppressed[header.id] = action.suppress
        self.planned.setdefault(header.id, self.world.now)
        self.whole[header.id] = action.whole
        if self.world.chance(self.flaky) or not self.guest.running:
            self.feed(say.SourceFailed(NotReadable(), action.stream))
            return
        end = min(size, position.cluster + self.clusters_per_batch)
        held = self.guest.content.get(disk.id, {})
        tokens = {
            c: content.cut(held.get(c, content.ZERO), cluster_length(c, disk.size))
            for c in range(position.cluster, end)
        }
        cells = self.differing(disk.id, tokens, suppress=action.suppress and disk.id not in action.whole)
        after = states.Position(position.disk, end) if end < size else states.Position(position.disk + 1, 0)
        if self.pending is None or self.pending.id != header.id:
            self.pending = Pending(header.id)
        self.pending.batches = {n: held for n, held in self.pending.batches.items() if n < action.sequence}
        ready = None
        if cells:
            made = self.make(action.sequence, position.disk, cells, tokens, action.digest)
            ready = made.ready
            self.spool[action.sequence] = made
            self.pending.batches[action.sequence] = cells
        self.reply(say.SliceRead(action.stream, ready, after))

    # -------------------------------------------------------------------------------------------- fingerprints

    def store_pending(self, id_: bytes, through: int) -> None:
        held = self.pending.batches if self.pending and self.pending.id == id_ else {}
        self.disk.pending = Pending(id_, {number: cells for number, cells in held.items() if number <= through})

    def apply_pending(self, header: CycleHeader, complete: bool) -> None:
        pending = self.disk.pending
        named, parent = Committed(header.number, header.id), Committed(header.parent, header.parent_id)
        fits = complete or self.disk.index_of in (parent, named)  # a crash may have come after it was applied
        sound = pending is not None and pending.id == header.id and fits
        if sound and pending:
            self.disk.index_of = named
            index = {} if complete else {disk: dict(held) for disk, held in (self.disk.index or {}).items()}
            sizes = {disk.id: clusters(disk.size) for disk in header.disks}
            for cells in pending.batches.values():
                for disk, cluster, fingerprint in cells:
                    index.setdefault(disk, {})[cluster] = fingerprint
            self.disk.index = {
                disk: {cluster: print_ for cluster, print_ in held.items() if cluster < sizes[disk]}
                for disk, held in index.items()
                if disk in sizes
            }
        self.reply(say.Applied(sound))

    # -------------------------------------------------------------------------------------------------- stream

    def begin_stream(self, action: say.BeginStream) -> None:
        header = action.header
        self.has_turn(copy=header.kind is not Kind.DELTA and not header.placeholder)
        if self.stream:
            self.stream.cut(by=1)
        number, life = action.stream, self.life

        def arrived(message: object) -> None:
            if not self.up or self.life != life:
                return
            match message:
                case int():
                    self.feed(say.Durable(number, message))
                case Committed():
                    self.feed(say.CommitAcked(number, message))
                case TwinsiteError():
                    self.feed(say.StreamLost(number, message))
                case None:
                    self.feed(say.StreamLost(number, Cut()))

        self.stream = self.target.accept(arrived)
        self.stream.send(0, BeginSent(action.header, action.resume_after, self.assigned.term))
