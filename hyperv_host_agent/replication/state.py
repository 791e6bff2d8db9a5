"""What a source remembers of one replication across restarts. Stored whole and atomically, by order of the sender."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.replication.cycle import Committed, CycleHeader, DiskGeometry, Kind
from twinsite.digest import CHAIN_START

_VERSION: Final = 1
_WORTH: Final = 16384  # clusters, 1 GiB, that a copy may have to compare again after a restart


@dataclass(frozen=True, slots=True)
class Position:
    """Where a copy goes on: the next cluster of a disk (an index into the cycle's disks)."""

    disk: int = 0
    cluster: int = 0

    def behind(self, other: "Position") -> bool:
        """Whether so much lies between that it is worth storing the other one."""
        return other.disk > self.disk or other.cluster >= self.cluster + _WORTH


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a copy is durable at both ends: batches 1..sequence there, and their fingerprints here."""

    sequence: int = 0
    digest: bytes = CHAIN_START  # of the chain after batch `sequence`
    position: Position = Position()


@dataclass(frozen=True, slots=True)
class Flight:
    """A cycle on its way. A copy is written down when it starts, a cycle from a point just before its `end` is sent."""

    header: CycleHeader
    checkpoint: Checkpoint | None  # of a copy; None: the cycle was read from a point
    suppressed: bool  # clusters were left out because the fingerprint index said the target has them
    ended: bool = False  # all its fingerprints are stored; its end may have been sent
    whole: frozenset[str] = frozenset()  # of a copy: disks its parent does not have, of which zeros go too

    @property
    def named(self) -> Committed:
        return Committed(self.header.number, self.header.id)

    @property
    def complete(self) -> bool:
        """It brings every cluster of every disk."""
        return self.checkpoint is not None and not self.suppressed and not self.header.placeholder


@dataclass(frozen=True, slots=True)
class Totals:
    """What was done since counting began, over restarts; a kill loses at most what was sent since the last store."""

    since: float = 0.0  # when that was, seconds since 1970; it also tells one count from another. 0: nothing counted
    cycles: int = 0
    changed_bytes: int = 0
    wire_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SenderState:
    """Everything the sender of one VM must not forget."""

    term: int = 0
    committed: Committed | None = None  # newest cycle known to be held by the target and applied here
    disks: tuple[DiskGeometry, ...] = ()  # of that cycle
    recoverable: bool = False  # that cycle is consistent; False: a copy that waits for its delta, or not known
    instant: float = 0.0  # of the newest consistent cycle at the target, seconds since 1970; 0: none
    application: float = 0.0  # instant of the newest application-consistent one; 0: none
    trusted: bool = False  # the fingerprint index describes exactly `committed`
    flight: Flight | None = None
    totals: Totals = Totals()


def dump(state: SenderState) -> bytes:
    """Text form for a state file."""
    flight = state.flight
    return json.dumps(
        {
            "version": _VERSION,
            "term": state.term,
            "committed": state.committed and [state.committed.number, state.committed.id.hex()],
            "disks": _disks(state.disks),
            "recoverable": state.recoverable,
            "instant": state.instant,
            "application": state.application,
            "trusted": state.trusted,
            "totals": dataclasses.astuple(state.totals),
            "flight": flight
            and {
                "header": _header(flight.header),
                "suppressed": flight.suppressed,
                "ended": flight.ended,
                "whole": sorted(flight.whole),
                "checkpoint": flight.checkpoint
                and {
                    "sequence": flight.checkpoint.sequence,
                    "digest": flight.checkpoint.digest.hex(),
                    "disk": flight.checkpoint.position.disk,
                    "cluster": flight.checkpoint.position.cluster,
                },
            },
        }
    ).encode()


def load(data: bytes) -> SenderState:
    """Of what `dump` wrote; ValueError or KeyError for anything else."""
    tree = json.loads(data)
    if tree["version"] != _VERSION:
        raise ValueError(f"sender state of version {tree['version']}")
    flight = tree["flight"]
    point = flight and flight["checkpoint"]
    return SenderState(
        term=tree["term"],
        committed=Committed(tree["committed"][0], bytes.fromhex(tree["committed"][1])) if tree["committed"] else None,
        disks=_geometry(tree["disks"]),
        recoverable=tree["recoverable"],
        instant=tree["instant"],
        application=tree["application"],
        trusted=tree["trusted"],
        totals=Totals(*tree.get("totals", ())),  # files of an earlier version have none
        flight=Flight(
            header=_cycle(flight["header"]),
            checkpoint=Checkpoint(
                point["sequence"], bytes.fromhex(point["digest"]), Position(point["disk"], point["cluster"])
            )
            if point
            else None,
            suppressed=flight["suppressed"],
            ended=flight["ended"],
            whole=frozenset(flight["whole"]),
        )
        if flight
        else None,
    )


def _disks(disks: tuple[DiskGeometry, ...]) -> list[list[str | int]]:
    return [[disk.id, disk.size, disk.name] for disk in disks]


def _geometry(tree: list[tuple[str, int, str]]) -> tuple[DiskGeometry, ...]:
    return tuple(DiskGeometry(id_, size, name) for id_, size, name in tree)


def _header(header: CycleHeader) -> dict[str, object]:
    return {
        "vm_id": header.vm_id,
        "id": header.id.hex(),
        "number": header.number,
        "parent": header.parent,
        "parent_id": header.parent_id.hex(),
        "term": header.term,
        "kind": header.kind.value,
        "instant": header.instant,
        "consistency": header.consistency,
        "disks": _disks(header.disks),
        "machine": header.machine.hex(),
        "placeholder": header.placeholder,
        "compared": header.compared,
    }


def _cycle(tree: dict[str, object]) -> CycleHeader:
    fields = dict(tree)
    for name in ("id", "parent_id", "machine"):
        fields[name] = bytes.fromhex(str(fields[name]))
    fields["kind"] = Kind(fields["kind"])
    fields["disks"] = _geometry(fields["disks"])  # type: ignore[arg-type]  # json keeps no tuples
    return CycleHeader(**fields)  # type: ignore[arg-type]  # the fields `_header` wrote
