"""What a replica knows of its own state: the continuous check, checks on demand, damage and whom it concerns."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from hyperv_host_agent.store.base import Checked, PointInfo, ScrubState
from hyperv_host_agent.store.damage import Damage, Record
from hyperv_host_agent.store.ground import Ground
from hyperv_host_agent.store.manifests import Manifest
from hyperv_host_agent.store.mending import Mender
from hyperv_host_agent.store.scrub import Check, round_bytes
from twinsite.extents import Run

_SAVE_BYTES = 512 << 20  # that a restart may have to read again


class Inspection:
    """`scrub` is for one thread at a time; the rest may run beside it. OSErrors of writing pass through."""

    def __init__(self, ground: Ground, record: Record, found: Iterable[Damage]) -> None:
        """`found`: what opening the replica came upon."""
        self._ground, self._record = ground, record
        self._check: Check | None = None
        self._steps: Iterator[Checked] = iter(())
        self._saved = 0
        self._retry = False
        self._suspected = False
        self._unsaved: OSError | None = None
        damages = list(found)
        if damages:
            files = {one.file for one in damages}
            record.replace(damages, of=lambda one: one.cluster is None and one.file in files)
            record.save()

    def check(self, point: Manifest | None, *, repair: bool) -> Iterator[Checked]:
        """Check everything, or what a point stands on."""
        check = Check(self._ground, repair=repair, point=point)
        try:
            for step in check.steps():
                yield step
                if step.findings:
                    self._save()
        finally:
            self._save()

    def scrub(self, count: int, now: float) -> ScrubState:
        """Go on with the round, after what a new cycle may have made possible.

        It goes on whatever cannot be written; the OSError is raised once `count` bytes were checked.
        """
        record = self._record
        self._unsaved = None
        if self._suspected:
            self._suspected, self._check, record.position, record.checked = False, None, None, 0
        elif self._retry:
            self._retry = False
            if Mender(self._ground, repair=True).again():
                self._noted()
            if record.completed is not None and not (record.position and self._check):
                return self.state()  # it rests
        if self._check is None:
            self._check = Check(self._ground, repair=True, position=record.position)
            self._check.done = record.checked if record.position else 0
            self._steps = self._check.steps()
        end = self._check.done + count
        while self._check.done < end:
            with ExitStack() as unless_whole:
                unless_whole.callback(self._interrupted, self._check)
                step = next(self._steps, None)
                unless_whole.pop_all()
            if step is None:
                if self._ground.is_open():
                    self._check, record.position, record.checked, record.completed = None, None, 0, now
                    self._noted()
                break
            record.position, record.checked = self._check.position, self._check.done
            if step.findings or record.checked - self._saved >= _SAVE_BYTES:
                self._noted()
        if self._unsaved:
            raise self._unsaved
        return self.state()

    def _noted(self) -> None:
        """Save now, or say at the end of this piece why that could not be done."""
        try:
            self._save()
        except OSError as error:
            self._unsaved = self._unsaved or error
            self._saved = self._record.checked  # not again with each step

    def _interrupted(self, check: Check) -> None:
        """The round is not over: what ended is this pass. The next one goes on from where it was; when that was the
        end, and only something could not be written, from the beginning.
        """
        self._record.position, self._record.checked, self._check = check.position, check.done, None
        if check.failed:
            self._record.position, self._record.checked = None, 0

    def state(self) -> ScrubState:
        with self._ground.lock:
            return self._record.state(round_bytes(self._ground), retry=self._retry or self._suspected)

    def committed(self, cycle: int, brought: Mapping[str, list[Run]]) -> None:
        """What the newest point showed of these clusters is no longer its concern. Under the lock."""
        if self._record.brought(cycle, brought):
            self._retry = True
            self._record.save()

    def suspect(self) -> None:
        """Somebody came upon damage: the next `scrub` begins a round."""
        self._suspected = True

    @property
    def knows_damage(self) -> bool:
        return bool(self._record.damages)

    def told(self, point: PointInfo, manifest: Manifest) -> PointInfo:
        """The point with the number of damages it stands on. Under the lock."""
        count = sum(self._ground.concerns(damage, manifest) for damage in self._record.damages)
        return replace(point, damaged=count) if count else point

    def close(self) -> None:
        """The next start goes on from here."""
        if self._check:
            self._save()

    def _save(self) -> None:
        with self._ground.lock:
            if self._ground.directory.is_dir():
                self._record.save()
                self._saved = self._record.checked
