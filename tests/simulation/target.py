"""The target's agent around a `Receiver` and the store's memory twin, which forgets what was not synced."""

from collections.abc import Callable
from dataclasses import dataclass

from hyperv_host_agent.replication import receiving as say
from hyperv_host_agent.replication.cycle import Batch, Committed, CycleHeader, DiskGeometry
from hyperv_host_agent.replication.receiver import Receiver
from hyperv_host_agent.store.memory import MemoryStore, _Point
from tests.simulation.network import Network, Stream
from tests.simulation.world import Violation, World
from twinsite import retention
from twinsite.clock import Boot
from twinsite.errors import TwinsiteError
from twinsite.extents import clusters

VM = "vm-1"
SYNC = 1500  # bytes, some five of these small batches


ROOM = 1 << 30


class Store(MemoryStore):
    """Does not count what it holds while there is room for all of it."""

    def need(self, count: int) -> None:
        if self.capacity < ROOM:
            super().need(count)


@dataclass(frozen=True)
class BeginSent:
    header: CycleHeader
    resume_after: int
    granted_term: int


@dataclass(frozen=True)
class BatchSent:
    batch: Batch
    body: tuple[bytes, bytes]


@dataclass(frozen=True)
class EndSent:
    batches: int
    digest: bytes


@dataclass(frozen=True)
class Fingerprints:
    disks: tuple[DiskGeometry, ...]
    by_disk: dict[str, dict[int, bytes]]


@dataclass
class Promises:
    """What the target said and must stay true, whatever happens to it."""

    term: int = 1
    committed: Committed | None = None
    durable: tuple[bytes, int] = (b"", 0)  # of which cycle, how many batches


@dataclass(frozen=True)
class Arrived:
    """A cycle that was just committed, and what was there before."""

    header: CycleHeader
    seen: list[set[int]]
    batches: list[tuple[Batch, bytes]]
    before: _Point
    lacked: set[tuple[str, int]]
    awaiting: bool


