"""What may be wrong with a pair, a policy or a request to protect a VM."""

from twinsite.errors import Aborted, Conflict, Failed, InvalidInput, Precondition, Unreachable
from twinsite.units import count


class InvalidPolicy(InvalidInput):
    public = "{error.what} must be {error.least} to {error.most} {error.unit}, it is {error.value}"
    still_works = "nothing was changed"
    next_step = "correct the value"

    def __init__(self, what: str, value: int, least: int, most: int, unit: str) -> None:
        self.what, self.value, self.least, self.most, self.unit = what, value, least, most, unit


class InvalidTier(InvalidInput):
    public = "retention {error.tier} keeps nothing that makes sense"
    cause = "a tier keeps its points for as long as their distance at least, and for {error.days} days at most"
    still_works = "nothing was changed"
    next_step = "write EVERY:FOR with FOR not below EVERY, for example 1h:7d"

    def __init__(self, tier: str, days: int) -> None:
        self.tier, self.days = tier, days


class TiersUnordered(InvalidInput):
    public = "retention {error.after} does not follow {error.before}"
    cause = "tiers go from dense and short to sparse and long: each with a greater distance and a longer time"
    still_works = "nothing was changed"
    next_step = "for example all:1h,5m:24h,1h:7d,1d:90d"

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after


class TooManyPoints(InvalidInput):
    public = "this policy keeps {error.count} points of a VM, {error.most} are the most"
    still_works = "nothing was changed"
    next_step = "keep the dense ones for a shorter time, or fewer of them"

    def __init__(self, count: int, most: int) -> None:
        self.count, self.most = count, most


class InvalidRate(InvalidInput):
    public = "{error.what} of a rate must be {error.least} to {error.most}, it is {error.value}"
    still_works = "nothing was changed"
    next_step = "correct the value"

    def __init__(self, what: str, value: int, least: int, most: int) -> None:
        self.what, self.value, self.least, self.most = what, value, least, most


class ApplicationTooRare(InvalidInput):
    public = "an application-consistent point every {error.hours} h needs more than {error.points} hourly points"
    cause = "the hours between two of them must be less than the number of additional recovery points"
    still_works = "nothing was changed"
    next_step = "keep more hourly points, or try them more often"

    def __init__(self, hours: int, points: int) -> None:
        self.hours, self.points = hours, points


class PolicyMissing(InvalidInput):
    public = "no policy was given"
    still_works = "nothing was changed"
    next_step = "say the whole policy as it is to be"


class SameCloud(InvalidInput):
    public = "cloud {error.cloud} cannot be paired with itself"
    still_works = "nothing was changed"
    next_step = "name another target cloud: twinsite cloud list"

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud


class CloudIsPaired(Conflict):
    public = "cloud {error.cloud} is in pair {error.pair} already"
    cause = "a cloud belongs to one pair only, as source or as target"
    still_works = "nothing was changed"
    next_step = "twinsite pair remove {error.pair}, or name another cloud"

    def __init__(self, cloud: str, pair: str) -> None:
        self.cloud, self.pair = cloud, pair


class CloudIsMissing(Precondition):
    public = "cloud {error.cloud} is not reported by its server any more"
    still_works = "nothing was changed"
    next_step = "twinsite cloud show {error.cloud}; check the provider's fabric file and its --sync-clouds choice"

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud


class CloudHasNoHost(Precondition):
    public = "cloud {error.cloud} has no host group with a host"
    still_works = "nothing was changed"
    next_step = "put a host group with a registered host into the cloud: twinsite host list"

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud


class PairInUse(Precondition):
    public = "pair {error.pair} cannot be removed: {error.told} protected through it ({error.machines})"
    still_works = "nothing was changed; replication goes on"
    next_step = "twinsite vm unprotect NAME for each of them"

    def __init__(self, pair: str, machines: list[str]) -> None:
        self.pair = pair
        self.told = f"{count(len(machines), 'VM')} {'is' if len(machines) == 1 else 'are'}"
        self.machines = ", ".join(machines[:5]) + (" …" if len(machines) > 5 else "")


class PairNotReady(Precondition):
    public = "pair {error.pair} is still being checked"
    still_works = "nothing was changed"
    next_step = "twinsite job wait {error.job_id}"

    def __init__(self, pair: str, job_id: str) -> None:
        self.pair, self.job_id = pair, job_id


class AlreadyProtected(Conflict):
    public = "VM {error.vm} is protected already, through pair {error.pair}"
    still_works = "its replication goes on"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str, pair: str) -> None:
        self.vm, self.pair = vm, pair


