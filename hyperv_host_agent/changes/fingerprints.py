"""The fingerprint index of one VM on disk: what the newest acknowledged cycle holds, 16 bytes a cluster.

    index.json     the cycle the index describes and the disks' sizes; missing or unreadable: it describes nothing
    <disk>.fp      one fingerprint per cluster; a hole is ZERO_FINGERPRINT, so a thin disk has a thin index
    staging        fingerprints of a cycle under way; rubbish after a crash
    staged         the same, complete and durable: applied when the target has committed that cycle, or dropped
    applying       the target has committed it; every open finishes what a crash left

A damaged index must never pass for a sound one: it would keep a changed cluster from being sent. Whatever does not fit
together makes it empty with `base` None, and the target's fingerprints fill it again.
"""

import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from blake3 import blake3

from hyperv_host_agent.changes.durable import replace, safe_name, sync_folder
from hyperv_host_agent.replication.cycle import Committed, DiskGeometry
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import Failed
from twinsite.extents import Run, clusters, runs

_FORMAT: Final = 1
_RECORD: Final = struct.Struct("<IIQQ")  # kind, position of the disk in the head, first cluster, count
_ZERO, _DATA, _END = 0, 1, 2
_CHECK_BYTES: Final = 32
_PIECE: Final = 65536  # clusters handled at once: 1 MiB of fingerprints


class IndexDamaged(Failed):
    public = "the fingerprint index in {error.folder} is damaged: {error.problem}"
    still_works = "nothing that changed is forgotten: the next cycle compares with the target's fingerprints"

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder, self.problem = folder, problem


