"""A file mapped into memory, shared by all who map it: one page of words, then whatever its owner puts there.

What is stored belongs to the kernel at once: a process that is killed at any instruction loses none of it.
"""

import mmap
import os
from pathlib import Path
from typing import Final

from hyperv_host_agent.changes.durable import descriptor

PAGE: Final = 4096  # bytes
_MAGIC: Final = int.from_bytes(b"TWSMAP01", "little")  # in word 0


class MapUnusable(Exception):
    """The file is missing, unreadable, cut, or of another kind or size; says which, as a phrase for people."""


class Words:
    """Numbers of 64 bits in mapped memory; each is stored in one piece, so a kill leaves the old or the new one."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("Q")

    def __getitem__(self, place: int) -> int:
        return int(self._words[place])

    def __setitem__(self, place: int, value: int) -> None:
        self._words[place] = value

    def get_16_bytes(self, place: int) -> bytes:
        return b"".join(self[place + half].to_bytes(8, "little") for half in range(2))

    def set_16_bytes(self, place: int, value: bytes) -> None:
        """Not in one piece. Raises ValueError for another length."""
        if len(value) != 16:
            raise ValueError(f"{value!r} has not 16 bytes")
        for half in range(2):
            self[place + half] = int.from_bytes(value[half * 8 : half * 8 + 8], "little")

    def release(self) -> None:
        self._words.release()


class Text:
    """A short text in mapped memory; a kill while it is set leaves a text that may be cut or mixed, never an error."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def get(self) -> str:
        return bytes(self._memory).split(b"\0", 1)[0].decode(errors="replace")

    def set(self, text: str) -> None:
        self._memory[:] = text.encode()[: len(self._memory)].ljust(len(self._memory), b"\0")

    def release(self) -> None:
        self._memory.release()


class MappedFile:
    def __init__(self, path: Path, length: int, *, writable: bool) -> None:
        """Raises MapUnusable."""
        try:
            with descriptor(path, os.O_RDWR if writable else os.O_RDONLY) as file:
                found = os.fstat(file)
                if found.st_size != length:
                    raise MapUnusable("a file of the change map has a wrong length")
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                self._map = mmap.mmap(file, length, access=access)
        except OSError as error:  # missing, not a file, not ours to open, unreadable: all the same to who asks
            raise MapUnusable(f"the change map cannot be opened ({error.strerror})") from error
        self._path, self._file = path, (found.st_dev, found.st_ino)
        self._memory = memoryview(self._map)
        self.words = Words(self._memory[:PAGE])
        if self.words[0] != _MAGIC:
            self.close()
            raise MapUnusable("a file of the change map has other content")

    def in_place(self) -> bool:
        """Whether the path still leads to what is mapped."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def slice(self, start: int, length: int) -> memoryview:
        return self._memory[start : start + length]

    def flush(self) -> None:
        """What is stored is durable."""
        self._map.flush()

    def close(self) -> None:
        """The slices must be released before."""
        self.words.release()
        self._memory.release()
        self._map.close()


def create_mapped(path: Path, length: int) -> None:
    """All zero but for word 0."""
    with path.open("wb") as file:
        file.write(_MAGIC.to_bytes(8, "little"))
        file.flush()
        # Storing to a hole of a mapped file kills the process when the file system is full: leave no hole.
        os.posix_fallocate(file.fileno(), 0, length)


def padded(length: int) -> int:
    return -(-length // PAGE) * PAGE
