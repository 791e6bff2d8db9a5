"""One connection to an export: pipelined reads, and what the server knows without reading."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from hyperv_host_agent.nbd import wire
from hyperv_host_agent.nbd.buffers import Buffers
from hyperv_host_agent.nbd.errors import NbdBroken, NbdError, NbdReadFailed
from hyperv_host_agent.nbd.handshake import negotiate
from hyperv_host_agent.nbd.replies import Flight, ReadFlight, StatusFlight
from hyperv_host_agent.nbd.stream import Address, Stream
from twinsite.clock import Clock
from twinsite.units import GiB, KiB

AnyFlight = TypeVar("AnyFlight", bound=Flight)
ALLOCATION: Final = "base:allocation"
HOLE: Final = 1  # of ALLOCATION: no space is taken
ZERO: Final = 2  # of ALLOCATION: reads as zeros
DIRTY: Final = 1  # of a dirty bitmap
_STATUS_STEP: Final = 4 * GiB - 64 * KiB  # asked for at once: lengths have 32 bits
_PIECE: Final = 512 * KiB  # of a read into one buffer: the server reads one while another is on its way
_DEPTH: Final = 4


def dirty_bitmap(name: str) -> str:
    """The context of QEMU's dirty bitmap of that name."""
    return f"qemu:dirty-bitmap:{name}"


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int  # bytes
    length: int
    flags: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class Connection:
    """For one thread at a time; `cut` may be called by any."""

    def __init__(
        self,
        address: Address,
        export: str,
        *,
        contexts: Sequence[str] = (),
        timeout: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        """`timeout` in seconds, for each thing that is waited for. Raises NbdError."""
        with contextlib.ExitStack() as stack:
            self._stream = stack.enter_context(contextlib.closing(Stream(address, timeout=timeout, clock=clock)))
            self.export = negotiate(self._stream, export, contexts)
            stack.pop_all()
        self._busy = False
        self._cookie = 0
        self._usable = True
        self._header = bytearray(wire.CHUNK.size)

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self.export.size

    @property
    def usable(self) -> bool:
        """Nothing went wrong yet but what the server itself said."""
        return self._usable

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill the view. Raises NbdReadFailed, after which the connection goes on; other NbdErrors end it."""
        piece = min(_PIECE, self.export.largest)
        starts = range(0, len(view), piece)
        flights = (
            ReadFlight(offset + at, min(piece, len(view) - at), view=view[at : min(at + piece, len(view))])
            for at in starts
        )
        for _ in self._pipelined(flights, _DEPTH):
            pass

    def read_many(
        self, requests: Iterable[tuple[int, int]], buffers: Buffers, *, depth: int = _DEPTH
    ) -> Iterator[tuple[int, memoryview]]:
        """Contents of (offset, length)s as they come, in any order; each is valid until the next one is asked for.

        No length is above `buffers.size`. Whoever does not read to the end ends the connection.
        """
        with buffers.taking() as taken:
            held: dict[int, bytearray] = {}

            def flights() -> Iterator[ReadFlight]:
                for offset, length in requests:
                    buffer = taken.take()
                    flight = ReadFlight(offset, length, view=memoryview(buffer)[:length])
                    held[id(flight)] = buffer
                    yield flight

            for flight in self._pipelined(flights(), depth):
                yield flight.offset, flight.view
                taken.give_back(held.pop(id(flight)))

    def extents(self, context: str, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """All of the range, ascending, neighbours of the same flags as one. The context is one that was asked for."""
        if context not in self.export.contexts.values():
            raise ValueError(f"{context} was not asked for")
        at, end = start, self.size if end is None else end
        last: Extent | None = None
        while at < end:
            asked = min(_STATUS_STEP, end - at)
            flight = StatusFlight(at, asked, contexts=self.export.contexts)
            for _ in self._pipelined(iter((flight,)), 1):
                pass
            numbers = flight.found[context]
            for length, flags in zip(numbers[0::2], numbers[1::2], strict=True):
                length = min(length, end - at)  # noqa: PLW2901  # the last one may say more than was asked for
                if last is not None and last.flags == flags:
                    last = Extent(last.offset, last.length + length, flags)
                else:
                    if last is not None:
                        yield last
                    last = Extent(at, length, flags)
                at += length
        if last is not None:
            yield last

    def cut(self) -> None:
        """End it from any thread: whoever waits for an answer gets NbdGone. `close` is still to be called."""
        self._usable = False
        self._stream.cut()

    def close(self) -> None:
        """The server is told if it listens. Repeatable."""
        if self._usable:
            self._usable = False
            with contextlib.suppress(NbdError):
                self._stream.send(wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, wire.CMD_DISCONNECT, 0, 0, 0))
        self._stream.close()

    def _pipelined(self, flights: Iterator[AnyFlight], depth: int) -> Iterator[AnyFlight]:
        """`depth` of them on their way at a time. What the server refused is raised once nothing flies any more."""
        if not self._usable or self._busy:
            raise NbdBroken(self._stream.server, "the connection is of no use any more")
        flying: dict[int, AnyFlight] = {}
        failed: NbdReadFailed | None = None
        self._busy, whole = True, False
        try:
            while True:
                while failed is None and len(flying) < depth and (flight := next(flights, None)) is not None:
                    flying[self._launched(flight)] = flight
                if not flying:
                    break
                landed = self._landed(flying)
                if landed is None:
                    continue
                failed = failed or landed.error
                if failed is None:
                    yield landed
            whole = True
        finally:
            self._busy = False
            if not whole:
                self._usable = False
        if failed is not None:
            raise failed

    def _launched(self, flight: Flight) -> int:
        """Its cookie."""
        export = self.export
        if not 0 < flight.length <= 0xFFFFFFFF or flight.offset < 0 or flight.offset + flight.length > export.size:
            raise ValueError(f"{flight.length} bytes at {flight.offset} of an export of {export.size}")
        status = isinstance(flight, StatusFlight)
        if not status and flight.length > export.largest:
            raise ValueError(f"{flight.length} bytes at once; the server takes {export.largest}")
        command = wire.CMD_BLOCK_STATUS if status else wire.CMD_READ
        self._cookie += 1
        request = wire.REQUEST.pack(wire.REQUEST_MAGIC, 0, command, self._cookie, flight.offset, flight.length)
        self._stream.send(request)
        return self._cookie

    def _landed(self, flying: dict[int, AnyFlight]) -> AnyFlight | None:
        """Take one chunk; the request it completed."""
        self._stream.fill(memoryview(self._header))
        magic, flags, kind, cookie, length = wire.CHUNK.unpack(self._header)
        if magic != wire.CHUNK_MAGIC:
            raise NbdBroken(self._stream.server, "this is not the beginning of an answer")
        flight = flying.get(cookie)
        if flight is None:
            raise NbdBroken(self._stream.server, "an answer to what was not asked")
        return flying.pop(cookie) if flight.chunk(self._stream, flags, kind, length) else None
