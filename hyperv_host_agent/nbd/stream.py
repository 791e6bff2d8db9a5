"""A socket to a server that may be slow, silent or hostile: every wait ends, every end is a typed error."""

import contextlib
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent.nbd.errors import NbdGone
from twinsite.clock import Clock, SystemClock

_TIMEVAL: Final = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


class Stream:
    """For one thread; `cut` may be called by any."""

    def __init__(self, address: Address, *, timeout: float, clock: Clock | None = None) -> None:
        """`timeout`, in seconds, is for the connection and then for whatever is waited for as a whole."""
        self.server = str(address)
        self._timeout, self._clock = timeout, clock or SystemClock()
        try:
            self._socket = _connected(address, timeout)
        except OSError as error:
            raise NbdGone(self.server, str(error)) from error
        # A blocking socket whose waits the kernel limits: a whole reply is one call then, however many pieces it has.
        self._socket.settimeout(None)
        limit = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1_000_000) or 1)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, limit)

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except BlockingIOError:
            raise NbdGone(self.server, f"it took nothing for {self._timeout:.0f} s") from None
        except OSError as error:
            raise NbdGone(self.server, str(error)) from error

    def fill(self, view: memoryview) -> None:
        """Receive exactly that much. A server that sends drop by drop has twice the timeout for all of it."""
        deadline = 0.0
        while view:
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            except BlockingIOError:
                raise NbdGone(self.server, f"no answer within {self._timeout:.0f} s") from None
            except OSError as error:
                raise NbdGone(self.server, str(error)) from error
            if not count:
                raise NbdGone(self.server, "it closed the connection")
            view = view[count:]
            if view:
                now = self._clock.monotonic()
                deadline = deadline or now + self._timeout
                if now > deadline:
                    raise NbdGone(self.server, f"no whole answer within {self._timeout:.0f} s")

    def take(self, length: int) -> bytes:
        """The caller has checked the length."""
        buffer = bytearray(length)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def cut(self) -> None:
        """End it from any thread; whoever waits for an answer gets NbdGone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def _connected(address: Address, timeout: float) -> socket.socket:
    if isinstance(address, TcpAddress):
        made = socket.create_connection((address.host, address.port), timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(socket.socket(socket.AF_UNIX))
        made.settimeout(timeout)
        made.connect(str(address.path))
        stack.pop_all()
        return made