class NotProtected(Precondition):
    public = "VM {error.vm} is not protected"
    still_works = "nothing was changed"
    next_step = "twinsite vm protect {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class BeingUnprotected(Precondition):
    public = "the protection of VM {error.vm} is being removed"
    still_works = "nothing was changed"
    next_step = "twinsite job wait {error.job_id}"

    def __init__(self, vm: str, job_id: str) -> None:
        self.vm, self.job_id = vm, job_id


class ProtectRunning(Precondition):
    public = "VM {error.vm} is just being protected"
    still_works = "nothing was changed"
    next_step = "twinsite job cancel {error.job_id}; that removes what was done so far"

    def __init__(self, vm: str, job_id: str) -> None:
        self.vm, self.job_id = vm, job_id


class NotReplicating(Precondition):
    public = "VM {error.vm} does not replicate now: {error.state}"
    still_works = "nothing was changed"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str, state: str) -> None:
        self.vm, self.state = vm, state


class ChooseOne(InvalidInput):
    public = "the replica can be kept or deleted, not both"
    still_works = "nothing was changed"
    next_step = "leave out one of --keep-replica and --delete-replica"


class UnknownMethod(InvalidInput):
    public = "method {error.method} of initial replication is not known"
    still_works = "nothing was changed"
    next_step = "update the coordinator, or replicate over the network"

    def __init__(self, method: int) -> None:
        self.method = method


class InvalidStart(InvalidInput):
    public = "the initial replication cannot begin then: {error.why}"
    still_works = "nothing was changed"
    next_step = "name an instant in the next 7 days, for example --at +2h"

    def __init__(self, why: str) -> None:
        self.why = why


class InvalidPath(InvalidInput):
    public = "{error.path} is not a path that can be used"
    cause = "it must be absolute, on one line, and not lead upwards"
    still_works = "nothing was changed"
    next_step = "name it as the host sees it, beginning with /"

    def __init__(self, path: str) -> None:
        self.path = ascii(path if len(path) <= 100 else path[:100] + "…")


class NoSuchDisk(InvalidInput):
    public = "{error.disk} means {error.count} of the disks of this VM: {error.disks}"
    still_works = "nothing was changed"
    next_step = "name each disk once, by its name or its id: twinsite vm show"

    def __init__(self, disk: str, disks: list[str], *, several: bool) -> None:
        self.disk, self.disks, self.count = ascii(disk[:60]), ", ".join(disks), "several" if several else "none"


class SeedAndImage(InvalidInput):
    public = "an initial copy on media and an existing image at the target exclude each other"
    still_works = "nothing was changed"
    next_step = "leave out --offline or --existing"


class NotScheduled(Precondition):
    public = "the initial replication of VM {error.vm} is not put off: {error.state}"
    still_works = "nothing was changed"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str, state: str) -> None:
        self.vm, self.state = vm, state


class NotOffline(Precondition):
    public = "VM {error.vm} was not protected with an initial copy on media"
    still_works = "nothing was changed; its replication goes on over the network"
    next_step = "nothing has to be exported; for media: twinsite vm unprotect, then twinsite vm protect --offline"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class SeedTooEarly(Precondition):
    public = "the replica of VM {error.vm} does not wait for its seed yet"
    cause = "{error.why}"
    still_works = "nothing was changed"
    next_step = "twinsite seed status {error.vm}"

    def __init__(self, vm: str, why: str) -> None:
        self.vm, self.why = vm, why


class SeedNotAwaited(Precondition):
    public = "the replica of VM {error.vm} does not wait for a seed any more"
    cause = "its initial copy is there; what may be missing comes over the network"
    still_works = "nothing was changed; replication goes on"
    next_step = "twinsite seed status {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class SeedRunning(Precondition):
    public = "a seed of VM {error.vm} is just being {error.what}"
    still_works = "it goes on"
    next_step = "twinsite job watch {error.job_id}, or twinsite job cancel {error.job_id}"

    def __init__(self, vm: str, kind: str, job_id: str) -> None:
        self.vm, self.job_id = vm, job_id
        self.what = "exported" if kind == "seed.export" else "imported"


class PointsLocked(Precondition):
    public = (
        "the replica of VM {error.vm} cannot be deleted: {error.count} of its points are locked, until {error.until}"
    )
    cause = "a lock cannot be opened by anybody before its time"
    still_works = "nothing was changed; replication goes on"
    next_step = "twinsite vm unprotect {error.vm} --keep-replica, or wait"

    def __init__(self, vm: str, count: int, until: str) -> None:
        self.vm, self.count, self.until = vm, count, until


