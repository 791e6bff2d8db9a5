"""Freezes a guest, says so, and holds it for ever: `URI UUID`. To be killed or stopped."""

import sys
import threading

from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.tracking.freezing import Freezer, GuardProcess


def main(uri: str, uuid: str) -> None:
    connection = Connection(uri)
    freezer = Freezer(
        uuid,
        lambda: connection.domain(uuid),
        lambda _: None,
        lambda domain: GuardProcess(uri, domain, freeze=10, hold=3),
    )
    with freezer.quiet() as quiet:
        print(f"frozen {quiet.problem}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
