"""Mending: side files from their second copy or the layer, frames from equal ones elsewhere, tables from the frames.

Nothing is mended in place. A layer with replaced frames is written anew beside the damaged one and takes its place the
way a merged layer does.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from hyperv_host_agent.store import files
from hyperv_host_agent.store.copies import copy_path
from hyperv_host_agent.store.formats import side_file, zstd_frame
from hyperv_host_agent.store.formats.qcow2 import ZERO, Layer, LayerDamaged, frame_extent
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.formats.side_file import Entry, SideFile, ZeroRun, side_path
from hyperv_host_agent.store.layer_check import LayerCheck, lay_out
from hyperv_host_agent.store.manifests import LayerRef
from hyperv_host_agent.store.merging import discard, temporary_paths
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER, runs

MENDED: Final = ".mended"
_PIECE: Final = 1 << 20
_SECTOR: Final = 4096
_ZEROS: Final = bytes(CLUSTER)
_ZERO: Final = fingerprint(_ZEROS)  # of a frame that holds zeros


class Cancelled(Exception):  # a signal inside the store, never shown
    """The replica is being closed."""


def is_sound(side: Path, ref: LayerRef) -> bool:
    """Whether this is the side file that was committed with the layer."""
    try:
        with closing(SideFile(side)) as opened:
            return opened.digest() == ref.digest
    except LayerDamaged:
        return False


def mended_side(layer: Path, ref: LayerRef) -> Path | None:
    """The layer's side file as it was committed, made anew and durable under a temporary name; None: it is lost.

    From its second copy, or recomputed from the frames of a layer that one cycle brought. Raises OSError.
    """
    side = side_path(layer)
    out = side.with_name(side.name + MENDED)
    if is_sound(copy_path(side), ref):
        _duplicate(copy_path(side), out)
        return out
    for entries, zero_runs in _recomputed(layer, ref):
        chunks = (side_file.records([entry]) for entry in entries)
        with suppress(LayerDamaged):
            if side_file.write(out, ref.size, chunks, zero_runs) == ref.digest:
                return out
    files.remove_file(out)
    return None


def copy_side(layer: Path, ref: LayerRef) -> None:
    """Give a sound side file its second copy, unless it has one. Raises OSError."""
    side = side_path(layer)
    if is_sound(side, ref) and not is_sound(copy_path(side), ref):
        temporary = copy_path(side).with_name(copy_path(side).name + ".tmp")
        _duplicate(side, temporary)
        temporary.rename(copy_path(side))
        files.sync_directory(side.parent)


def equal_frames(fingerprints: Collection[bytes], layers: Iterable[tuple[Path, LayerRef]]) -> dict[bytes, bytes]:
    """Sound frames with these fingerprints, wherever in `layers` they are."""
    found: dict[bytes, bytes] = {}
    left = set(fingerprints)
    if _ZERO in left:
        found[_ZERO] = zstd_frame.compress(_ZEROS)
        left.discard(_ZERO)
    for path, ref in layers:
        if not left:
            break
        with suppress(LayerDamaged), LayerCheck(path, ref, side_path(path)) as layer:
            for entry in layer.side.entries():
                frame = layer.content(entry) if entry.fingerprint in left else None
                if frame is not None:
                    found[entry.fingerprint] = frame
                    left.discard(entry.fingerprint)
    return found


def rewrite(layer: Path, ref: LayerRef, frames: Mapping[tuple[int, int], bytes], go_on: Callable[[], bool]) -> LayerRef:
    """Write the layer anew, durably under its `temporary_paths`: with these frames by (cluster, cycle), its own tables.

    A frame of another length than the damaged one goes to the end. The side file must be sound. Raises OSError,
    LayerDamaged, Cancelled once `go_on` is false; the temporary files are gone then.
    """
    out, side_out = temporary_paths(layer)
    try:
        with closing(SideFile(side_path(layer))) as side:
            placed: dict[tuple[int, int], Entry] = {}
            fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                end = CLUSTER + ref.stored_bytes
                _copy(layer, fd, end, go_on)
                for cluster in sorted({cluster for cluster, _ in frames}):
                    for entry in side.entries(cluster, cluster + 1):
                        frame = frames.get((cluster, entry.cycle))
                        if frame is None:
                            continue
                        at = entry.offset
                        if len(frame) != entry.length:
                            at, end = end, end + len(frame)
                        files.write_all(fd, frame, at)
                        placed[cluster, entry.cycle] = entry._replace(offset=at, length=len(frame))
                entries = (placed.get((entry.cluster, entry.cycle), entry) for entry in side.entries())
                digest = side_file.write(side_out, ref.size, map(_record, entries), side.zeros())
                into = replace(ref, stored_bytes=end - CLUSTER, digest=digest)
                with closing(SideFile(side_out)) as changed:
                    writer = LayerWriter(fd, ref.size)
                    lay_out(writer, changed, into)
                    writer.finish(ref.backing)
            finally:
                os.close(fd)
        files.sync_directory(layer.parent)
    except (OSError, LayerDamaged, Cancelled):
        discard(layer)
        raise
    return into


def _duplicate(source: Path, target: Path) -> None:
    """Copy a file durably."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with source.open("rb") as old:
            at = 0
            while piece := old.read(_PIECE):
                files.write_all(fd, piece, at)
                at += len(piece)
        files.sync(fd)
    finally:
        os.close(fd)


def _record(entry: Entry) -> bytes:
    return side_file.records([entry])


def _copy(source: Path, fd: int, end: int, go_on: Callable[[], bool]) -> None:
    """Copy the frames; sectors that cannot be read are left out."""
    try:
        old = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return  # all of it is lost
    try:
        for at in range(CLUSTER, end, _PIECE):
            if not go_on():
                raise Cancelled
            count = min(_PIECE, end - at)
            try:
                files.write_all(fd, os.pread(old, count, at), at)
            except OSError:
                for sector in range(at, at + count, _SECTOR):
                    piece = b""
                    with suppress(OSError):
                        piece = os.pread(old, min(_SECTOR, at + count - sector), sector)
                    files.write_all(fd, piece, sector)
    finally:
        os.close(old)


def _recomputed(layer: Path, ref: LayerRef) -> Iterator[tuple[Iterator[Entry], list[ZeroRun]]]:
    """What the side file of a layer that one cycle brought may have said, likeliest first."""
    try:
        with closing(Layer(layer)) as opened:
            zeros = [cluster for cluster, entry in opened.entries() if entry == ZERO]
            shown = [ZeroRun(run.start, run.end, ref.cycle) for run in runs(zeros)]
            said: list[ZeroRun] | None = None
            with suppress(LayerDamaged), closing(SideFile(side_path(layer))) as side:
                said = list(side.zeros())
            for zero_runs in ([said] if said is not None else []) + [shown]:
                yield _from_frames(opened, ref), zero_runs
    except LayerDamaged:
        return


def _from_frames(opened: Layer, ref: LayerRef) -> Iterator[Entry]:
    """The entries of a layer's frames. Raises LayerDamaged."""
    for cluster, entry in opened.entries():
        if entry == ZERO:
            continue
        frame = opened.frame(cluster, entry)
        try:
            content = zstd_frame.content(frame)
        except zstd_frame.BadFrame as error:
            raise LayerDamaged(opened.path, error.problem, cluster) from error
        yield Entry(cluster, ref.cycle, frame_extent(entry)[0], len(frame), fingerprint(content))