class Fenced(Precondition):
    public = "VM {error.vm} on host {error.host} was failed over in term {error.term}; another host owns it"
    still_works = "nothing was changed"
    next_step = "delete this copy of the VM"

    def __init__(self, vm: str, host: str, term: int) -> None:
        self.vm, self.host, self.term = vm, host, term


class NotInSourceCloud(Precondition):
    public = "VM {error.vm} is in {error.place}, which is not the source of {error.pair}"
    still_works = "nothing was changed"
    next_step = "twinsite pair list; only VMs of a pair's source cloud can be protected through it"

    def __init__(self, vm: str, cloud: str, pair: str) -> None:
        self.vm = vm
        self.place = f"cloud {cloud}" if cloud else "no cloud"
        self.pair = f"pair {pair}" if pair else "any pair"


class MachineIsMissing(Precondition):
    public = "VM {error.vm} is not reported by host {error.host} now"
    still_works = "nothing was changed"
    next_step = "twinsite host show {error.host}"

    def __init__(self, vm: str, host: str) -> None:
        self.vm, self.host = vm, host


class NotAnOriginal(Precondition):
    public = "VM {error.vm} on {error.host} was started by a {error.purpose}; it cannot be protected"
    still_works = "nothing was changed"
    next_step = "protect the VM it is a copy of"

    def __init__(self, vm: str, host: str, purpose: str) -> None:
        self.vm, self.host = vm, host
        self.purpose = "test failover" if purpose == "test" else "failover"


class NoDisks(Precondition):
    public = "VM {error.vm} has no disk, so there is nothing to replicate"
    still_works = "nothing was changed"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class HostNotInTarget(Precondition):
    public = "host {error.host} is not in target cloud {error.cloud}"
    still_works = "nothing was changed"
    next_step = "leave out --target-host, or name one of: {error.hosts}"

    def __init__(self, host: str, cloud: str, hosts: list[str]) -> None:
        self.host, self.cloud, self.hosts = host, cloud, ", ".join(hosts) or "(the cloud has no host)"


class NoTargetHost(Precondition):
    public = "no host of target cloud {error.cloud} can take the replica of {error.vm}"
    cause = "{error.why}"
    still_works = "nothing was changed"
    next_step = "twinsite host list"

    def __init__(self, vm: str, cloud: str, why: str) -> None:
        self.vm, self.cloud, self.why = vm, cloud, why


class LeftoverPending(Precondition):
    public = "host {error.host} still has to clean up after an earlier protection of VM {error.vm}"
    cause = "it was not connected when the protection was removed"
    still_works = "nothing was changed"
    next_step = "twinsite job show {error.job_id}; it ends when the host is connected, or when it is cancelled"

    def __init__(self, vm: str, host: str, job_id: str) -> None:
        self.vm, self.host, self.job_id = vm, host, job_id


class TestsRunning(Precondition):
    public = "VM {error.vm} has {error.count} running test failover(s)"
    still_works = "nothing was changed"
    next_step = "twinsite vm test-cleanup {error.vm}"

    def __init__(self, vm: str, count: int) -> None:
        self.vm, self.count = vm, count


class FailoverRunning(Precondition):
    public = "VM {error.vm} is being failed over"
    still_works = "nothing was changed"
    next_step = "twinsite job show {error.job_id}; if it failed, repeat twinsite vm failover {error.vm}"

    def __init__(self, vm: str, job_id: str) -> None:
        self.vm, self.job_id = vm, job_id


class Overtaken(Aborted):
    public = "the protection of VM {error.vm} was changed by another job"
    still_works = "what that job did stands"
    next_step = "twinsite vm show {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class DisksChanged(Aborted):
    public = "VM {error.vm} has other disks now than when it was to be protected"
    still_works = "nothing was left at the target"
    next_step = "repeat twinsite vm protect {error.vm}"

    def __init__(self, vm: str) -> None:
        self.vm = vm


class CleanUpPostponed(Unreachable):
    public = "host {error.host} is not connected: {error.what} follows when it is (job {error.job_id})"
    still_works = "everything else is done"
    next_step = "twinsite job show {error.job_id}"

    def __init__(self, host: str, what: str, job_id: str) -> None:
        self.host, self.what, self.job_id = host, what, job_id


class CleanUpFailed(Failed):
    public = "host {error.host} could not finish: {error.why} (job {error.job_id} goes on trying)"
    still_works = "everything else is done"
    next_step = "twinsite job show {error.job_id}"

    def __init__(self, host: str, why: str, job_id: str) -> None:
        self.host, self.why, self.job_id = host, why, job_id
