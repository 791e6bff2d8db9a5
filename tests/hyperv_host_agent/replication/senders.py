"""A sender with cycle 4 committed, and the events it is told in tests."""

import itertools

from hyperv_host_agent.replication import sending as say
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry, TargetState
from hyperv_host_agent.replication.sender import Sender
from hyperv_host_agent.replication.state import SenderState
from twinsite.errors import Exhausted, Unreachable
from twinsite.extents import CLUSTER

DISKS = (DiskGeometry("d1", 8 * CLUSTER),)
FOUR = Committed(4, b"4" * 16)
STATE = SenderState(term=1, committed=FOUR, disks=DISKS, recoverable=True, instant=90.0, trusted=True)
ASSIGNED = say.Assigned(term=1, frequency=30.0)


class Gone(Unreachable):
    public = "gone"


class Full(Exhausted):
    public = "full"


def make(state=STATE, **kwargs):
    ids = itertools.count(1)
    return Sender("vm", state, lambda: next(ids).to_bytes(16, "big"), **kwargs)


def named(nth, after=4):
    """The nth cycle a sender of `make` began."""
    return Committed(after + nth, nth.to_bytes(16, "big"))


def target(committed=FOUR, unfinished=None, term=1, **kwargs):
    return say.TargetKnown(TargetState(term, committed, unfinished, **kwargs))


def source(anchor=FOUR, *, index=FOUR):
    return say.SourceKnown(anchor, DISKS, index)


def opened(*, whole=True, disks=DISKS):
    return say.PointOpened(100.0, "crash", disks, whole)


def ready(sequence, size=100):
    return say.Ready(sequence, size, bytes([sequence]) * 16, CLUSTER)


def kinds(actions):
    return [type(action).__name__ for action in actions]


def one(actions, kind):
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


def told(sender, *events, now=0.0):
    """The answer to the last of the events."""
    answer = []
    for event in events:
        answer = sender.handle(event, now)
    return answer


def tell(sender, *events, now=0.0):
    """The same; a turn is given at once and not spoken of."""
    answer = []
    for event in events:
        answer = sender.handle(event, now)
        while asked := [action for action in answer if isinstance(action, say.AskTurn)]:
            rest = [action for action in answer if not isinstance(action, say.AskTurn)]
            answer = rest + sender.handle(say.TurnGiven(asked[-1].turn), now)
    return [action for action in answer if not isinstance(action, say.EndTurn)]


def sending(sender, batches=2):
    """A delta of two batches on stream 1."""
    return tell(sender, ASSIGNED, target(), source(), opened(), say.PointRead(tuple(map(ready, range(1, batches + 1)))))
