"""What a source makes of what the target and its own change tracking say; pure.

Three witnesses know a cycle: the target (`TargetState.committed`), the sender's state (`SenderState.committed`, which
the fingerprint index belongs to) and the change source (its anchor, which its dirty clusters count from). A cycle of
changes may stand only on a cycle all that it relies on agree about; otherwise everything is looked at.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from hyperv_host_agent.replication.cycle import Committed, CycleHeader, DiskGeometry, Kind, TargetState, Wanted
from hyperv_host_agent.replication.frames import NotGranted
from hyperv_host_agent.replication.state import Flight, SenderState
from twinsite.errors import TwinsiteError
from twinsite.extents import Run, clusters

MANY_WANTED: Final = 4096  # runs; as many as a target names at once, so there may be more


class Fate(enum.Enum):
    """Of a cycle on its way, once the target was asked."""

    ARRIVED = "arrived"
    GOES_ON = "goes on"
    GIVEN_UP = "given up"  # its changes belong to the next one


@dataclass(frozen=True, slots=True)
class Plan:
    """Of the next cycle."""

    kind: Kind
    suppress: bool  # what the fingerprint index says the target has is left out
    placeholder: bool = False  # of an initial copy: it comes on media


def fate(flight: Flight, target: TargetState, durable: int | None) -> Fate:
    """Of a cycle on its way. `durable`: batches the target acked that cannot be had again, None: no batch can (the
    spool died with its process).
    """
    header = flight.header
    if target.committed == flight.named:
        return Fate.ARRIVED
    stands = (
        target.committed is None
        if header.parent == 0
        else target.committed == Committed(header.parent, header.parent_id)
    )
    if not stands or (flight.suppressed and target.awaiting_seed):
        return Fate.GIVEN_UP
    if flight.checkpoint is not None:
        # Behind its own ack: another store, or an older copy of it. What it has of the cycle is not what was acked.
        return Fate.GOES_ON if held(flight, target) >= flight.checkpoint.sequence else Fate.GIVEN_UP
    if durable is None or held(flight, target) < durable:
        return Fate.GIVEN_UP
    return Fate.GOES_ON


def held(flight: Flight, target: TargetState) -> int:
    """Batches of the cycle that are durable at the target."""
    unfinished = target.unfinished
    if unfinished is None or Committed(unfinished.number, unfinished.id) != flight.named:
        return 0
    return unfinished.durable


def adopt(state: SenderState, target: TargetState) -> SenderState:
    """The state once the target's word counts: its newest cycle is what the next one stands on.

    If that is not the cycle this side believed in (the target was replaced or restored, or this side's state was), the
    fingerprint index describes another cycle than the target has and suppresses nothing until it is rebuilt.
    """
    if state.committed == target.committed:
        # A target that waits for its seed, again perhaps, may get another one than the index was made of.
        return replace(state, trusted=False) if state.trusted and target.awaiting_seed else state
    instant = state.instant if target.committed else 0.0
    return replace(
        state, committed=target.committed, disks=(), recoverable=False, instant=instant, application=0.0, trusted=False
    )


def plan(
    state: SenderState, anchor: Committed | None, *, whole: bool, offline: bool = False, awaiting: bool = False
) -> Plan | None:
    """Of the next cycle on an adopted state; `whole`: the source knows everything written since its anchor.

    Dirty clusters are those since the anchor, so they are enough only if the target has exactly that cycle. If not,
    everything is read, and the index, as long as it is sound, still keeps what the target has off the wire.

    `offline`: the first copy is to come on media; `awaiting`: the target waits for them, and nobody can say what it
    will have. Changes flow meanwhile. None: they are not known, so nothing can be done before the media were imported,
    or all of it would be sent. With the media called off, all of it is.
    """
    if state.committed is None:
        return Plan(Kind.INITIAL, suppress=False, placeholder=offline)
    if awaiting and not offline:
        return Plan(Kind.RESYNC, suppress=False)
    if whole and anchor == state.committed:
        return Plan(Kind.DELTA, suppress=state.trusted and not awaiting)
    return None if awaiting else Plan(Kind.RESYNC, suppress=state.trusted)


def note(plan: Plan, *, whole: bool, doubt: str) -> str:
    """Why the planned cycle is slower than usual, for people; empty: it is not."""
    if plan.kind is Kind.INITIAL:
        return ""
    if plan.kind is Kind.DELTA:
        return "" if plan.suppress else "no fingerprints are known yet: all that was written is sent, changed or not"
    why = "the replica has another state than changes were counted from"
    if doubt or not whole:
        why = "changes were not known" + (f" ({doubt})" if doubt else "")
    return f"{why}: the disks are {'compared' if plan.suppress else 'sent whole'}"


def added(state: SenderState, disks: tuple[DiskGeometry, ...]) -> frozenset[str]:
    """Disks the target does not have in the committed cycle: sent whole, zeros too, since layers of a disk that was
    once there may lie below. With an adopted cycle the disks are not known, but the anchor is that cycle, and a disk
    that came since is dirty from end to end.
    """
    if not state.disks:
        return frozenset()
    known = {disk.id for disk in state.disks}
    return frozenset(disk.id for disk in disks if disk.id not in known)


def refused(error: TwinsiteError | None) -> bool:
    """Whether the grant did not cover the cycle. It is renewed for the disks that the VM has then."""
    return error is not None and error.code == NotGranted.code


def lasts(flight: Flight, index: Committed | None, disks: tuple[DiskGeometry, ...] | None) -> bool:
    """Whether a cycle on its way can go on: the index a copy relies on is still there, and it can be granted again.

    What happens to a copy's disks does not matter otherwise: it is read as it was announced, and the cycle that follows
    it brings the present geometry. `disks`, of a cycle that was refused, are the source's now: no grant will cover one
    that is gone or was larger.
    """
    named = Committed(flight.header.parent, flight.header.parent_id)
    if flight.checkpoint is not None and flight.suppressed and index != named:
        return False
    sizes = {disk.id: disk.size for disk in disks or ()}
    return disks is None or all(sizes.get(disk.id, -1) >= disk.size for disk in flight.header.disks)


def early(header: CycleHeader, target: TargetState, carried: tuple[Wanted, ...]) -> bool:
    """Whether a cycle is no recovery point because of what its base lacks; `carried`: what it brought of that.

    `target` is what was known when it was sent.
    """
    lacks = target.wanted != carried or len(target.wanted) >= MANY_WANTED
    return header.number <= target.seed_after or lacks


def forced(wanted: Iterable[Wanted], disks: tuple[DiskGeometry, ...]) -> tuple[Wanted, ...]:
    """What of the wanted clusters the disks of a cycle still have."""
    ends = {disk.id: clusters(disk.size) for disk in disks}
    clipped = (
        Wanted(want.disk, Run(want.run.start, min(want.run.end, ends.get(want.disk, 0)) - want.run.start))
        for want in wanted
    )
    return tuple(want for want in clipped if want.run.count > 0)
