"""What a `Receiver` is told (events) and what it orders (actions). Values only; `rpc.py` acts.

`Receiver(vm_id, state)` with `Replica.state()`; `handle(event, now) -> list[Action]` with monotonic seconds.
How to act on what it returns:

* In order, each action complete before the next; the ones named after a method of `store.base.Replica` are that call.
* If one raises a TwinsiteError, drop the rest and hand over `StoreFailed` with the error and `Replica.state()`.
* One event at a time per replica (the store's rule too); `handle` hashes payloads, so run it where the store runs.
"""

from dataclasses import dataclass

from hyperv_host_agent.replication.cycle import Batch, Committed, CycleHeader, DiskGeometry, TargetState
from twinsite.errors import TwinsiteError

# ---------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Granted:
    """What the verified grant of a caller allows; largest sizes in bytes."""

    term: int
    disks: tuple[DiskGeometry, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """`Replication.Open`, `call` numbering the RPC. Ends a stream that is still there: what is answered stays true."""

    call: int
    state: TargetState  # `Replica.state()`: the scrub and a seed's import change it without the receiver


@dataclass(frozen=True, slots=True)
class Began:
    """A begin frame on a new stream; numbers of streams and calls are one series, unique in this process."""

    stream: int
    header: CycleHeader
    resume_after: int
    granted: Granted


@dataclass(frozen=True, slots=True)
class Begun:
    """Hand over right after `Begin` was acted on: `Replica.state()`."""

    stream: int
    state: TargetState


@dataclass(frozen=True, slots=True)
class Stored:
    """Hand over right after `Commit` was acted on: `Replica.state()`. Which wanted clusters came, the store knows."""

    state: TargetState


@dataclass(frozen=True, slots=True)
class BatchReceived:
    stream: int
    batch: Batch
    body: tuple[bytes | memoryview, ...]  # header and payload as they travelled, for the chain digest


@dataclass(frozen=True, slots=True)
class EndReceived:
    stream: int
    batches: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """The caller went away, or the stream ended."""

    stream: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """A few times a second while a stream is open: what was staged long enough is made durable and acked."""


@dataclass(frozen=True, slots=True)
class TermRaised:
    """This host became (or learned of) the owner of a newer term; on disk before a VM starts."""

    term: int


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """An action raised; `state` is what the store says now."""

    error: TwinsiteError
    state: TargetState


Event = Asked | Began | Begun | Stored | BatchReceived | EndReceived | StreamClosed | Ticked | TermRaised | StoreFailed

# --------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class Answer:
    """Of an `Asked`."""

    call: int
    state: TargetState


@dataclass(frozen=True, slots=True)
class SetTerm:
    term: int


@dataclass(frozen=True, slots=True)
class Begin:
    """`Replica.begin`; then hand over Begun."""

    stream: int
    header: CycleHeader
    resume_after: int


@dataclass(frozen=True, slots=True)
class Put:
    batch: Batch
    digest: bytes  # chain digest after it


@dataclass(frozen=True, slots=True)
class Sync: ...


@dataclass(frozen=True, slots=True)
class Commit:
    """`Replica.commit`; then hand over Stored."""


@dataclass(frozen=True, slots=True)
class Abandon: ...


@dataclass(frozen=True, slots=True)
class AckDurable:
    stream: int
    sequence: int


@dataclass(frozen=True, slots=True)
class AckCommitted:
    """Then end the stream in order."""

    stream: int
    committed: Committed


@dataclass(frozen=True, slots=True)
class Refuse:
    """End the stream with this error."""

    stream: int
    error: TwinsiteError


Action = Answer | SetTerm | Begin | Put | Sync | Commit | Abandon | AckDurable | AckCommitted | Refuse
