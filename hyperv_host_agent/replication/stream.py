"""A stream that runs, as its sender sees it: what was handed to it, and what came back."""

from collections import deque
from dataclasses import dataclass, field

from hyperv_host_agent.replication.sending import Ready
from hyperv_host_agent.replication.state import Checkpoint, Position
from twinsite.errors import Failed


class UnexpectedAck(Failed):
    public = "the target acked {error.what}, which it was not sent"
    still_works = "nothing is taken for committed; the target is asked again"
    next_step = "update the older of the two host agents; if both are equal, report it"

    def __init__(self, what: str) -> None:
        self.what = what


@dataclass(slots=True)
class Stream:
    number: int
    sent: int  # sequence of the last batch handed over
    sent_digest: bytes
    position: Position = field(default_factory=Position)  # of a copy: where the next slice starts
    in_flight: deque[tuple[Ready, Position]] = field(default_factory=deque)
    bytes: int = 0  # of in_flight
    ended: bool = False

    def took(self, batch: Ready, position: Position) -> None:
        """`position`: of a copy, where it goes on after the batch."""
        self.sent, self.sent_digest = batch.sequence, batch.digest
        self.in_flight.append((batch, position))
        self.bytes += batch.wire_bytes

    def durable(self, sequence: int) -> tuple[list[Ready], Checkpoint | None]:
        """Batches that became durable at the target, and how far a copy is with them; None: no further."""
        batches: list[Ready] = []
        checkpoint = None
        while self.in_flight and self.in_flight[0][0].sequence <= sequence:
            batch, position = self.in_flight.popleft()
            self.bytes -= batch.wire_bytes
            batches.append(batch)
            checkpoint = Checkpoint(batch.sequence, batch.digest, position)
        return batches, checkpoint
