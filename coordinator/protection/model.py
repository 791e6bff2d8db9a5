"""Pairs, policies, protected VMs and the work they mean for hosts: values and rules. No I/O."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.protection.errors import InvalidPolicy
from twinsite.api.types.v1 import types_pb2

GRANT_SECONDS: Final = 7 * 86400  # a coordinator may be away for half of it before replication stops
FREQUENCY: Final = range(1, 86400 + 1)  # seconds
ADDITIONAL_POINTS: Final = range(25)  # hourly points besides the newest


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
class Policy:
    frequency_seconds: int = 300
    additional_points: int = 0
    compression: bool = True
    delete_replica: bool = True  # on unprotect the replica goes too

    @classmethod
    def from_proto(cls, policy: types_pb2.Policy) -> "Policy":
        """Raises InvalidPolicy."""
        if policy.frequency_seconds not in FREQUENCY:
            raise InvalidPolicy("frequency", policy.frequency_seconds, FREQUENCY[0], FREQUENCY[-1], "seconds")
        if policy.additional_points not in ADDITIONAL_POINTS:
            raise InvalidPolicy(
                "additional recovery points",
                policy.additional_points,
                ADDITIONAL_POINTS[0],
                ADDITIONAL_POINTS[-1],
                "hourly points",
            )
        return cls(
            frequency_seconds=policy.frequency_seconds,
            additional_points=policy.additional_points,
            compression=policy.compression,
            delete_replica=policy.delete_replica,
        )

    def to_proto(self) -> types_pb2.Policy:
        return types_pb2.Policy(
            frequency_seconds=self.frequency_seconds,
            additional_points=self.additional_points,
            compression=self.compression,
            delete_replica=self.delete_replica,
        )


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


@dataclass(frozen=True, slots=True)
class Fence:
    """A host that lost a VM in a term and must not run it, though the VM is not protected any more."""

    vm_id: str
    vm_name: str
    host_id: str
    term: int


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


def direction(protected: Protected) -> tuple[str, str]:
    """(source, target) host ids of the grant: the owner is always the source."""
    if protected.owner_host == protected.source_host:
        return protected.source_host, protected.target_host
    return protected.target_host, protected.source_host


def assignments(
    host_id: str,
    protected: Iterable[tuple[Protected, Policy]],
    fences: Iterable[Fence],
    addresses: Mapping[str, str],
) -> list[types_pb2.Assignment]:
    """Everything one host has to do, by VM id. `addresses` are the hosts' replication addresses.

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
                policy=policy.to_proto(),
                grant=item.grant,
                peer_host_id=item.target_host if source else item.source_host,
                peer_address=addresses.get(item.target_host, "") if source and not fenced else "",
                term=item.term,
                fenced=fenced,
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
