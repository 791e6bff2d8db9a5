"""The connections to one export, for as many threads as read it."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from hyperv_host_agent.nbd.connection import Connection
from hyperv_host_agent.nbd.errors import NbdGone
from hyperv_host_agent.nbd.stream import Address


class Connections:
    """Thread-safe. One is open from the beginning; more as they are needed, if the server says that they agree."""

    def __init__(
        self, address: Address, export: str, *, contexts: Sequence[str] = (), most: int = 2, timeout: float = 30.0
    ) -> None:
        """Raises NbdError."""
        self._address, self._name, self._contexts, self._timeout = address, export, tuple(contexts), timeout
        self._changed = threading.Condition()
        self._idle: list[Connection] = []
        self._open: list[Connection] = []
        self._closed = threading.Event()
        first = self._connect()
        self.size = first.size  # bytes
        self.most = most if first.export.multi_conn else 1
        self._idle.append(first)
        self._open.append(first)
        self._making = 0

    @contextlib.contextmanager
    def using(self) -> Iterator[Connection]:
        """One for the calling thread alone; waits for it. Raises NbdError."""
        connection = self._take()
        try:
            yield connection
        finally:
            with self._changed:
                if connection.usable and not self._closed.is_set():
                    self._idle.append(connection)
                else:
                    self._open.remove(connection)
                    connection.close()
                self._changed.notify()

    def close(self) -> None:
        """No socket of them is open when it returns; who reads gets NbdGone. Repeatable."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            for connection in self._idle:
                self._open.remove(connection)
                connection.close()
            self._idle.clear()
            for connection in self._open:
                connection.cut()
            while self._open or self._making:
                self._changed.wait()

    def _take(self) -> Connection:
        with self._changed:
            while True:
                if self._closed.is_set():
                    raise NbdGone(str(self._address), "it was closed")
                if self._idle:
                    return self._idle.pop()
                if len(self._open) + self._making < self.most:
                    break
                self._changed.wait()
            self._making += 1
        try:
            made = self._connect()
            with self._changed:
                self._open.append(made)
                if self._closed.is_set():
                    made.cut()
        finally:
            with self._changed:
                self._making -= 1
                self._changed.notify_all()
        return made

    def _connect(self) -> Connection:
        return Connection(self._address, self._name, contexts=self._contexts, timeout=self._timeout)
