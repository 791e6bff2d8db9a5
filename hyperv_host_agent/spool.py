"""A cycle's messages between the closed source and the target's ack: memory up to a budget, then a file.

The file is no promise: after a restart the cycle is given up and its changes are in the next one. So it is never
synced, and it has no name once it is open.
"""

import os
import tempfile
import threading
from pathlib import Path
from typing import Final

from twinsite.errors import Exhausted


class SpoolFull(Exhausted):
    public = "the spool in {error.folder} has no room for a cycle's changes"
    still_works = "the VM runs on and its changes stay tracked; the next cycle brings them"
    next_step = "free space under the agent's state folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder


class Memory:
    """Bytes all spools of this agent may hold in memory together. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give(self, count: int) -> None:
        with self._lock:
            self._left += count


class Spool:
    """Messages of one cycle by batch sequence, which rises by one. One thread at a time.

    Blocking: what does not fit into memory is written and read with ordinary file calls.
    """

    def __init__(self, folder: Path, memory: Memory) -> None:
        self._folder = folder
        self._memory = memory
        self._held: dict[int, bytes] = {}
        self._filed: dict[int, tuple[int, int]] = {}  # sequence → (offset, length)
        self._file: Final[list[int]] = []  # its descriptor, once there is one
        self._end = 0
        self.bytes = 0

    def append(self, sequence: int, message: bytes) -> None:
        """Raises SpoolFull; then nothing of the message is kept."""
        if self._memory.take(len(message)):
            self._held[sequence] = message
        else:
            self._write(message)
            self._filed[sequence] = (self._end, len(message))
            self._end += len(message)
        self.bytes += len(message)

    def held(self, sequence: int) -> bytes | None:
        """If it is in memory; does not block, and may be called beside any call."""
        return self._held.get(sequence)

    def get(self, sequence: int) -> bytes:
        """Raises KeyError for a message that was released or never came."""
        if sequence in self._held:
            return self._held[sequence]
        offset, length = self._filed[sequence]
        return os.pread(self._file[0], length, offset)

    def release(self, durable: int) -> None:
        """Forget the messages up to the batch that is durable at the target."""
        for sequence in [held for held in self._held if held <= durable]:
            self._memory.give(len(self._held.pop(sequence)))
        for sequence in [filed for filed in self._filed if filed <= durable]:
            del self._filed[sequence]

    def close(self) -> None:
        self.release(max((*self._held, *self._filed), default=0))
        while self._file:
            os.close(self._file.pop())

    def _write(self, message: bytes) -> None:
        try:
            if not self._file:
                self._folder.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self._folder, prefix="cycle-")
                self._file.append(handle)
                os.unlink(name)  # noqa: PTH108  # a crash leaves nothing to clean up
            written = 0
            view = memoryview(message)
            while written < len(message):
                written += os.pwrite(self._file[0], view[written:], self._end + written)
        except OSError as error:
            raise SpoolFull(self._folder) from error
