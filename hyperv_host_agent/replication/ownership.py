"""Who owns a VM: the rules of its term. Pure; used by the receiver, by failover and by whoever starts a VM.

The term rises at each change of direction and never falls. Whoever acts in a newer term than a host knows has its term
stored there first; whoever acts in an older one is refused with the newer.
"""

from dataclasses import dataclass

from twinsite.errors import Precondition


class OlderTerm(Precondition):
    public = "term {error.offered} is over: the VM is in term {error.current}"
    cause = "another host became its owner"
    still_works = "nothing was written or started"
    next_step = "twinsite vm show; the old owner is reversed or re-protected from there"

    def __init__(self, offered: int, current: int) -> None:
        self.offered, self.current = offered, current


class NotOwner(Precondition):
    public = "this host does not own the VM in term {error.term}"
    still_works = "nothing was started"
    next_step = "twinsite vm show"

    def __init__(self, term: int) -> None:
        self.term = term


@dataclass(frozen=True, slots=True)
class Ownership:
    """What one host durably knows of one VM."""

    term: int
    owner: bool  # this host may run it in `term`


def admit(current: int, offered: int) -> bool:
    """Whether the offered term has to be stored before anything is done in it. Raises OlderTerm."""
    if offered < current:
        raise OlderTerm(offered, current)
    return offered > current


def assign(known: Ownership, term: int, *, owner: bool) -> Ownership:
    """What to store when a term is assigned. Raises OlderTerm; NotOwner when one term would have a second owner.

    A host may lose ownership within a term (it is fenced), and it may be told again what it knows. It never gains
    ownership in a term it already knows as another's: that takes a newer one.
    """
    if admit(known.term, term):
        return Ownership(term, owner)
    if owner and not known.owner:
        raise NotOwner(term)
    return Ownership(term, owner)


def check_start(known: Ownership, term: int) -> None:
    """That the VM may start here in `term`, which is stored already. Raises OlderTerm, NotOwner."""
    admit(known.term, term)
    if term != known.term or not known.owner:
        raise NotOwner(term)
