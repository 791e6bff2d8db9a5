"""Planted faults: what the simulator has to notice. Each is one of our parts with one rule taken out."""

from dataclasses import replace
from typing import ClassVar

from hyperv_host_agent.replication import receiving
from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication.claim import Claim
from hyperv_host_agent.replication.cycle import Committed, CycleHeader, Kind, TargetState
from hyperv_host_agent.replication.fetch import Fetch
from hyperv_host_agent.replication.receiver import Receiver
from hyperv_host_agent.replication.sender import Sender
from hyperv_host_agent.replication.state import Checkpoint, Flight, Position
from tests.simulation.machine import Guest, Snapshot, Tracking
from tests.simulation.scenario import Plan
from tests.simulation.seeds import Courier
from tests.simulation.source import Pending, Source
from tests.simulation.target import Fingerprints, Target

# ------------------------------------------------------------------------------------------------------ target


class AcksBeforeSync(Target):
    def sync(self) -> None:
        if len(self.replica._kept.receiving.batches) % 2:
            super().sync()


class CommitsLate(Target):
    """Says committed a moment before it is."""

    def commit(self) -> None:
        life = self.life

        def late() -> None:
            if self.up and self.life == life:
                Target.commit(self)

        self.world.after(1.0, late)


class NoDigestCheck(Receiver):
    def _ended(self, stream, event):
        return super()._ended(stream, replace(event, digest=stream.digest))


class ForgetsWanted(Target):
    """Takes it that any cycle brings what is wanted."""

    def commit(self) -> None:
        super().commit()
        self.replica._kept.wanted.clear()


class HidesItsSeed(Target):
    """Tells nobody that its base is on its way."""

    def asked(self, back) -> None:
        def shown(state: object) -> None:
            back(replace(state, awaiting_seed=False) if isinstance(state, TargetState) else state)

        super().asked(shown)


class ForgetsTerm(Target):
    def die(self, *, power: bool) -> None:
        super().die(power=power)
        self.store._kept["vm-1"].term = 1


class TakesOlderTerms(Receiver):
    def _began(self, event):
        self._state = replace(self._state, term=min(self._state.term, event.header.term))
        return super()._began(event)


class StoreOfOlderTerms(Target):
    receiver_type = TakesOlderTerms

    def act(self, action: receiving.Action) -> None:
        if isinstance(action, receiving.Begin):  # the store would notice too
            self.replica._kept.term = min(self.replica._kept.term, action.header.term)
        super().act(action)


class TakesCopiesForPoints(Receiver):
    def _began(self, event):
        honest = event.header
        if honest.kind is not Kind.DELTA:
            honest = replace(honest, consistency="none")
        return [
            replace(action, header=event.header) if isinstance(action, receiving.Begin) else action
            for action in super()._began(replace(event, header=honest))
        ]


def _target(base: type[Target] = Target, receiver: type[Receiver] = Receiver) -> type[Target]:
    return type(base.__name__, (base,), {"receiver_type": receiver})


# ------------------------------------------------------------------------------------------------------ source


class AppliesBeforeCommit(Source):
    def store_pending(self, id_: bytes, through: int) -> None:
        super().store_pending(id_, through)
        flight = self.sender._flight
        if flight and flight.checkpoint is None and self.disk.index is not None:
            for cells in self.disk.pending.batches.values():
                for disk, cluster, fingerprint in cells:
                    self.disk.index.setdefault(disk, {})[cluster] = fingerprint


class LosesPending(Source):
    """What is pending is only in memory, and nobody notices that it is gone."""

    def store_pending(self, id_: bytes, through: int) -> None:
        """Not stored."""

    def apply_pending(self, header: CycleHeader, complete: bool) -> None:
        held = self.pending.batches if self.pending and self.pending.id == header.id else {}
        self.disk.pending = Pending(header.id, held)
        super().apply_pending(header, complete)


class LosesPendingOfCopies(Source):
    """A restart forgets the fingerprints of the part of a copy that its checkpoint covers."""

    def boot(self) -> None:
        if not self.up:
            self.disk.pending = self.disk.pending and Pending(self.disk.pending.id)
        super().boot()


