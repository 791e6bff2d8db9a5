"""Memory that is read into again and again: fresh buffers are what reading costs most."""

import contextlib
import threading
from collections.abc import Iterator


class Buffers:
    """Of one size. Thread-safe; grows to as many as are in use at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._free: list[bytearray] = []

    @contextlib.contextmanager
    def taking(self) -> Iterator["Taken"]:
        taken = Taken(self)
        try:
            yield taken
        finally:
            taken.give_back_all()

    def take(self) -> bytearray:
        with self._lock:
            if self._free:
                return self._free.pop()
        return bytearray(self.size)

    def give_back(self, buffer: bytearray) -> None:
        with self._lock:
            self._free.append(buffer)


class Taken:
    """What one reader has of them; nothing is lost however it ends."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._held: dict[int, bytearray] = {}

    def take(self) -> bytearray:
        buffer = self._buffers.take()
        self._held[id(buffer)] = buffer
        return buffer

    def give_back(self, buffer: bytearray) -> None:
        self._buffers.give_back(self._held.pop(id(buffer)))

    def give_back_all(self) -> None:
        while self._held:
            self._buffers.give_back(self._held.popitem()[1])
