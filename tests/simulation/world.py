"""Virtual time, one source of chance, and a trace that says whether two runs were the same."""

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable


class Violation(AssertionError):
    """A promise was broken in this run."""


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.rng = random.Random(seed)
        self.events = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.story: list[str] | None = None  # a list here keeps the trace in words

    def after(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), act))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, act = heapq.heappop(self._heap)
            self.events += 1
            act()
        self.now = until

    def log(self, *words: object) -> None:
        if self.story is not None:
            self.story.append(f"{self.now:.3f} " + " ".join(map(str, words)))
        self._trace.update(repr((self.now, words)).encode())

    def trace(self) -> str:
        return self._trace.hexdigest()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def new_id(self) -> bytes:
        return self.rng.randbytes(16)