class GoesBeyondItsJournal(Sender):
    """Resumes a copy where the target is, though its own fingerprints end earlier."""

    sent: ClassVar[dict[tuple[bytes, int], Checkpoint]] = {}

    def _send(self, stream, batch, position: Position):
        if self._flight:
            key = self._flight.header.id, batch.sequence
            self.sent[key] = Checkpoint(batch.sequence, batch.digest, position)
        return super()._send(stream, batch, position)

    def _begin(self, flight: Flight, after: Checkpoint):
        unfinished = self._target.unfinished if self._target else None
        if flight.checkpoint and unfinished and unfinished.id == flight.header.id:
            after = self.sent.get((unfinished.id, unfinished.durable), after)
        return super()._begin(flight, after)


class TrustsAnyIndex(Sender):
    """Takes the index for the target's, whatever cycle the target has."""

    def _open(self, assigned, target: TargetState):
        trusted = self._state.trusted
        self._fetch = Fetch(_not_before=float("inf" if trusted else "-inf"))
        actions = super()._open(assigned, target)
        self._state = replace(self._state, trusted=trusted)
        return actions


class EndsEarly(Sender):
    """Sends a copy's end while parts of it are not durable yet, and reads those again after a cut."""

    def _pump_copy(self, stream, flight: Flight):
        if self._reading or stream.position.disk < len(flight.header.disks):
            return super()._pump_copy(stream, flight)
        return self._finish(stream, flight)


class ReadsTwice(Sender):
    """Orders a slice though one of an older stream is still being read."""

    def _next(self):
        if self._stream is None:
            self._reading = False
        return super()._next()


class LeavesPoints(Sender):
    """Takes it that nothing waits in the source after a commit, whoever opened what waits there."""

    def _take_applied(self, *, sound: bool):
        self._clean = True
        return super()._take_applied(sound=sound)


class NeverFetches(Sender):
    def _open(self, assigned, target: TargetState):
        self._fetch = Fetch(_not_before=float("inf"))
        return super()._open(assigned, target)


class NeverAsksAgain(Sender):
    """Takes the target's first word for its last."""

    def _next(self):
        self._answered = self._now
        return super()._next()


class StartsEarly(Sender):
    def _take_assignment(self, event):
        return super()._take_assignment(replace(event, not_before=0.0))


class NeverFreezes(Sender):
    def _take_assignment(self, event):
        return super()._take_assignment(replace(event, application_every=0.0))


class CountsSeeds(Sender):
    """Calls cycles recovery points whose base is still on its way."""

    def _take_applied(self, *, sound: bool):
        if self._said:
            self._said = replace(self._said, awaiting_seed=False)
        return super()._take_applied(sound=sound)


class Kept(Claim):
    def end(self):
        return []


class KeepsItsTurn(Sender):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._turn = Kept()


class Free(Claim):
    def need(self, *_args, **_kwargs):
        return None


class TakesNoTurn(Sender):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._turn = Free()


class ReadsNothingForced(Source):
    def read_point(self, action: say.ReadPoint) -> None:
        super().read_point(replace(action, forced=()))


class FetchesHalf(Source):
    """Takes fingerprints of a stream that broke off for all of them."""

    def __init__(self, world, guest, network, target: Target) -> None:
        super().__init__(world, guest, network, target)
        tell = target.tell_fingerprints

        def half(committed: Committed, back) -> None:
            def cut(found: object) -> None:
                if isinstance(found, Fingerprints):
                    found.by_disk.update({disk: {} for disk in list(found.by_disk)[1:]})
                back(found)

            tell(committed, cut)

        target.tell_fingerprints = half


class CarelessCourier(Courier):
    """Says of no cycle that it is older than the media."""

    def __init__(self, *args):
        super().__init__(*args)
        self.after_of = lambda _opened: 0


class CountsCopies(Sender):
    def _begin(self, flight: Flight, after: Checkpoint):
        return super()._begin(replace(flight, header=replace(flight.header, consistency="crash")), after)


class EndsBeforeItIsRead(Sender):
    """A point's changes are taken for all there are as soon as some of them went."""

    def _pump(self, stream):
        waiting, self._waiting = self._waiting, None
        try:
            return super()._pump(stream)
        finally:
            self._waiting = waiting


class SkipsADisk(Source):
    def read_point(self, action: say.ReadPoint) -> None:
        if self.point:
            self.point.dirty[list(self.point.dirty)[-1]] = []
        super().read_point(action)


class ReadsLate(Source):
    """The last disk is read as it is when its turn comes, not as it was at the instant."""

    def read_point(self, action: say.ReadPoint) -> None:
        if self.point:
            last = list(self.point.snapshot.sizes)[-1]
            now = self.guest.content.get(last, {})
            size = self.point.snapshot.sizes[last]
            late = {**self.point.snapshot.content, last: {c: t for c, t in now.items() if c < size}}
            self.point.snapshot = replace(self.point.snapshot, content=late)
        super().read_point(action)


