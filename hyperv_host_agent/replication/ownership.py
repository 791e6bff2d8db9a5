"""Who owns a VM: the rule of its term. Pure.

The term rises at each change of direction and never falls. Whoever acts in a newer term than a host knows has its term
stored there first; whoever acts in an older one is refused with the newer.
"""

from twinsite.errors import Precondition


class OlderTerm(Precondition):
    public = "term {error.offered} is over: the VM is in term {error.current}"
    cause = "another host became its owner"
    still_works = "nothing was written or started"
    next_step = "twinsite vm show; the old owner is reversed or re-protected from there"

    def __init__(self, offered: int, current: int) -> None:
        self.offered, self.current = offered, current


def admit(current: int, offered: int) -> bool:
    """Whether the offered term has to be stored before anything is done in it. Raises OlderTerm."""
    if offered < current:
        raise OlderTerm(offered, current)
    return offered > current
