"""The level one VM's content is packed with: the rule in `replication.compression`, fed with what parts took."""

from dataclasses import dataclass, field
from typing import Final

import structlog

from hyperv_host_agent.reading import Work
from hyperv_host_agent.replication.compression import Compression, Part
from twinsite.clock import Clock
from twinsite.units import MiB

_log = structlog.get_logger()
PART_BYTES: Final = 16 * MiB  # of content, after which a level is looked at
PART_SECONDS: Final = 5.0  # or after so long
LEAST_BYTES: Final = 2 * MiB  # but not with less: small cycles are added up


@dataclass(slots=True)
class _Part:
    work: Work = field(default_factory=Work)
    way: float = 0.0  # seconds its messages were held up
    since: float = 0.0


class Levels:
    """One VM's, for all lives of its sender. `beside`: of a copy, which is packed while it is sent."""

    def __init__(self, threads: int, clock: Clock) -> None:
        self._compression = Compression(threads)
        self._clock = clock
        self._parts = {beside: _Part(since=clock.monotonic()) for beside in (False, True)}

    def level(self, *, beside: bool) -> int:
        return self._compression.level(beside=beside)

    def held_up(self, seconds: float, *, beside: bool) -> None:
        """Network, target and caps took so long to take a message."""
        self._parts[beside].way += seconds

    def packed(self, work: Work, *, beside: bool) -> None:
        self._parts[beside].work.merge(work)

    def look(self, *, beside: bool) -> None:
        """A cycle arrived, or a copy has sent some more: the next may have another level."""
        part, now = self._parts[beside], self._clock.monotonic()
        content = part.work.content_bytes
        if content < LEAST_BYTES or (content < PART_BYTES and now < part.since + PART_SECONDS):
            return
        self._parts[beside] = _Part(since=now)
        work, before = part.work, self.level(beside=beside)
        self._compression.learn(
            Part(before, content, work.frame_bytes, work.shrunk_bytes, work.shrunk_seconds, part.way, beside)
        )
        if self.level(beside=beside) != before:
            _log.debug(
                "compression_level",
                level=self.level(beside=beside),
                before=before,
                content=content,
                frames=work.frame_bytes,
                pack_seconds=round(work.shrunk_seconds, 3),
                way_seconds=round(part.way, 3),
            )
