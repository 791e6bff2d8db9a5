"""What is asked of a server, and what its chunks make of it. Nothing it says is believed unchecked."""

import bisect
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from hyperv_host_agent.nbd import wire
from hyperv_host_agent.nbd.errors import NbdBroken, NbdReadFailed
from hyperv_host_agent.nbd.stream import Stream
from twinsite.units import MiB

_STATUS_BYTES: Final = 2 * MiB  # of one answer; QEMU ends it at half of that
_ERROR_BYTES: Final = 4096 + 16
_CHUNKS: Final = 64  # of any answer; one of a read may have one more for every 512 bytes


@dataclass(slots=True)
class Flight:
    """One request on its way."""

    offset: int
    length: int
    chunks: int = 0
    error: NbdReadFailed | None = None

    def take(self, stream: Stream, kind: int, length: int) -> None:
        raise NotImplementedError

    def finish(self, stream: Stream) -> None:
        """The server says that this was all. Raises NbdBroken when it was not."""
        raise NotImplementedError

    def chunk(self, stream: Stream, flags: int, kind: int, length: int) -> bool:
        """Take one; whether it was the last."""
        self.chunks += 1
        if self.chunks > _CHUNKS + self.length // 512:
            raise NbdBroken(stream.server, "an answer that does not end")
        done = bool(flags & wire.DONE)
        if kind == wire.CHUNK_NONE:
            if length or not done:
                raise NbdBroken(stream.server, "an empty chunk that is not the end of an answer")
        elif kind & wire.CHUNK_ERROR:
            self._take_error(stream, kind, length)
        elif length > max(self.length + wire.OFFSET.size, _STATUS_BYTES):
            raise NbdBroken(stream.server, f"a chunk of {length} bytes")
        else:
            self.take(stream, kind, length)
        if done and self.error is None:
            self.finish(stream)
        return done

    def _take_error(self, stream: Stream, kind: int, length: int) -> None:
        if not wire.ERROR.size <= length <= _ERROR_BYTES:
            raise NbdBroken(stream.server, f"an error of {length} bytes")
        payload = stream.take(length)
        code, said = wire.ERROR.unpack_from(payload)
        rest = length - wire.ERROR.size - said
        if rest < 0 or not code:
            raise NbdBroken(stream.server, "an error that is none")
        text = wire.printable(payload[wire.ERROR.size : wire.ERROR.size + said])
        offset = self.offset
        if kind == wire.CHUNK_ERROR_OFFSET and rest == wire.OFFSET.size:
            (offset,) = wire.OFFSET.unpack_from(payload, length - rest)
            if not self.offset <= offset < self.offset + self.length:
                raise NbdBroken(stream.server, "an error outside of what was asked for")
        problem = wire.error_name(code) + (f": {text}" if text else "")
        self.error = self.error or NbdReadFailed(stream.server, offset, code, problem)


@dataclass(slots=True)
class ReadFlight(Flight):
    view: memoryview = field(default_factory=lambda: memoryview(b""))  # of `length` bytes; old content
    spans: list[tuple[int, int]] = field(default_factory=list)  # received, ascending, apart

    def take(self, stream: Stream, kind: int, length: int) -> None:
        if kind == wire.CHUNK_DATA:
            if length <= wire.OFFSET.size:
                raise NbdBroken(stream.server, "data without content")
            (offset,) = wire.OFFSET.unpack(stream.take(wire.OFFSET.size))
            start, end = self._cover(stream, offset, length - wire.OFFSET.size)
            stream.fill(self.view[start:end])
        elif kind == wire.CHUNK_HOLE:
            if length != wire.HOLE.size:
                raise NbdBroken(stream.server, f"a hole of {length} bytes of description")
            offset, hole = wire.HOLE.unpack(stream.take(length))
            start, end = self._cover(stream, offset, hole)
            self.view[start:end] = bytes(end - start)
        else:
            raise NbdBroken(stream.server, f"a chunk of kind {kind} as content")

    def finish(self, stream: Stream) -> None:
        if self.spans != [(0, self.length)]:  # the rest would be what the buffer held before
            raise NbdBroken(stream.server, "less content than was asked for")

    def _cover(self, stream: Stream, offset: int, length: int) -> tuple[int, int]:
        """Where it goes in the view."""
        start, end = offset - self.offset, offset - self.offset + length
        if start < 0 or length <= 0 or end > self.length:
            raise NbdBroken(stream.server, "content outside of what was asked for")
        place = bisect.bisect(self.spans, (start, end))
        before, after = self.spans[place - 1 : place], self.spans[place : place + 1]
        if (before and before[0][1] > start) or (after and after[0][0] < end):
            raise NbdBroken(stream.server, "the same content twice")
        joined = (
            before[0][0] if before and before[0][1] == start else start,
            after[0][1] if after and after[0][0] == end else end,
        )
        first = place - (joined[0] < start)
        self.spans[first : place + (joined[1] > end)] = [joined]
        return start, end


@dataclass(slots=True)
class StatusFlight(Flight):
    contexts: dict[int, str] = field(default_factory=dict)
    found: dict[str, Sequence[int]] = field(default_factory=dict)  # length, flags, length, flags …

    def take(self, stream: Stream, kind: int, length: int) -> None:
        if kind != wire.CHUNK_STATUS:
            raise NbdBroken(stream.server, f"a chunk of kind {kind} as block status")
        pairs, odd = divmod(length - wire.NUMBER.size, 8)
        if pairs < 1 or odd or length > _STATUS_BYTES:
            raise NbdBroken(stream.server, f"a block status of {length} bytes")
        payload = memoryview(stream.take(length))
        (number,) = wire.NUMBER.unpack_from(payload)
        name = self.contexts.get(number)
        if name is None or name in self.found:
            raise NbdBroken(stream.server, "a block status of a context that was not asked for, or twice")
        numbers = _big_endian(payload[wire.NUMBER.size :])
        # Only the last one may reach beyond what was asked for.
        lengths = numbers[0::2]
        if not all(lengths) or sum(lengths[:-1]) >= self.length:
            raise NbdBroken(stream.server, "a block status that goes nowhere, or beyond what was asked for")
        self.found[name] = numbers

    def finish(self, stream: Stream) -> None:
        if len(self.found) != len(self.contexts):
            raise NbdBroken(stream.server, "a block status without one of the contexts")


def _big_endian(payload: memoryview) -> tuple[int, ...]:
    return struct.unpack(f">{len(payload) // 4}I", payload)
