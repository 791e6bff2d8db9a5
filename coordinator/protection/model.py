"""Pairs, policies, protected VMs and the work they mean for hosts: values and rules. No I/O."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.inventory.model import stamp
from coordinator.protection.policy import Policy
from twinsite.api.types.v1 import types_pb2

GRANT_SECONDS: Final = 7 * 86400  # a coordinator may be away for half of it before replication stops
START_AHEAD: Final = 7 * 86400  # seconds an initial replication may be put off


class Phase(enum.StrEnum):
    """How far the coordinator is with a protected VM; what hosts report refines it."""

    PREPARING = "preparing"  # nothing was given to a host yet
    INITIAL = "initial"  # until the first recoverable point is at the target
    PROTECTED = "protected"
    FAILING_OVER = "failing_over"  # the term is raised, the target's answer is awaited
    FAILED_OVER = "failed_over"
    UNPROTECTING = "unprotecting"


REPLICATING: Final = frozenset({Phase.INITIAL, Phase.PROTECTED})
SWITCHED: Final = frozenset({Phase.FAILING_OVER, Phase.FAILED_OVER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    id: str
    name: str  # source:target
    source_cloud: str  # ids
    target_cloud: str
    policy: Policy
    active: bool  # False until its job has checked it
    job_id: str
    created: float  # seconds since 1970


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """One protected VM as the coordinator wants it."""

    vm_id: str
    vm_name: str
    pair_id: str
    source_host: str
    target_host: str
    owner_host: str  # where it runs by right, in this term
    term: int
    phase: Phase
    paused: bool
    disks: tuple[tuple[str, int], ...]  # (id, bytes), as the grant says
    grant: types_pb2.SignedDocument | None
    grant_expires: float  # seconds since 1970, 0: there is none
    job_id: str  # that set the phase
    created: float
    keep_replica: bool = False  # while UNPROTECTING
    failover_cycle: int = 0
    failover_instant: float = 0.0
    failed_over_at: float = 0.0
    offline: bool = False  # the initial copy comes on media
    initial_start: float = 0.0  # seconds since 1970: the initial replication does not begin before; 0: at once
    existing: tuple[tuple[str, str], ...] = ()  # (disk id, image at the target that it resembles)


@dataclass(frozen=True, slots=True)
class Fence:
    """A host that lost a VM in a term and must not run it, though the VM is not protected any more."""

    vm_id: str
    vm_name: str
    host_id: str
    term: int


def recoverable(point: types_pb2.Point) -> bool:
    """An initial copy is no point in time, nor what was committed before its base was complete; a lost one is gone."""
    return point.consistency != "none" and not point.lost


def grant_is_due(
    protected: Protected, *, now: float, vm_name: str | None, disks: tuple[tuple[str, int], ...] | None
) -> bool:
    """Must a new grant be issued: less than half of its time is left, or the VM was renamed or its disks changed.

    `vm_name` and `disks` are what the owner's host reports, None when it does not report the VM now.
    """
    if protected.phase not in REPLICATING | SWITCHED or protected.grant is None:
        return False
    if protected.grant_expires - now < GRANT_SECONDS / 2:
        return True
    if vm_name is not None and vm_name != protected.vm_name:
        return True
    # A host that reports no disk at all has trouble reading the VM; that is no reason to shrink what is granted.
    return bool(disks) and disks != protected.disks


def sending_hosts(protected: Iterable[Protected]) -> dict[str, set[str]]:
    """Source hosts that share what the link of a pair may carry, by pair id."""
    found: dict[str, set[str]] = {}
    for item in protected:
        if item.phase in REPLICATING:
            found.setdefault(item.pair_id, set()).add(item.source_host)
    return found


def direction(protected: Protected) -> tuple[str, str]:
    """(source, target) host ids of the grant: the owner is always the source."""
    if protected.owner_host == protected.source_host:
        return protected.source_host, protected.target_host
    return protected.target_host, protected.source_host


def assignments(
    host_id: str,
    protected: Iterable[tuple[Protected, types_pb2.Policy]],
    fences: Iterable[Fence],
    addresses: Mapping[str, str],
) -> list[types_pb2.Assignment]:
    """Everything one host has to do, by VM id. `protected` with the policy this host is told, `addresses` are the
    hosts' replication addresses.

    After a failover the new owner keeps its target role with a grant that names it as source: it receives nothing
    and the replica stays. The old one keeps its source role, fenced.
    """
    found = []
    for item, policy in protected:
        if item.phase not in REPLICATING | SWITCHED or host_id not in (item.source_host, item.target_host):
            continue
        source = host_id == item.source_host
        fenced = item.owner_host != host_id and item.phase in SWITCHED
        found.append(
            types_pb2.Assignment(
                vm_id=item.vm_id,
                vm_name=item.vm_name,
                role=types_pb2.ROLE_SOURCE if source else types_pb2.ROLE_TARGET,
                paused=item.paused,
                policy=policy,
                grant=item.grant,
                peer_host_id=item.target_host if source else item.source_host,
                peer_address=addresses.get(item.target_host, "") if source and not fenced else "",
                term=item.term,
                fenced=fenced,
                initial=_initial(item),
            )
        )
    named = {assignment.vm_id for assignment in found}
    found.extend(
        types_pb2.Assignment(
            vm_id=fence.vm_id, vm_name=fence.vm_name, role=types_pb2.ROLE_SOURCE, term=fence.term, fenced=True
        )
        for fence in fences
        if fence.host_id == host_id and fence.vm_id not in named
    )
    return sorted(found, key=lambda assignment: assignment.vm_id)


def _initial(item: Protected) -> types_pb2.InitialReplication | None:
    """None: over the network and at once. So it is, too, once there was a point, should the replica be lost later."""
    if item.phase is not Phase.INITIAL or not (item.offline or item.initial_start):
        return None
    method = (
        types_pb2.InitialReplication.METHOD_OFFLINE if item.offline else types_pb2.InitialReplication.METHOD_NETWORK
    )
    return types_pb2.InitialReplication(method=method, start_at=stamp(item.initial_start))
