"""Ports for programs that must find theirs free again after a restart."""

import random
import socket
from typing import Final

# Below the kernel's ephemeral range (32768 and up): no outgoing connection takes such a port while its program is away.
_RANGE: Final = range(15000, 32000)
_given: set[int] = set()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now, and that was not given out before in this process."""
    while True:
        port = random.choice(_RANGE)  # noqa: S311  # not a secret
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
