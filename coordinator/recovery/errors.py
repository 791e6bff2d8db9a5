"""Why a test or a failover cannot be, or did not finish."""

from twinsite.errors import Failed, InvalidInput, NotFound, Precondition, Unreachable
from twinsite.units import count


class NoPoint(Precondition):
    public = "VM {error.vm} has no recovery point yet"
    cause = "its initial replication has not finished"
    still_works = "nothing was changed"
    next_step = "twinsite vm show {error.vm}; the first point ends the initial replication"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class PointMissing(NotFound):
    public = "VM {error.vm} has no recovery point {error.cycle}"
    still_works = "nothing was changed"
    next_step = "twinsite point list {error.vm}"

    def __init__(self, vm: str, cycle: int) -> None:
        self.vm, self.cycle = vm, cycle


class PointLost(Precondition):
    public = "recovery point {error.cycle} of VM {error.vm} is lost: what describes it at the target is damaged"
    still_works = "nothing was changed; the other points are as they were"
    next_step = "twinsite point list {error.vm} shows which points are good"

    def __init__(self, vm: str, cycle: int) -> None:
        self.vm, self.cycle = vm, cycle


class AlreadyFailedOver(Precondition):
    public = "VM {error.vm} was failed over already: it runs on host {error.host} since term {error.term}"
    still_works = "it goes on running there"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str, host: str, term: int) -> None:
        self.vm, self.host, self.term = vm, host, term


class FailoverIsRunning(Precondition):
    public = "a failover of VM {error.vm} is running"
    still_works = "it goes on"
    next_step = "twinsite job watch {error.job_id}"

    def __init__(self, vm: str, job_id: str) -> None:
        self.vm, self.job_id = vm, job_id


class TargetAway(Unreachable):
    public = "target host {error.host} of VM {error.vm} is not connected"
    cause = "it was waited for {error.seconds:.0f} s"
    still_works = "nothing was changed: {error.owner} owns the VM, and what was replicated is kept"
    next_step = "connect the host and its provider, then repeat twinsite vm failover {error.vm}"

    def __init__(self, vm: str, host: str, seconds: float, *, raised: bool) -> None:
        self.vm, self.host, self.seconds = vm, host, seconds
        self.owner = f"since the term was raised {host}" if raised else "the source still"


class SourceNotStopped(Unreachable):
    public = "VM {error.vm} was not stopped on host {error.host}: {error.why}"
    still_works = "the failover goes on; the host is fenced by the new term as soon as it hears of it"
    next_step = "if the host still runs and cannot be reached, stop the VM there by hand"

    def __init__(self, vm: str, host: str, why: str) -> None:
        self.vm, self.host, self.why = vm, host, why


class NoLongerProtected(Failed):
    public = "VM {error.vm} is not protected any more"
    next_step = "twinsite vm list"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class TestGone(Failed):
    public = "test {error.test_id} was ended by another job"
    next_step = "twinsite vm show"

    def __init__(self, test_id: str) -> None:
        self.test_id = test_id


class NothingToMark(InvalidInput):
    public = "nothing was asked of the point: neither to keep, nor to name, nor to lock it"
    still_works = "nothing was changed"
    next_step = "twinsite point --help"


class InvalidLock(InvalidInput):
    public = "a point is locked for 1 second to {error.days} days, not for {error.seconds} seconds"
    still_works = "nothing was changed"
    next_step = "name a time in the future, for example --for 30d"

    def __init__(self, seconds: int, days: int) -> None:
        self.seconds, self.days = seconds, days


class LockNotShortened(Precondition):
    public = "point {error.cycle} of VM {error.vm} is locked until {error.until}; a lock is never shortened"
    still_works = "nothing was changed"
    next_step = "leave it, or lock it for longer"

    def __init__(self, vm: str, cycle: int, until: str) -> None:
        self.vm, self.cycle, self.until = vm, cycle, until


class DamageRemains(Failed):
    public = "{error.told} damaged in the replica of VM {error.vm}"
    still_works = "points that do not stand on them are good; replication goes on"
    next_step = "{error.step}"

    def __init__(self, vm: str, left: int, wanted: int, tried: int, *, repair: bool) -> None:
        """`left` clusters; of them the source sends `wanted`, and for `tried` a repair found nothing."""
        self.vm = vm
        self.told = f"{count(left, 'cluster')} {'is' if left == 1 else 'are'}"
        good = f"twinsite point list {vm} shows which points are good"
        if not repair and left <= tried:
            self.step = (
                f"a repair was tried and found nothing to mend {'it' if left == 1 else 'them'} from: what the newest"
                f" point shows comes with the source's next cycles, the rest goes when its points go; {good}"
            )
        elif not repair:
            self.step = f"twinsite vm verify {vm} --repair"
        elif wanted:
            self.step = f"{wanted} of them come with the source's next cycles; then twinsite vm verify {vm} again"
        else:
            self.step = good
