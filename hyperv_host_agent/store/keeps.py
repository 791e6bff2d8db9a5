"""What people said of points: names, points to be kept, locks. One sealed document per point, `keeps/000042.json`.

A lock ends by the lock clock, and until then nobody takes the point away, not even who locked it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import copies, files
from hyperv_host_agent.store.base import BadLock, BadName, PointInfo, PointLocked
from hyperv_host_agent.store.lock_clock import LockClock

KEEPS: Final = "keeps"
LONGEST_LOCK: Final = 100 * 365 * 86400  # seconds
_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Mark:
    """What is said of one point."""

    cycle: int
    id: bytes  # of the cycle: a number may come again after damage to the newest point
    kept: bool = False
    name: str = ""
    locked_at: float = 0.0  # seconds of the lock clock
    locked_until: float = 0.0

    def encode(self) -> dict[str, object]:
        """As a document."""
        return {
            "cycle": self.cycle,
            "id": self.id.hex(),
            "kept": self.kept,
            "name": self.name,
            "locked": [self.locked_at, self.locked_until],
        }


class Keeps:
    """Not thread-safe. OSErrors of writing pass through."""

    def __init__(self, directory: Path, clock: LockClock) -> None:
        """Read them; what of two copies is damaged is written anew. Raises OSError."""
        self._directory, self._clock = directory / KEEPS, clock
        self._marks: dict[int, Mark] = {}
        self._lost: dict[int, str] = {}  # cycle → what is wrong with both copies
        files.make_directory(self._directory)
        for name in copies.names(self._directory, ".json"):
            self._read(self._directory / name)
        clock.at_least(max((mark.locked_at for mark in self._marks.values()), default=0.0))

    def mark(self, point: PointInfo, *, keep: bool | None, name: str | None, lock_seconds: int | None) -> None:
        """Say something of a point, durably; None leaves that as it is. Raises PointLocked, BadName, BadLock."""
        mark = self.of(point) or Mark(point.cycle, point.id)
        if lock_seconds:
            self._clock.save()
        self._put(marked(mark, self._clock.now(), self._clock.wall(), keep=keep, name=name, lock_seconds=lock_seconds))

    def of(self, point: PointInfo) -> Mark | None:
        """What is said of a point. One whose document is lost is kept, until somebody says otherwise."""
        mark = self._marks.get(point.cycle)
        if mark is not None and mark.id == point.id:
            return mark
        return Mark(point.cycle, point.id, kept=True) if point.cycle in self._lost else None

    def told(self, point: PointInfo) -> PointInfo:
        """The point with what is said of it."""
        mark = self.of(point)
        return told(point, mark, self._clock.now(), self._clock.wall()) if mark else point

    def check_none_locked(self) -> None:
        """Raises PointLocked while a lock on any point holds."""
        for mark in self._marks.values():
            left = self._left(mark)
            if left:
                raise PointLocked(mark.cycle, self._clock.wall() + left)

    def stays(self, point: PointInfo) -> bool:
        """Whether retention has to leave the point."""
        mark = self.of(point)
        return mark is not None and (mark.kept or self._left(mark) > 0)

    def forget(self, cycles: Iterable[int]) -> None:
        """These points are gone. Raises OSError."""
        for cycle in [*cycles]:
            if self._marks.pop(cycle, None) is not None or self._lost.pop(cycle, None) is not None:
                copies.remove(self._path(cycle))

    def keep_only(self, points: Iterable[PointInfo]) -> None:
        """Forget what is said of any others. Raises OSError."""
        ids = {point.cycle: point.id for point in points}
        self.forget([cycle for cycle, mark in self._marks.items() if ids.get(cycle) != mark.id])
        self.forget([cycle for cycle in self._lost if cycle not in ids])

    def documents(self) -> list[copies.Document]:
        known = [
            copies.Document(self._path(mark.cycle), files.seal(mark.encode()), (mark.cycle,))
            for mark in self._marks.values()
        ]
        return known + [copies.Document(self._path(cycle), None, (cycle,)) for cycle in self._lost]

    def _left(self, mark: Mark) -> float:
        """Seconds that a lock still holds; 0: there is none."""
        return max(0.0, mark.locked_until - self._clock.now()) if mark.locked_until else 0.0

    def _put(self, mark: Mark) -> None:
        if mark.kept or mark.name or self._left(mark):
            copies.write(self._path(mark.cycle), mark.encode())
            self._marks[mark.cycle] = mark
            self._lost.pop(mark.cycle, None)
        else:
            path = self._path(mark.cycle)
            files.remove_durably(copies.copy_path(path), path)
            self._marks.pop(mark.cycle, None)
            self._lost.pop(mark.cycle, None)

    def _path(self, cycle: int) -> Path:
        return self._directory / f"{cycle:06}.json"

    def _read(self, path: Path) -> None:
        marks, problems = copies.read(path, _decode)
        if marks and any(self._path(mark.cycle) != path for mark in marks):
            marks, problems = [], [f"{path.name} is of another point"]
        if marks:
            # A crash between the copies leaves them apart, and what was said last is in the first. But no lock that
            # was ever said is shortened.
            mark = replace(marks[0], locked_until=max(mark.locked_until for mark in marks))
            self._marks[mark.cycle] = mark
            if len(marks) != 2 or marks[0] != marks[1]:
                copies.write(path, mark.encode())
        elif problems and path.stem.isdecimal():
            self._lost[int(path.stem)] = "; ".join(problems)


def marked(
    mark: Mark, now: float, wall: float, *, keep: bool | None, name: str | None, lock_seconds: int | None
) -> Mark:
    """What is said of a point after this; None leaves that as it is. Raises PointLocked, BadName, BadLock.

    `now` is the lock clock's; a name has at most 100 printable characters and no space around it.
    """
    if name is not None and (len(name) > _LONGEST_NAME or not name.isprintable() or name.strip() != name):
        raise BadName("recovery point", name)
    if lock_seconds is not None and not 0 <= lock_seconds <= LONGEST_LOCK:
        raise BadLock(lock_seconds)
    if keep is False and now < mark.locked_until:
        raise PointLocked(mark.cycle, wall + mark.locked_until - now)
    if keep is not None:
        mark = replace(mark, kept=keep)
    if name is not None:
        mark = replace(mark, name=name)
    if lock_seconds and now + lock_seconds > mark.locked_until:
        mark = replace(mark, locked_at=now, locked_until=now + lock_seconds)
    return mark


def told(point: PointInfo, mark: Mark, now: float, wall: float) -> PointInfo:
    """The point with what is said of it; `now` is the lock clock's."""
    until = wall + mark.locked_until - now if now < mark.locked_until else None
    return replace(point, name=mark.name, kept=mark.kept, locked_until=until)


def _decode(document: dict[str, Any]) -> Mark:
    locked_at, locked_until = document["locked"]
    mark = Mark(
        int(document["cycle"]),
        bytes.fromhex(document["id"]),
        bool(document["kept"]),
        str(document["name"]),
        float(locked_at),
        float(locked_until),
    )
    copies.as_written(document, mark.encode())
    return mark
