"""A host agent that does nothing but cycles of one VM, to be killed: `URI UUID STATE RUN SCRATCH REPLICA CONSISTENCY`.

What a cycle brings is in the file REPLICA, durably, before the cycle is acked: as a target has it.
"""

import os
import pickle
import random
import sys
from pathlib import Path

from hyperv_host_agent.changes.base import SourceUnavailable
from hyperv_host_agent.changes.durable import replace
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.tracking.freezing import GuardProcess
from hyperv_host_agent.hypervisors.libvirt.tracking.places import Places
from hyperv_host_agent.hypervisors.libvirt.tracking.source import LibvirtChangeSource
from twinsite.extents import CLUSTER, Run, clusters


def main(uri: str, uuid: str, state: str, run: str, scratch: str, file: str, consistency: str) -> None:
    connection = Connection(uri)
    source = LibvirtChangeSource(
        uuid,
        lambda: connection.domain(uuid),
        Places(Path(state), Path(run), Path(scratch)),
        machine=lambda: b"",
        guard=lambda domain: GuardProcess(uri, domain, freeze=10, hold=5),
    )
    source.start()
    number, _, replica = load(Path(file))
    dice = random.Random(os.urandom(8))
    while True:
        print("cycle", flush=True)
        if not dice.randrange(4):
            disk = source.disks()[0]
            source.read_now(disk.id, Run(0, clusters(disk.size)))
        number, identifier = number + 1, os.urandom(16)
        try:
            point = source.open_point(number, identifier, consistency=consistency)
        except SourceUnavailable as error:
            print(error, flush=True)
            continue
        for disk in point.disks:
            held = replica.setdefault(disk.id, bytearray(disk.size))
            for changed in point.dirty(disk.id):
                content = point.read(disk.id, changed)
                held[changed.start * CLUSTER : changed.start * CLUSTER + len(content)] = content
        point.close()
        if dice.randrange(4):
            replace(Path(file), pickle.dumps((number, identifier, replica)))
            source.ack(number, identifier)
        else:
            number, _, replica = load(Path(file))
            source.discard()


def load(file: Path) -> tuple[int, bytes, dict[str, bytearray]]:
    """Newest cycle of the replica, and its content."""
    if not file.exists():
        return 0, b"", {}
    number, identifier, replica = pickle.loads(file.read_bytes())  # noqa: S301  # the test's own
    return number, identifier, replica


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[call-arg]
