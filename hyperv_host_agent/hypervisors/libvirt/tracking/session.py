"""Something open to be read: connections to a VM's disks, until whoever serves them ends or the session does."""

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

import structlog

from hyperv_host_agent.changes.base import SourceFailed, SourceUnavailable
from hyperv_host_agent.nbd.connection import ALLOCATION, DIRTY, ZERO, Connection, Extent, dirty_bitmap
from hyperv_host_agent.nbd.connections import Connections
from hyperv_host_agent.nbd.errors import ContextMissing, NbdError, NbdReadFailed
from hyperv_host_agent.nbd.stream import UnixAddress
from twinsite.extents import CLUSTER, Run, clusters, runs
from twinsite.units import GiB

CONNECTIONS: Final = 2  # to one disk; two threads pack
_STEP: Final = 4 * GiB - CLUSTER  # asked for at once, so that no connection is held for long
_LOOK: Final = 1 * GiB  # of holes known at a time

_log = structlog.get_logger()


class Served(Protocol):
    """What serves the disks."""

    def trouble(self) -> str:
        """Why what is read now is not to be used, a phrase; empty: it is."""
        ...

    def end(self) -> None:
        """No socket is open any more. Never raises."""
        ...


class Session:
    """Thread-safe. Disks are known by their ids."""

    def __init__(
        self,
        vm_id: str,
        served: Served,
        exports: Mapping[str, tuple[UnixAddress, str]],
        since: Mapping[str, str],
        *,
        timeout: float = 30.0,
    ) -> None:
        """Connects to `exports`, by disk; `since` names the bitmaps of those that have one. Takes over `served`: it is
        ended when this raises, too. Raises SourceUnavailable.
        """
        self._vm_id, self._served, self._since = vm_id, served, dict(since)
        self._disks: dict[str, Connections] = {}
        self._closing = threading.Lock()
        self._open = True
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            with self._translated(""):
                for disk, (address, export) in exports.items():
                    contexts = [ALLOCATION] + ([dirty_bitmap(since[disk])] if disk in since else [])
                    self._disks[disk] = Connections(
                        address, export, contexts=contexts, most=CONNECTIONS, timeout=timeout
                    )
            stack.pop_all()

    def size(self, disk: str) -> int:
        """Bytes."""
        return self._connections(disk).size

    def read(self, disk: str, run: Run) -> bytes:
        connections = self._connections(disk)
        start, end = run.start * CLUSTER, min(run.end * CLUSTER, connections.size)
        if end <= start:
            raise SourceUnavailable(self._vm_id, "its disks were changed meanwhile")
        content = bytearray(end - start)
        with self._translated(disk), connections.using() as connection:
            connection.read_into(start, memoryview(content))
        self._check()
        return bytes(content)

    def dirty(self, disk: str) -> Iterator[Run]:
        """Clusters of its bitmap, ascending, pieces of runs."""
        context = dirty_bitmap(self._since[disk])
        for extent in self._extents(disk, context, 0, self.size(disk)):
            if extent.flags & DIRTY:
                yield Run(extent.offset // CLUSTER, clusters(extent.end) - extent.offset // CLUSTER)

    def holes(self, disk: str, among: Iterable[Run]) -> Iterator[Run]:
        """Clusters that are zero, ascending, looked for around those of `among`, which ascend: what it costs follows
        them and not the size of the disk.
        """
        size = self.size(disk)
        yield from runs(
            itertools.chain.from_iterable(
                self._zeros(disk, run.start * CLUSTER, min(run.end * CLUSTER, size), size) for run in _gathered(among)
            )
        )

    def close(self) -> None:
        """Sockets first: a job that is aborted under an open one blocks its VM. Repeatable, never raises."""
        with self._closing:
            if self._open:
                self._open = False
                for connections in self._disks.values():
                    connections.close()
                self._served.end()

    def _zeros(self, disk: str, start: int, end: int, size: int) -> Iterator[int]:
        for at in range(start, end, _LOOK):
            stop = min(at + _LOOK, end)
            # Twice: a discard of the guest just while QEMU answers is seen as a hole, although the instant had data
            # there. That data is saved by then, so that the second answer says so.
            first, second = (set(_whole(self._extents(disk, ALLOCATION, at, stop), size)) for _ in range(2))
            yield from sorted(first & second)

    def _extents(self, disk: str, context: str, start: int, end: int) -> Iterator[Extent]:
        connections = self._connections(disk)
        for at in range(start, end, _STEP):
            with self._translated(disk), connections.using() as connection:
                found = _found(connection, context, at, min(at + _STEP, end))
            self._check()
            yield from found

    def _connections(self, disk: str) -> Connections:
        if disk not in self._disks:
            raise SourceUnavailable(self._vm_id, "its disks were changed meanwhile")
        return self._disks[disk]

    def _check(self) -> None:
        if trouble := self._served.trouble():
            raise SourceUnavailable(self._vm_id, trouble)

    @contextlib.contextmanager
    def _translated(self, disk: str) -> Iterator[None]:
        try:
            yield
        except NbdReadFailed as error:
            self._check()
            raise SourceFailed(self._vm_id, disk, str(error)) from error
        except ContextMissing as error:
            raise SourceUnavailable(self._vm_id, f"QEMU does not say what changed: {error}") from error
        except NbdError as error:
            self._check()
            raise SourceUnavailable(self._vm_id, f"it cannot be read any more: {error}") from error


def _found(connection: Connection, context: str, start: int, end: int) -> list[Extent]:
    return list(connection.extents(context, start, end))


def _gathered(among: Iterable[Run]) -> Iterator[Run]:
    """Those that are near to one another as one, of _LOOK bytes at most as long as they are themselves shorter."""
    start = end = 0
    for run in among:
        if end and run.end - start <= _LOOK // CLUSTER:
            end = run.end
            continue
        if end:
            yield Run(start, end - start)
        start, end = run.start, run.end
    if end:
        yield Run(start, end - start)


def _whole(extents: Iterator[Extent], size: int) -> Iterator[int]:
    """Clusters that lie in zero extents as far as the disk goes."""
    start = end = 0  # neighbours with other flags are one stretch of zeros
    for extent in extents:
        if not extent.flags & ZERO:
            continue
        if extent.offset != end:
            yield from _inside(start, end, size)
            start = extent.offset
        end = extent.end
    yield from _inside(start, end, size)


def _inside(start: int, end: int, size: int) -> range:
    return range(-(-start // CLUSTER), clusters(end) if end == size else end // CLUSTER)