class Staging:
    """Fingerprints of the cycle under way, in any order; the last word on a cluster counts."""

    def __init__(self, folder: Path, cycle: Committed, disks: Sequence[DiskGeometry], parent: Committed | None) -> None:
        self._folder = folder
        self._position = {disk.id: position for position, disk in enumerate(disks)}
        self._file: BinaryIO = (folder / "staging").open("wb")
        self._check = blake3()
        head = _words(cycle) | {"disks": {disk.id: disk.size for disk in disks}, "whole": parent is None}
        self._write(json.dumps(head).encode() + b"\n")

    def put(self, disk: str, indexes: Sequence[int], fingerprints: bytes) -> None:
        """Clusters in ascending order and their fingerprints back to back."""
        if len(fingerprints) != len(indexes) * FINGERPRINT_BYTES:
            raise ValueError("one fingerprint per cluster")
        taken = 0
        for run in runs(indexes):
            self._write(_RECORD.pack(_DATA, self._position[disk], run.start, run.count))
            end = taken + run.count * FINGERPRINT_BYTES
            self._write(fingerprints[taken:end])
            taken = end

    def zero(self, disk: str, run: Run) -> None:
        self._write(_RECORD.pack(_ZERO, self._position[disk], run.start, run.count))

    def seal(self) -> None:
        """Complete and durable; from now on a restart finds it as `staged`."""
        self._write(_RECORD.pack(_END, 0, 0, 0))
        self._file.write(self._check.digest(length=_CHECK_BYTES))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        (self._folder / "staging").rename(self._folder / "staged")
        sync_folder(self._folder)

    def close(self) -> None:
        """Give up what is not sealed; repeatable."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._check.update(data)
        self._file.write(data)


class FingerprintIndex:
    """One caller at a time. Memory does not grow with the disks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._base: Committed | None = None
        self._staging: Staging | None = None
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "staging").unlink(missing_ok=True)
        try:
            self._load()
            if (folder / "applying").exists():
                self._finish_applying()
        except IndexDamaged:
            self.reset()

    @property
    def base(self) -> Committed | None:
        """The cycle the index describes; None: it describes nothing, and every answer is ZERO_FINGERPRINT."""
        return self._base

    @property
    def staged(self) -> Committed | None:
        """A sealed cycle that was neither applied nor dropped."""
        try:
            with (self._folder / "staged").open("rb") as file:
                head = _head(self._folder, file)
        except (FileNotFoundError, IndexDamaged):
            return None
        return _cycle(head)

    def get(self, disk: str, run: Run) -> bytes:
        """Fingerprints of the run, ZERO_FINGERPRINT for clusters the cycle did not have (the disk grew since)."""
        wanted = run.count * FINGERPRINT_BYTES
        file = self._files.get(disk)
        if file is None:
            return bytes(wanted)
        return os.pread(file, wanted, run.start * FINGERPRINT_BYTES).ljust(wanted, b"\0")

    def differing(self, disk: str, run: Run, fingerprints: bytes) -> list[int]:
        """Clusters of the run whose fingerprint is not the index's, ascending."""
        known = self.get(disk, run)
        if known == fingerprints:
            return []
        step = FINGERPRINT_BYTES
        return [
            run.start + at // step
            for at in range(0, len(known), step)
            if known[at : at + step] != fingerprints[at : at + step]
        ]

    def stage(self, cycle: Committed, disks: Sequence[DiskGeometry], *, parent: Committed | None) -> Staging:
        """Begin collecting what `cycle` changes; an unsealed collection before it is dropped, a sealed one stays.

        `parent` None: what is collected is the whole content, every cluster not named is zero. Raises ValueError when
        `parent` is not what the index describes.
        """
        if parent is not None and parent != self._base:
            raise ValueError(f"the index does not describe cycle {parent.number}")
        if self._staging is not None:
            self._staging.close()
        self._staging = Staging(self._folder, cycle, disks, parent)
        return self._staging

    def apply(self, cycle: Committed) -> None:
        """The target has committed the staged cycle: the index describes it now, durably. Repeatable.

        Raises ValueError when another cycle is staged, IndexDamaged (the index is empty then).
        """
        if self.staged is None and self._base == cycle:
            return
        if self.staged != cycle:
            raise ValueError(f"cycle {cycle.number} is not the staged one")
        # The decision is durable before the first fingerprint is overwritten: half an application is always finished.
        (self._folder / "staged").rename(self._folder / "applying")
        sync_folder(self._folder)
        try:
            self._finish_applying()
        except IndexDamaged:
            self.reset()
            raise

    def drop(self) -> None:
        """The staged cycle will not be committed. Repeatable."""
        (self._folder / "staged").unlink(missing_ok=True)
        sync_folder(self._folder)

    def reset(self) -> None:
        """The index describes nothing any more, durably."""
        # The void header stands until the rest is gone, so that a crash in between leaves nothing that looks sound.
        replace(self._folder / "index.json", b"void")
        self._close_files()
        self._base = None
        for path in (self._folder / "applying", self._folder / "staged", *self._folder.glob("*.fp")):
            path.unlink(missing_ok=True)
        sync_folder(self._folder)
        (self._folder / "index.json").unlink()
        sync_folder(self._folder)

    def close(self) -> None:
        if self._staging is not None:
            self._staging.close()
        self._close_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, disk: str) -> Path:
        return self._folder / f"{safe_name(disk)}.fp"

    def _load(self) -> None:
        try:
            header = json.loads((self._folder / "index.json").read_bytes())
        except FileNotFoundError:
            if any(self._folder.glob("*.fp")) and not (self._folder / "applying").exists():
                raise IndexDamaged(self._folder, "its header is missing") from None
            return
        except ValueError as error:
            raise IndexDamaged(self._folder, f"its header is unreadable: {error}") from None
        try:
            if header["format"] != _FORMAT:
                raise IndexDamaged(self._folder, f"it has format {header['format']}")
            self._base = _cycle(header)
            sizes: dict[str, int] = dict(header["disks"])
        except (KeyError, TypeError, ValueError) as error:
            raise IndexDamaged(self._folder, f"its header is unreadable: {error!r}") from None
        unfinished = (self._folder / "applying").exists()  # which may have another size already
        for disk, size in sizes.items():
            try:
                file = self._files[disk] = os.open(self._path(disk), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                raise IndexDamaged(self._folder, f"the file of disk {disk} is missing") from None
            if os.fstat(file).st_size != clusters(size) * FINGERPRINT_BYTES and not unfinished:
                raise IndexDamaged(self._folder, f"the file of disk {disk} has a wrong length")

    def _finish_applying(self) -> None:
        path = self._folder / "applying"
        with path.open("rb") as file:
            _check(self._folder, file)
            head = _head(self._folder, file)
            sizes: dict[str, int] = head["disks"]
            for disk, size in sizes.items():
                if disk not in self._files:
                    self._files[disk] = os.open(self._path(disk), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if head["whole"]:
                    os.ftruncate(self._files[disk], 0)
                os.ftruncate(self._files[disk], clusters(size) * FINGERPRINT_BYTES)
            names = list(sizes)
            for kind, position, run in _records(file):
                target = self._files[names[position]]
                for start in range(run.start, run.end, _PIECE):
                    piece = Run(start, min(_PIECE, run.end - start))
                    length = piece.count * FINGERPRINT_BYTES
                    if kind == _DATA:
                        os.pwrite(target, file.read(length), start * FINGERPRINT_BYTES)
                    elif any(os.pread(target, length, start * FINGERPRINT_BYTES)):  # a hole stays one
                        os.pwrite(target, bytes(length), start * FINGERPRINT_BYTES)
        for disk in set(self._files) - set(sizes):
            os.close(self._files.pop(disk))
            self._path(disk).unlink(missing_ok=True)
        for opened in self._files.values():
            os.fsync(opened)
        self._base = _cycle(head)
        header = {"format": _FORMAT, "disks": sizes} | _words(self._base)
        replace(self._folder / "index.json", json.dumps(header, indent=1).encode())
        path.unlink()
        sync_folder(self._folder)

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def _words(cycle: Committed) -> dict[str, Any]:
    return {"number": cycle.number, "id": cycle.id.hex()}


def _cycle(words: dict[str, Any]) -> Committed:
    return Committed(words["number"], bytes.fromhex(words["id"]))


def _head(folder: Path, file: BinaryIO) -> dict[str, Any]:
    try:
        head: dict[str, Any] = json.loads(file.readline())
    except ValueError as error:
        raise IndexDamaged(folder, f"a staged cycle is unreadable: {error}") from None
    return head


def _check(folder: Path, file: BinaryIO) -> None:
    """Compare the digest at the file's end with what is before it, and go back to the beginning."""
    left = os.fstat(file.fileno()).st_size - _CHECK_BYTES
    check = blake3()
    while left > 0 and (data := file.read(min(left, 1 << 20))):
        check.update(data)
        left -= len(data)
    if left != 0 or file.read() != check.digest(length=_CHECK_BYTES):
        raise IndexDamaged(folder, "a staged cycle does not match its checksum")
    file.seek(0)


def _records(file: BinaryIO) -> Iterator[tuple[int, int, Run]]:
    """The caller reads a data record's fingerprints before it asks for the next one."""
    while True:
        kind, disk, start, count = _RECORD.unpack(file.read(_RECORD.size))
        if kind == _END:
            return
        yield kind, disk, Run(start, count)