class Target:
    receiver_type: type[Receiver] = Receiver

    def __init__(self, world: World, network: Network, judge: Callable[["Target", CycleHeader], None]) -> None:
        self.world, self.network, self.judge = world, network, judge
        self.store = Store(capacity=ROOM, read=lambda: Boot("one", 0.0, 0.0))
        self.promises = Promises()
        self.history: dict[int, object] = {}  # cycle → its content when it was committed
        self.life = 0
        self.up = False
        self.deadly = 0.0
        self.judge_wire: Callable[[Arrived], None] = lambda _arrived: None
        self.grants: Callable[[], tuple[DiskGeometry, ...]] = tuple
        self.boot()

    def boot(self) -> None:
        if self.up:
            return
        self.up = True
        self.life += 1
        self.replica = self.store.create(VM, term=1)
        self.streams: dict[int, Stream] = {}
        self.calls: dict[int, Callable[[object], None]] = {}
        self.ticking = False
        self.receiver = self.receiver_type(VM, self.replica.state(), sync_bytes=SYNC)
        self.check_promises()

    def die(self, *, power: bool) -> None:
        """kill -9 keeps what was written, a power loss only what was synced, and some of the rest."""
        if not self.up:
            return
        self.up = False
        self.world.log("target dies", power)
        for number in list(self.streams):
            self.streams[number].cut(by=0)
        rng = self.world.rng
        self.store.crash(lambda _, staged: rng.randint(0, staged) if power else staged)
        self.world.after(self.world.between(0.1, 3.0), self.boot)

    def check_promises(self) -> None:
        state, promised = self.replica.state(), self.promises
        if state.term < promised.term:
            raise Violation(f"the term fell from {promised.term} to {state.term}")
        newest = state.committed.number if state.committed else 0
        if promised.committed and newest < promised.committed.number:
            raise Violation(f"cycle {promised.committed.number} was acked and is gone")
        id_, durable = promised.durable
        if durable and not (state.committed and state.committed.id == id_):
            unfinished = state.unfinished
            if unfinished is None or unfinished.id != id_ or unfinished.durable < durable:
                raise Violation(f"batch {durable} was acked as durable and is gone")
        listed = {info.cycle for info in self.replica.points()}
        for cycle, held in list(self.history.items()):
            if cycle not in listed:
                del self.history[cycle]  # retention let it go
            elif self.content(cycle) != held:
                raise Violation(f"point {cycle} changed")

    def remember(self) -> None:
        """Something other than a cycle changed what points hold."""
        for cycle in self.history:
            if cycle in self.replica._kept.points:
                self.history[cycle] = self.content(cycle)

    def content(self, cycle: int) -> object:
        return {disk: dict(cells) for disk, cells in self.replica._kept.points[cycle].disks.items()}

    # -------------------------------------------------------------------------------------------------- events

    def asked(self, back: Callable[[object], None]) -> None:
        if self.up:
            number = self.network.number()
            self.calls[number] = back
            self.feed(say.Asked(number, self.replica.state()))

    def tell_fingerprints(self, committed: Committed, back: Callable[[object], None]) -> None:
        if not self.up:
            return
        if self.replica.state().committed != committed:
            back("another cycle is here")
            return
        disks = self.replica.points()[-1].disks
        by_disk = {disk.id: dict(self.replica.fingerprints(disk.id, 0, clusters(disk.size))) for disk in disks}
        back(Fingerprints(disks, by_disk))

    def accept(self, to_source: Callable[[object], None]) -> Stream:
        life = self.life
        stream: Stream

        def arrived(message: object) -> None:
            if not self.up or self.life != life:
                stream.cut(by=0)  # nobody is there: the connection is reset
                return
            number = stream.number
            match message:
                case BeginSent(header, resume_after, term):
                    self.streams[number] = stream
                    self.feed(say.Began(number, header, resume_after, say.Granted(term, self.grants())))
                case BatchSent(batch, body):
                    self.feed(say.BatchReceived(number, batch, body))
                case EndSent(batches, digest):
                    self.feed(say.EndReceived(number, batches, digest))
                case None:
                    self.streams.pop(number, None)
                    self.feed(say.StreamClosed(number))

        stream = Stream(self.network, arrived, to_source)
        if not self.up:
            stream.cut()
        return stream

    def tick(self) -> None:
        life = self.life

        def due() -> None:
            if self.up and self.life == life:
                self.ticking = False
                if self.streams:
                    self.tick()
                self.feed(say.Ticked())

        if not self.ticking:
            self.ticking = True
            self.world.after(1.0, due)

    def raise_term(self, term: int) -> None:
        if self.up and self.replica.state().term < term:
            self.feed(say.TermRaised(term))

    def feed(self, event: say.Event) -> None:
        life = self.life
        self.world.log("target", type(event).__name__)
        for action in self.receiver.handle(event, self.world.now):
            if self.deadly and self.world.chance(self.deadly):
                self.die(power=self.world.chance(0.5))
            if not self.up or self.life != life:
                return
            self.world.log("target does", type(action).__name__)
            try:
                self.act(action)
            except TwinsiteError as error:
                self.feed(say.StoreFailed(error, self.replica.state()))
                return
        self.done(event)

    def done(self, event: say.Event) -> None:
        if isinstance(event, say.TermRaised):
            self.promises.term = max(self.promises.term, event.term)

    # ------------------------------------------------------------------------------------------------- actions

    def act(self, action: say.Action) -> None:
        match action:
            case say.Answer(call, state):
                self.calls.pop(call)(state)
            case say.SetTerm(term):
                self.set_term(term)
            case say.Begin(stream, header, resume_after):
                self.replica.begin(header, resume_after=resume_after)
                self.header = header
                self.promises.durable = (header.id, resume_after)
                self.tick()
                self.feed(say.Begun(stream, self.replica.state()))
            case say.Put(batch, digest):
                self.replica.put(batch, digest)
            case say.Sync():
                self.sync()
            case say.Commit():
                self.commit()
                self.feed(say.Stored(self.replica.state()))
            case say.Abandon():
                self.replica.abandon()
                self.promises.durable = (b"", 0)
            case say.AckDurable(stream, sequence):
                self.promises.durable = (self.promises.durable[0], sequence)
                self.send(stream, sequence)
            case say.AckCommitted(stream, committed):
                self.promises.committed = committed
                self.end(stream, committed)
            case say.Refuse(stream, error):
                self.end(stream, error)

    def set_term(self, term: int) -> None:
        self.replica.set_term(term)

    def sync(self) -> None:
        self.replica.sync()

    def commit(self) -> None:
        header = self.header
        if header.term < self.promises.term:
            raise Violation(f"cycle {header.number} of term {header.term} was committed in term {self.promises.term}")
        receiving = self.replica._kept.receiving
        before = self.replica._kept.points.get(header.parent)
        lacked = set(self.replica._kept.wanted)
        awaiting = self.replica.awaited() is not None
        self.replica.commit()
        if receiving and before:
            self.judge_wire(Arrived(header, receiving.seen, receiving.batches, before, lacked, awaiting))
        self.history[header.number] = self.content(header.number)
        self.promises.durable = (b"", 0)
        self.judge(self, header)
        points = [
            retention.KeptPoint(info.cycle, info.instant, info.recoverable, bool(info.pinned_by))
            for info in self.replica.points()
        ]
        self.replica.maintain(keep=retention.keep(points, additional=2))

    def send(self, stream: int, message: object) -> None:
        if stream in self.streams:
            self.streams[stream].send(1, message)

    def end(self, stream: int, message: object) -> None:
        ended = self.streams.pop(stream, None)
        if ended:
            ended.close(1, message)
