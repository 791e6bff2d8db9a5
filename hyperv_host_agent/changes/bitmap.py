"""One bit per cluster, over memory that belongs to somebody else (a mapped file)."""

import re
from collections.abc import Iterator
from typing import Final

from twinsite.extents import Run

_STRETCH: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)  # a dense bitmap is nearly all 0xff
_PIECE: Final = 4096
_ZEROS: Final = bytes(_PIECE)  # a sparse bitmap of a big disk is nearly all zeros, which compare fastest


def _runs_of_byte(value: int) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    start = None
    for bit in range(9):
        if value >> bit & 1:
            start = bit if start is None else start
        elif start is not None:
            found.append((start, bit))
            start = None
    return tuple(found)


_RUNS: Final = tuple(_runs_of_byte(value) for value in range(256))


def bytes_for(bits: int) -> int:
    return -(-bits // 8)


class Bitmap:
    """Bit n is bit n % 8 of byte n // 8. One writer at a time; a reader may look while it writes."""

    def __init__(self, memory: memoryview, bits: int) -> None:
        self._memory = memory[: bytes_for(bits)]
        self._bits = bits

    def __contains__(self, bit: int) -> bool:
        return bool(self._memory[bit >> 3] >> (bit & 7) & 1)

    def set(self, bit: int) -> None:
        self._memory[bit >> 3] |= 1 << (bit & 7)

    def set_run(self, run: Run) -> None:
        first, last = run.start >> 3, (run.end - 1) >> 3
        bits = ((1 << run.count) - 1) << (run.start & 7)
        bits |= int.from_bytes(self._memory[first : last + 1], "little")
        self._memory[first : last + 1] = bits.to_bytes(last + 1 - first, "little")

    def merge(self, other: "Bitmap") -> None:
        """Set every bit that is set in `other`, as far as this one reaches."""
        known = self.number() | other.number() & ((1 << self._bits) - 1)
        self._memory[:] = known.to_bytes(len(self._memory), "little")

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def number(self) -> int:
        """All bits as one number, bit 0 the lowest."""
        return int.from_bytes(self._memory, "little")

    def count(self) -> int:
        return self.number().bit_count()

    def any_in(self, run: Run) -> bool:
        """Whether a bit of the run is set; cheap for the usual answer, no."""
        if not bytes(self._memory[run.start >> 3 : (run.end + 7) >> 3]).strip(b"\0"):
            return False
        return any(bit in self for bit in range(run.start, run.end))

    def clear_runs(self, run: Run) -> Iterator[Run]:
        """Maximal runs of bits inside `run` that are not set, ascending."""
        first = run.start & ~7
        piece = Bitmap(memoryview(bytes(self._memory[first >> 3 : (run.end + 7) >> 3])), run.end - first)
        at = run.start
        for taken in piece.runs():
            start, end = taken.start + first, taken.end + first
            if start > at:
                yield Run(at, start - at)
            at = max(at, end)
        if at < run.end:
            yield Run(at, run.end - at)

    def snapshot(self) -> "Bitmap":
        return Bitmap(memoryview(bytes(self._memory)), self._bits)

    def runs(self) -> Iterator[Run]:
        """Maximal runs of set bits, ascending."""
        start = end = -1
        for first, value in self._stretches():
            pieces = ((0, len(value) * 8),) if value[0] == 0xFF else _RUNS[value[0]]
            for begin, stop in pieces:
                if first + begin == end:
                    end = first + stop
                    continue
                if end > start:
                    yield Run(start, min(end, self._bits) - start)
                start, end = first + begin, first + stop
                if start >= self._bits:  # the rest of the last byte belongs to somebody else
                    return
        if end > start:
            yield Run(start, min(end, self._bits) - start)

    def _stretches(self) -> Iterator[tuple[int, bytes]]:
        """First bit, and either one byte that is mixed or any number of 0xff."""
        for at in range(0, len(self._memory), _PIECE):
            piece = bytes(self._memory[at : at + _PIECE])
            if piece != _ZEROS:
                for stretch in _STRETCH.finditer(piece):
                    yield (at + stretch.start()) * 8, stretch[0]

    def release(self) -> None:
        self._memory.release()