def _source(sender: type[Sender]) -> type[Source]:
    return type(sender.__name__, (Source,), {"sender_type": sender})


# ---------------------------------------------------------------------------------------------- change tracking


class ClearsAtOpen(Tracking):
    def open(self, named: Committed) -> tuple[Snapshot, dict[str, list[int]], bool]:
        opened = super().open(named)
        self.frozen = {}
        return opened


class ForgetsOnDiscard(Tracking):
    def discard(self) -> None:
        self.frozen = {}
        super().discard()


class AcksAnything(Tracking):
    """An ack makes an anchor of whatever it names."""

    def ack(self, named: Committed) -> None:
        if self.waiting is None:
            self.anchor = named
        super().ack(named)


class CallsLostWhole(Tracking):
    """Writes that went by unseen are not admitted."""

    def lose(self) -> None:
        self.active = {}


class IgnoresSizes(Tracking):
    """What comes back when a disk grows after it shrank is not dirty."""

    def resized(self, disk: str, before: int, after: int) -> None:
        """Nothing is noted."""


def _guest(tracking: type[Tracking]) -> type[Guest]:
    class Tracked(Guest):
        def write(self) -> None:
            if type(self.tracking) is not tracking:
                self.tracking = tracking(self)
            super().write()

    return Tracked


PLANTED: dict[str, Plan] = {
    "the target acks batches as durable before they are": Plan(target=AcksBeforeSync),
    "the target acks a commit before it is durable": Plan(target=CommitsLate),
    "the target commits without comparing digests": Plan(target=_target(receiver=NoDigestCheck)),
    "the target's term is not on disk when it is promised": Plan(target=ForgetsTerm),
    "the target takes frames of an older term": Plan(target=StoreOfOlderTerms),
    "a copy counts as a recovery point": Plan(
        source=_source(CountsCopies), target=_target(receiver=TakesCopiesForPoints)
    ),
    "a point is taken for read as soon as some of it is": Plan(source=_source(EndsBeforeItIsRead)),
    "fingerprints are applied before the target committed": Plan(source=AppliesBeforeCommit),
    "pending fingerprints are not stored before the end is sent": Plan(source=LosesPending),
    "fingerprints of a copy are not stored with its checkpoint": Plan(source=LosesPendingOfCopies),
    "a copy resumes beyond the source's own journal": Plan(source=_source(GoesBeyondItsJournal)),
    "a copy's end is sent before all of it is durable": Plan(source=_source(EndsEarly)),
    "two slices are read at one time": Plan(source=_source(ReadsTwice)),
    "a point of an earlier life is left waiting": Plan(source=_source(LeavesPoints)),
    "the index is trusted whatever cycle the target has": Plan(source=_source(TrustsAnyIndex)),
    "a disk is skipped": Plan(source=SkipsADisk),
    "disks are read at different instants": Plan(source=ReadsLate),
    "dirty clusters are cleared when the point opens": Plan(guest=_guest(ClearsAtOpen)),
    "a discarded point's changes are forgotten": Plan(guest=_guest(ForgetsOnDiscard)),
    "an ack of an unknown cycle becomes the anchor": Plan(guest=_guest(AcksAnything)),
    "lost tracking is called whole": Plan(guest=_guest(CallsLostWhole)),
    "a disk that shrank and grew is not dirty where it grew": Plan(guest=_guest(IgnoresSizes)),
    "fingerprints that broke off are taken for all": Plan(source=FetchesHalf),
    "everything is sent because fingerprints are never asked for": Plan(source=_source(NeverFetches)),
    "the target is not asked again what it wants": Plan(source=_source(NeverAsksAgain)),
    "wanted clusters are not read": Plan(source=ReadsNothingForced),
    "wanted clusters are forgotten by any commit": Plan(target=ForgetsWanted),
    "a target does not say that it awaits a seed": Plan(target=HidesItsSeed),
    "cycles on a base that did not come count as recovery points": Plan(source=_source(CountsSeeds)),
    "cycles older than their seed count as recovery points": Plan(courier=CarelessCourier),
    "a first copy starts before its time": Plan(source=_source(StartsEarly)),
    "application-consistent points are never tried": Plan(source=_source(NeverFreezes)),
    "a turn is kept between cycles": Plan(source=_source(KeepsItsTurn)),
    "cycles run without a turn": Plan(source=_source(TakesNoTurn)),
}
