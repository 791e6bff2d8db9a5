"""What each replication of this host did, minute by minute; pure: instants are given, in seconds since 1970."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from hyperv_host_agent.replication.progress import CycleDone, View
from twinsite.api.types.v1 import types_pb2

MINUTE: Final = 60
_BACK: Final = 3600  # seconds a clock may go back while the open minute simply stays open
_GAP: Final = 60  # minutes that are filled in when nobody looked; after more the machine slept, or its clock was set
_UNSAVED: Final = 20_000  # samples held while they cannot be written, about 10 MiB
_CAUSES: Final = tuple(one.name for one in types_pb2.Causes.DESCRIPTOR.fields)
_SUMS: Final = ("cycles", "missed", "failures", "changed_bytes", "content_bytes", "wire_bytes", "seconds_sum")
_MAXIMA: Final = ("rpo_max_seconds", "seconds_max")

Key = tuple[str, int]  # VM id, start


_COUNTERS: Final = ("missed", "failures", "changed_bytes", "content_bytes", "wire_bytes")


@dataclass(slots=True)
class _Tally:
    """One VM's open minute, and what is known of it from before."""

    sample: types_pb2.Sample
    instant: float = 0.0
    last: CycleDone | None = None
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))

    def aged(self, now: float) -> None:
        if self.instant:
            self.sample.rpo_max_seconds = max(self.sample.rpo_max_seconds, now - self.instant)


class Recorder:
    """One sample per watched VM and minute, also when nothing was committed in it."""

    def __init__(self) -> None:
        self.minute = 0  # that is open now; 0: none yet
        self.reopened = False  # it may have been begun before, see `restore`
        self._tallies: dict[str, _Tally] = {}
        self._sealed: dict[Key, types_pb2.Sample] = {}  # and not saved
        self._restored: dict[str, types_pb2.Sample] = {}  # of the open minute, by VM

    def watch(self, vm_id: str) -> None:
        if vm_id not in self._tallies:
            self._tallies[vm_id] = _Tally(self._begin(vm_id))

    def forget(self, vm_id: str) -> None:
        """It is no longer replicated from here; its open minute ends with what it has."""
        tally = self._tallies.pop(vm_id, None)
        if tally is not None and self.minute:
            self._sealed[vm_id, self.minute] = tally.sample

    def view(self, vm_id: str, view: View, now: float) -> None:
        """It did something."""
        self.roll(now)
        self.watch(vm_id)
        tally = self._tallies[vm_id]
        tally.aged(now)
        tally.instant = view.instant
        sample = tally.sample
        for name in _COUNTERS:
            value, before = getattr(view, name), tally.counters[name]
            tally.counters[name] = value
            # Less than before: the sender began anew.
            setattr(sample, name, getattr(sample, name) + (value - before if value >= before else value))
        if view.last is not None and view.last is not tally.last:
            # What a copy brings is not what the guest changed, and its hours are not those of a cycle.
            if not view.last.copy:
                _add_cycle(sample, view.last)
            tally.last = view.last

    def roll(self, now: float) -> None:
        """Seal what ended before `now`."""
        minute = int(now) - int(now) % MINUTE
        if 0 <= self.minute - minute <= _BACK:
            return
        before, self.minute = self.minute, minute
        self.reopened = self.reopened or minute < before or not before
        self._restored.clear()
        if not before:
            for vm_id, tally in self._tallies.items():
                tally.sample = self._begin(vm_id)
            return
        between = range(before + MINUTE, minute, MINUTE)
        for vm_id, tally in self._tallies.items():
            if minute > before:
                tally.aged(before + MINUTE)
            self._sealed[vm_id, before] = tally.sample
            for start in between if len(between) <= _GAP else ():
                tally.sample = types_pb2.Sample(vm_id=vm_id, start_unix=start)
                tally.aged(start + MINUTE)
                self._sealed[vm_id, start] = tally.sample
            tally.sample = self._begin(vm_id)

    def restore(self, samples: Iterable[types_pb2.Sample]) -> None:
        """What is saved of the open minute: by an earlier process, or before the clock was set back."""
        self.reopened = False
        for sample in samples:
            if sample.start_unix != self.minute:
                continue
            tally = self._tallies.get(sample.vm_id)
            if tally is not None:
                tally.sample = _sum(sample, tally.sample)
            else:
                self._restored[sample.vm_id] = sample

    def unsaved(self, now: float) -> list[types_pb2.Sample]:
        """What has to be written: sealed minutes, oldest first, and the open one as it is now."""
        keys = sorted(self._sealed, key=lambda key: (key[1], key[0]))
        for key in keys[:-_UNSAVED]:
            del self._sealed[key]
        found = [self._sealed[key] for key in keys[-_UNSAVED:]]
        for tally in self._tallies.values():
            tally.aged(now)
            if self.minute:
                present = types_pb2.Sample()
                present.CopyFrom(tally.sample)
                found.append(present)
        return found

    def saved(self, samples: Iterable[types_pb2.Sample]) -> None:
        for sample in samples:
            self._sealed.pop((sample.vm_id, sample.start_unix), None)

    def _begin(self, vm_id: str) -> types_pb2.Sample:
        begun = self._restored.pop(vm_id, None) or self._sealed.pop((vm_id, self.minute), None)
        return begun or types_pb2.Sample(vm_id=vm_id, start_unix=self.minute)


def _add_cycle(sample: types_pb2.Sample, cycle: CycleDone) -> None:
    sample.cycles += 1
    sample.seconds_sum += cycle.seconds
    sample.seconds_max = max(sample.seconds_max, cycle.seconds)
    for name in _CAUSES:
        setattr(sample.causes, name, getattr(sample.causes, name) + getattr(cycle.timing, name))
    _add_disks(sample, dict(cycle.disks))


def _add_disks(sample: types_pb2.Sample, changed: dict[str, int]) -> None:
    known = {disk.disk_id: disk for disk in sample.disks}
    for disk_id, count in changed.items():
        if disk_id not in known:
            known[disk_id] = sample.disks.add(disk_id=disk_id)
        known[disk_id].changed_bytes += count


def _sum(one: types_pb2.Sample, other: types_pb2.Sample) -> types_pb2.Sample:
    """Of the same VM and minute."""
    made = types_pb2.Sample()
    made.CopyFrom(one)
    for name in _SUMS:
        setattr(made, name, getattr(one, name) + getattr(other, name))
    for name in _MAXIMA:
        setattr(made, name, max(getattr(one, name), getattr(other, name)))
    for name in _CAUSES:
        setattr(made.causes, name, getattr(one.causes, name) + getattr(other.causes, name))
    _add_disks(made, {disk.disk_id: disk.changed_bytes for disk in other.disks})
    return made
