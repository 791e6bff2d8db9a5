"""Writing much data to a file front to back, past the page cache where the file system allows it.

What a replica receives is not read again soon. Through the page cache it would cost a copy and a fresh page each, push
out what is needed, and be written at the sync instead of while the next batch comes in.
"""

import errno
import fcntl
import mmap
import os
from typing import Final

from hyperv_host_agent.store.files import write_all

_BLOCK: Final = 4096  # what every device and file system takes for direct writes
_BUFFER: Final = 1 << 20


class BulkWriter:
    """Appends to `fd`, whose data begins at `start`, a multiple of 4096. Not thread-safe; OSErrors pass through.

    What was written is in the file only after `flush`, which may write up to a block of zeros behind it.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._buffer = mmap.mmap(-1, _BUFFER)  # aligned, as direct writes need it
        self._base = self.end = start  # the buffer holds `_base` up to `end`
        self._flushed = start
        self._direct = False
        self._may_be_direct = True

    def write(self, data: bytes | memoryview, position: int) -> None:
        """Put data at a position: where the data ends, or before that, and then what was behind it is forgotten.

        On an error nothing of the data counts; written again it takes its place.
        """
        if position != self.end:
            self._seek(position)
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                room = _BUFFER - (self.end - self._base)
                if not room:
                    self._drain()
                    continue
                self._take(view[at : at + room])
                at += room

    def flush(self) -> None:
        """Everything is in the file; not durable by that."""
        if self._flushed == self.end:
            return
        length = self.end - self._base
        padded = -(-length // _BLOCK) * _BLOCK
        self._buffer[length:padded] = bytes(padded - length)
        self._out(padded)
        self._flushed = self.end
        whole = length // _BLOCK * _BLOCK
        self._buffer.move(0, whole, padded - whole)  # the last block is written again with what comes
        self._base += whole

    def ordinary(self) -> None:
        """Others may write to the file descriptor as they like, until the next write or flush here."""
        self._set(direct=False)

    def _take(self, data: bytes | memoryview) -> None:
        at = self.end - self._base
        self._buffer[at : at + len(data)] = data
        self.end += len(data)

    def _drain(self) -> None:
        self._out(_BUFFER)
        self._base = self._flushed = self.end

    def _out(self, length: int) -> None:
        if self._may_be_direct:
            self._set(direct=True)
        with memoryview(self._buffer) as view:
            try:
                write_all(self._fd, view[:length], self._base)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._may_be_direct = False  # the file system took the flag and not the write
                self._set(direct=False)
                write_all(self._fd, view[:length], self._base)

    def _seek(self, position: int) -> None:
        base = position // _BLOCK * _BLOCK
        if not self._base <= position <= self.end:
            self._set(direct=False)
            block = os.pread(self._fd, position - base, base)
            self._buffer[: position - base] = block.ljust(position - base, b"\0")
            self._base = base
        self.end = position
        self._flushed = min(self._flushed, position)

    def _set(self, *, direct: bool) -> None:
        if direct == self._direct:
            return
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError:
            self._may_be_direct = False  # not on this file system
            return
        self._direct = direct
