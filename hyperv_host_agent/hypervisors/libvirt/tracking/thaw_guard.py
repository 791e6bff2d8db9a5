"""A process that thaws a guest when the one that froze it hangs or dies: `python -m … URI UUID FREEZE HOLD`.

It says "ready", waits FREEZE seconds for "frozen" and then HOLD seconds for "done". When that comes in time it ends
with 0; else it thaws, and ends with 1.
"""

import os
import select
import sys
import threading
from typing import Final

from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.errors import NotThere
from hyperv_host_agent.hypervisors.libvirt.tracking import freezing
from twinsite.errors import TwinsiteError

_GIVE_UP_SECONDS: Final = 60.0
_FREEZE_SLACK: Final = 2.0


def main(uri: str, uuid: str, freeze: float, hold: float) -> int:
    connection = Connection(uri)
    domain = connection.domain(uuid)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    said = _line(freeze + _FREEZE_SLACK)
    if said == b"frozen\n":
        said = _line(hold)
    if said == b"done\n":
        return 0
    stop = threading.Event()
    timer = threading.Timer(_GIVE_UP_SECONDS, stop.set)
    timer.daemon = True
    timer.start()
    while not stop.is_set():
        try:
            freezing.settle(lambda: domain, stop)
        except NotThere:
            break
        except TwinsiteError:
            stop.wait(1.0)  # the daemon is away
        else:
            break
    return 1


def _line(seconds: float) -> bytes:
    """Empty when none comes in time, or none ever will."""
    ready, _, _ = select.select([0], [], [], seconds)
    return os.read(0, 16) if ready else b""


if __name__ == "__main__":
    # Not by way of sys.exit: no thread of libvirt's is waited for.
    os._exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])))
